-- The queries and positives of a contrastive view, and the candidates for its negatives.
--
-- In   chosen_datasets(dataset), chosen_sources(source, mining, run), protected(normal_hash) and the variables
--      seed, depth, positives (each | one | all | generated), max_positives, min_relevance, judging, retrieved,
--      mostly_retrieved and enough_retrieved.
-- Out  asked, judged, pool, positives (with the reason of those that are left out), and the variables retrieved (decided),
--      n_positives and n_retrieved (0 if retrieved is false from the start).
-- A query that stands in two datasets is one query; its judgments are united.

CREATE OR REPLACE TEMP TABLE asked AS
SELECT DISTINCT q.query, q.query_id, c.name AS collection, salt_of(getvariable('seed'), concat(c.name, ':', q.query_id)) AS salt,
       q.normal_hash IN (SELECT normal_hash FROM protected) AS leaks
FROM chosen_datasets JOIN dataset_queries dq USING (dataset) JOIN queries q USING (query)
JOIN collections c ON c.collection = q.collection;

CREATE OR REPLACE TEMP TABLE judged AS
SELECT query, document, max(relevance) AS relevance
FROM qrels JOIN chosen_datasets USING (dataset) GROUP BY query, document;

-- Candidates for negatives; label 1 is a candidate that denoising found to be a positive.
CREATE OR REPLACE TEMP VIEW pool AS
SELECT s.source * 1000 + coalesce(r.number, 0) AS source, n.query, n.document, n.source_rank AS rank, n.label, n.weight
FROM negatives n JOIN chosen_sources s USING (mining)
LEFT JOIN (SELECT run, dense_rank() OVER (ORDER BY name) AS number FROM runs) r ON r.run = n.source_run
UNION ALL
SELECT s.source * 1000 AS source, c.query, c.document, c.rank, 0 AS label, 1 AS weight
FROM candidates c JOIN chosen_sources s USING (run) WHERE c.rank <= getvariable('depth');

-- Positives: judged, relabelled by denoising, or, if named, the passages that queries were generated from (with no grade),
-- and those that an LLM judge grades so where people have not judged;
-- numbered in an order that the seed draws.
CREATE OR REPLACE TEMP TABLE positives AS
SELECT p.query, p.document, p.relevance, d.doc_id, d.text_hash,
       CASE WHEN d.text_hash IS NULL THEN 'positive not held'
            WHEN p.text_hash <> d.text_hash THEN 'the text has changed since its query or grade was made'
            WHEN row_number() OVER (PARTITION BY p.query, d.text_hash ORDER BY d.doc_id) > 1
            THEN 'same text as another positive' END AS reason,
       0 AS number
FROM (
    SELECT query, document, max(relevance) AS relevance,
           CASE WHEN bool_and(text_hash IS NOT NULL) THEN any_value(text_hash) END AS text_hash
    FROM (
        SELECT query, document, relevance, NULL::UBIGINT AS text_hash FROM judged
        WHERE relevance >= getvariable('min_relevance')
        UNION ALL SELECT query, document, -1, NULL FROM pool WHERE label = 1
        UNION ALL SELECT query, document, -1, text_hash FROM query_origins JOIN chosen_datasets USING (dataset)
                  WHERE getvariable('positives') = 'generated'
        UNION ALL SELECT g.query, g.document, g.grade, g.text_hash
                  FROM llm_judgments g JOIN judgings j USING (judging) JOIN chosen_datasets c ON c.dataset = j.dataset
                  ANTI JOIN judged h ON h.query = g.query AND h.document = g.document
                  WHERE j.name = getvariable('judging') AND g.grade >= getvariable('min_relevance')
    ) GROUP BY query, document
) p JOIN documents d USING (document) JOIN asked a USING (query) WHERE NOT a.leaks;

-- Positives that the negatives' runs rank. Beside negatives that were all retrieved, the others teach what a retrieved
-- passage looks like. So they are left out where asked, and by default (retrieved is NULL) if most positives are such and
-- enough others remain.
CREATE OR REPLACE TEMP TABLE ranking_runs AS
SELECT run, getvariable('depth') AS depth FROM chosen_sources
WHERE run IS NOT NULL AND getvariable('retrieved') IS DISTINCT FROM false
UNION ALL
SELECT DISTINCT source_run, NULL FROM negatives JOIN chosen_sources USING (mining)
WHERE source_run IS NOT NULL AND getvariable('retrieved') IS DISTINCT FROM false;

CREATE OR REPLACE TEMP TABLE retrieved_positives AS
SELECT DISTINCT p.query, p.document
FROM candidates c JOIN ranking_runs r USING (run) JOIN positives p ON p.query = c.query AND p.document = c.document
WHERE p.reason IS NULL AND c.rank <= coalesce(r.depth, c.rank);

SET VARIABLE n_positives = (SELECT count(*) FROM positives WHERE reason IS NULL);
SET VARIABLE n_retrieved = (SELECT count(*) FROM retrieved_positives);
SET VARIABLE retrieved = coalesce(
    getvariable('retrieved'),
    getvariable('n_retrieved') < getvariable('mostly_retrieved') * getvariable('n_positives')
    AND getvariable('n_retrieved') >= getvariable('enough_retrieved')
);

UPDATE positives SET reason = 'positive not retrieved'
WHERE reason IS NULL AND getvariable('retrieved') AND NOT EXISTS (
    FROM retrieved_positives r WHERE r.query = positives.query AND r.document = positives.document
);

UPDATE positives SET number = n.number FROM (
    SELECT p.query, p.document,
           row_number() OVER (PARTITION BY p.query ORDER BY salt_of(a.salt, p.doc_id), p.doc_id) AS number
    FROM positives p JOIN asked a USING (query) WHERE p.reason IS NULL
) n WHERE positives.query = n.query AND positives.document = n.document;

UPDATE positives SET reason = 'another positive was drawn'
WHERE reason IS NULL AND number > CASE getvariable('positives') WHEN 'one' THEN 1 ELSE getvariable('max_positives') END;
