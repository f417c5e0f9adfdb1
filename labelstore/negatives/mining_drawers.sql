-- The queries that get random passages: those with enough mined ones. In and out as random_passages.sql says.

CREATE OR REPLACE TEMP TABLE drawers AS
SELECT query AS list, query, q.collection, salt_of(getvariable('seed'), concat('random:', c.name, ':', q.query_id)) AS salt
FROM enough JOIN queries q USING (query) JOIN collections c USING (collection);
SET VARIABLE random_wanted = getvariable('random');
