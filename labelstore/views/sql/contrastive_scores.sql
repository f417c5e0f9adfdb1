-- contrastive, where the runs' scores are asked for: each passage of a list with its score in the run that it was taken
-- from, a positive with its score in the first run that ranks it. A list whose positive no run ranks has no full set of
-- scores and is left out, with counts.
-- In   lists, pairs, tally, positives, chosen_sources as contrastive.sql leaves them.

CREATE OR REPLACE TEMP TABLE run_scores AS
SELECT l.list, p.document, arg_min(p.score, p.source) AS score
FROM (
    SELECT s.source * 1000 + r.number AS source, n.query, n.document, n.source_score AS score
    FROM negatives n JOIN chosen_sources s USING (mining)
    JOIN (SELECT run, dense_rank() OVER (ORDER BY name) AS number FROM runs) r ON r.run = n.source_run
    UNION ALL
    SELECT s.source * 1000, c.query, c.document, c.score FROM candidates c JOIN chosen_sources s USING (run)
    UNION ALL
    SELECT m.source * 1000 + r.number, c.query, c.document, c.score
    FROM (SELECT DISTINCT s.source, n.source_run AS run FROM negatives n JOIN chosen_sources s USING (mining)) m
    JOIN (SELECT run, dense_rank() OVER (ORDER BY name) AS number FROM runs) r USING (run)
    JOIN candidates c USING (run) JOIN positives w ON w.query = c.query AND w.document = c.document
) p JOIN lists l USING (query) GROUP BY l.list, p.document;

UPDATE pairs SET score = s.score FROM run_scores s WHERE pairs.list = s.list AND pairs.document = s.document;

CREATE OR REPLACE TEMP TABLE unscored AS SELECT DISTINCT list FROM pairs WHERE score IS NULL;

INSERT INTO tally
SELECT CASE label WHEN 1 THEN 'positives' ELSE 'passages' END,
       CASE label WHEN 1 THEN 'no run scores it' ELSE 'its positive has no score' END, count(*),
       min(query_id || ' ' || doc_id)
FROM pairs JOIN unscored USING (list) JOIN lists USING (list) JOIN queries USING (query) JOIN documents d USING (document)
GROUP BY label;

INSERT INTO tally
SELECT 'queries', 'no run scores its positive', count(DISTINCT query), min(query_id)
FROM lists l JOIN queries USING (query)
WHERE list IN (FROM unscored) AND NOT EXISTS (FROM lists o WHERE o.query = l.query AND o.list NOT IN (FROM unscored));

DELETE FROM pairs WHERE list IN (FROM unscored);
DELETE FROM lists WHERE list IN (FROM unscored);
