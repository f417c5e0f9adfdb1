-- Random passages of the collection at the bottom of each list: "easy" ones, tied below all that are there.
--
-- In   lists, pairs, judged and easy_seen(query, document: what the sources hold for the query) as the kind's SQL leaves
--      them, own_passages, random_draws, tally and the variable easy. Runs after cuts.sql, so that they make no list long
--      enough.
-- Out  pairs with `easy` more per list, tally step 'easy passages'.

CREATE OR REPLACE TEMP TABLE easy_rows AS
SELECT list, document, row_number() OVER (PARTITION BY list ORDER BY try) AS number
FROM random_draws e
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
