-- Random passages of the collection at the bottom of each list: "easy" ones, tied below all that are there.
--
-- In   lists, pairs, judged and easy_seen(query, document: what the sources hold for the query) as the kind's SQL leaves
--      them, own_passages, tally and the variables seed, easy. Runs after cuts.sql, so that they make no list long enough.
-- Out  pairs with `easy` more per list, tally step 'easy passages'.
-- A draw is a place in the collection's passages by doc_id: the same in every store that holds the same collection.

CREATE OR REPLACE TEMP TABLE easy_pool AS
SELECT collection, document, text_hash,
       (row_number() OVER (PARTITION BY collection ORDER BY doc_id) - 1)::UBIGINT AS place
FROM documents WHERE text_hash IS NOT NULL AND collection IN (SELECT collection FROM lists JOIN queries USING (query));

CREATE OR REPLACE TEMP TABLE easy_sizes AS SELECT collection, count(*)::UBIGINT AS n FROM easy_pool GROUP BY collection;

-- More draws than are wanted, since some meet what a list holds already. A table of its own: the join is then by place.
CREATE OR REPLACE TEMP TABLE easy_places AS
SELECT list, query, collection, try, (draw(salt, 1, try) * n) >> 32 AS place
FROM (
    SELECT list, query, q.collection, salt_of(getvariable('seed'), concat('easy:', c.name, ':', q.query_id, ':', l.variant)) AS salt
    FROM lists l JOIN queries q USING (query) JOIN collections c USING (collection)
) JOIN easy_sizes USING (collection)
JOIN (SELECT unnest(range(1, 8 * getvariable('easy') + 33)) AS try) ON true;

CREATE OR REPLACE TEMP TABLE easy_draws AS
SELECT list, query, document, text_hash, try FROM easy_places JOIN easy_pool USING (collection, place);

CREATE OR REPLACE TEMP TABLE easy_rows AS
SELECT list, document, row_number() OVER (PARTITION BY list ORDER BY try) AS number
FROM (
    SELECT list, query, document, try FROM easy_draws
    QUALIFY row_number() OVER (PARTITION BY list, text_hash ORDER BY try) = 1
) e
ANTI JOIN easy_seen s ON s.query = e.query AND s.document = e.document
ANTI JOIN (
    SELECT j.query, o.document FROM judged j JOIN documents d USING (document) JOIN documents o USING (text_hash)
) j ON j.query = e.query AND j.document = e.document
ANTI JOIN own_passages o ON o.query = e.query AND o.document = e.document
ANTI JOIN (
    SELECT p.list, o.document FROM pairs p JOIN documents d USING (document) JOIN documents o USING (text_hash)
) h ON h.list = e.list AND h.document = e.document
QUALIFY number <= getvariable('easy');

-- Labels from 1 on where the lowest was 0, so that the random ones can stand below it. Contrastive ones are negatives.
UPDATE pairs SET label = label + 1
WHERE getvariable('kind') = 'distillation' AND list IN (
    SELECT list FROM pairs WHERE list IN (SELECT list FROM easy_rows) GROUP BY list HAVING min(label) = 0
);

INSERT INTO pairs
SELECT list, document, last + number, 0, 0, NULL, 1, -1
FROM easy_rows JOIN (SELECT list, max(place) AS last FROM pairs GROUP BY list) USING (list);

INSERT INTO tally
SELECT 'easy passages', NULL, count(*) * getvariable('easy'), NULL FROM lists
UNION ALL
SELECT 'easy passages', 'the collection has too few others',
       (SELECT count(*) FROM lists) * getvariable('easy') - (SELECT count(*) FROM easy_rows), NULL;
