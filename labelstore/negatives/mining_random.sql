-- Random passages of the collection beside the mined ones: negatives that no run had to find.
--
-- In   enough, mining_rows, judged, own_passages, mined_sources, random_draws (random_passages.sql makes them of `drawers`,
--      which mining_drawers.sql makes) and the variables random, depth.
-- Out  mining_rows with `random` more per query (source_run NULL, source_rank: the number of the draw), tally.
-- Never drawn: what is judged, what denoising flags, what was mined, what the runs rank down to the depth (the rules decided about those), the
-- query itself, and what reads like one of these.

CREATE OR REPLACE TEMP TABLE barred AS
SELECT query, document FROM own_passages
UNION
SELECT s.query, o.document FROM (
    SELECT query, document FROM judged
    UNION SELECT query, document FROM flagged
    UNION SELECT query, document FROM mining_rows
    UNION SELECT query, document FROM candidates c JOIN mined_sources USING (run) WHERE c.rank <= getvariable('depth')
) s JOIN documents d USING (document) JOIN documents o USING (text_hash) WHERE s.query IN (SELECT query FROM enough);

INSERT INTO mining_rows
SELECT e.query, e.document, NULL, row_number() OVER (PARTITION BY e.query ORDER BY try) AS number, NULL, NULL, 0, 1
FROM random_draws e ANTI JOIN barred b ON b.query = e.query AND b.document = e.document
QUALIFY number <= getvariable('random');

INSERT INTO tally
SELECT 'random passages', NULL, count(*) * getvariable('random'), NULL FROM enough
UNION ALL
SELECT 'random passages', 'the collection has too few others',
       (SELECT count(*) FROM enough) * getvariable('random') - (SELECT count(*) FROM mining_rows WHERE source_run IS NULL), NULL;
