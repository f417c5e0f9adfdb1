-- rerank: the lists of one or more runs, to be scored by a student.
--
-- In   chosen_datasets(dataset), chosen_sources(source, mining, run) and the variable depth.
-- Out  lists, pairs, tally as finish.sql takes them.

CREATE OR REPLACE TEMP TABLE judged AS
SELECT dataset, query, document, relevance FROM qrels JOIN chosen_datasets USING (dataset);

CREATE OR REPLACE TEMP TABLE offered AS
SELECT row_number() OVER (ORDER BY run, query)::INTEGER AS list, run, dataset, query, content_hash AS variant
FROM (SELECT DISTINCT run, query FROM candidates WHERE run IN (SELECT run FROM chosen_sources))
JOIN (SELECT run, dataset, content_hash FROM runs) USING (run);

CREATE OR REPLACE TEMP TABLE unheld AS SELECT document FROM documents WHERE text_hash IS NULL;

-- What is below the depth is counted at the end and never gathered: it may be most of a run.
CREATE OR REPLACE TEMP TABLE items AS
SELECT o.list, o.query, c.document, c.rank, c.score, coalesce(j.relevance, -1) AS relevance,
       CASE WHEN u.document IS NOT NULL THEN 'passage not held' END AS reason
FROM candidates c JOIN offered o ON o.run = c.run AND o.query = c.query
LEFT JOIN unheld u ON u.document = c.document
LEFT JOIN judged j ON j.dataset = o.dataset AND j.query = c.query AND j.document = c.document
WHERE c.rank <= getvariable('depth');

CREATE OR REPLACE TEMP TABLE deeper AS
SELECT count(*) AS n, min(c.query) FILTER (WHERE c.rank = getvariable('depth') + 1) AS query,
       arg_min(c.document, c.query) FILTER (WHERE c.rank = getvariable('depth') + 1) AS document
FROM candidates c WHERE c.run IN (SELECT run FROM chosen_sources) AND c.rank > getvariable('depth');

CREATE OR REPLACE TEMP TABLE lists AS
SELECT list, query, variant FROM offered WHERE list IN (SELECT list FROM items WHERE reason IS NULL);

CREATE OR REPLACE TEMP TABLE pairs AS
SELECT list, document, rank AS place, 0::SMALLINT AS label, rank::SMALLINT AS rank, score::FLOAT AS score,
       1::FLOAT AS weight, relevance::SMALLINT AS relevance
FROM items WHERE reason IS NULL;

CREATE OR REPLACE TEMP TABLE tally AS
SELECT 'lists' AS step, NULL::VARCHAR AS reason, count(*) AS n, NULL::VARCHAR AS example FROM offered
UNION ALL SELECT 'lists', 'no passage held', count(*), min(query_id) FROM offered JOIN queries USING (query)
          WHERE list NOT IN (SELECT list FROM lists)
UNION ALL SELECT 'passages', NULL, (SELECT count(*) FROM items) + (SELECT n FROM deeper), NULL
UNION ALL SELECT 'passages', 'below the depth', n, concat(query_id, ' ', doc_id)
          FROM deeper LEFT JOIN queries USING (query) LEFT JOIN documents USING (document) WHERE n > 0
UNION ALL SELECT 'passages', reason, count(*), min(query_id || ' ' || doc_id)
          FROM items JOIN queries USING (query) JOIN documents d USING (document)
          WHERE reason IS NOT NULL GROUP BY reason;
