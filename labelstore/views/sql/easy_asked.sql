-- The queries whose lists get random passages: own_passages.sql, which runs next, says what reads as they do, and
-- random_passages.sql draws.
CREATE OR REPLACE TEMP TABLE asked AS SELECT DISTINCT query FROM lists;

CREATE OR REPLACE TEMP TABLE drawers AS
SELECT list, query, q.collection, salt_of(getvariable('seed'), concat('easy:', c.name, ':', q.query_id, ':', l.variant)) AS salt
FROM lists l JOIN queries q USING (query) JOIN collections c USING (collection);
SET VARIABLE random_wanted = getvariable('easy');
