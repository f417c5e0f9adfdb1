-- Hard negatives of a dataset's judged queries from one or more runs, each with the evidence it passed or failed on.
--
-- In   mined_dataset(dataset), mined_sources(source, run, quota), denoiser(labeling, checking: one of them), scorer(run: whose scores the
--      margins compare; empty: each source's own) and the variables
--      seed, strategy (uniform | top), min_rank, depth, per_query, min_relevance, reference (best | worst),
--      absolute_margin, relative_margin, max_score, min_score (NULL: not asked), denoise (drop | relabel | downweight),
--      denoise_weight, max_flags (NULL: any number), flag_reason, max_repairs, include_positives; own_passages, which own_passages.sql makes of `asked`.
-- Out  mining_draws, filled by mining_draw.sql source by source; mining_end.sql counts.

CREATE OR REPLACE TEMP TABLE judged AS
SELECT query, document, max(relevance) AS relevance FROM (
    SELECT dataset, query, document, relevance FROM qrels
    -- If a query was generated from a passage, that passage is never a negative for the query.
    UNION ALL SELECT dataset, query, document, getvariable('min_relevance') FROM query_origins
) JOIN mined_dataset USING (dataset) GROUP BY query, document;

CREATE OR REPLACE TEMP TABLE positives AS
SELECT query, document, d.text_hash FROM judged JOIN documents d USING (document)
WHERE relevance >= getvariable('min_relevance');

-- The positives' scores in each source (or in the scorer), best or worst of them as asked.
CREATE OR REPLACE TEMP TABLE reference AS
SELECT source, query, CASE getvariable('reference') WHEN 'best' THEN max(score) ELSE min(score) END AS score
FROM (
    SELECT s.source, c.query, c.score
    FROM mined_sources s JOIN candidates c ON c.run = coalesce((SELECT run FROM scorer), s.run)
    JOIN positives USING (query, document)
) GROUP BY source, query;

CREATE OR REPLACE TEMP TABLE rescored AS
SELECT query, document, score FROM candidates WHERE run = (SELECT run FROM scorer);

-- The denoising labeling, as far as it is usable and was given for the text that the store now holds.
CREATE OR REPLACE TEMP TABLE teacher AS
SELECT p.query, i.document, i.rank, i.grade
FROM permutations p JOIN denoiser USING (labeling) JOIN permutation_items i USING (permutation)
JOIN documents d ON d.document = i.document
WHERE p.status IN ('ok', 'repaired') AND p.repairs <= getvariable('max_repairs')
  AND (i.text_hash = d.text_hash OR i.text_hash IS NULL AND d.version <= 1);

-- Or verdicts: a flagged negative has grade 1, another one 0, and the positive stands at 0.
INSERT INTO teacher
SELECT v.query, v.document, NULL, v.flagged::USMALLINT
FROM final_verdicts v JOIN denoiser USING (checking) JOIN documents d USING (document)
WHERE v.flagged IS NOT NULL AND v.text_hash = d.text_hash;

CREATE OR REPLACE TEMP TABLE teacher_reference AS
SELECT query, CASE getvariable('reference') WHEN 'best' THEN max(grade) ELSE min(grade) END AS grade
FROM teacher JOIN positives USING (query, document) GROUP BY query;
INSERT INTO teacher_reference SELECT DISTINCT query, 0 FROM teacher WHERE (SELECT checking FROM denoiser) IS NOT NULL
AND query NOT IN (SELECT query FROM teacher_reference);

CREATE OR REPLACE TEMP TABLE flagged AS
SELECT query, document FROM teacher t JOIN teacher_reference r USING (query)
ANTI JOIN positives p USING (query, document) WHERE t.grade > r.grade;

CREATE OR REPLACE TEMP TABLE overflagged AS
SELECT query FROM flagged GROUP BY query HAVING count(*) > getvariable('max_flags');

CREATE OR REPLACE TEMP TABLE run_sizes AS
SELECT s.source, query, count(*) AS n_all,
       count(*) FILTER (c.rank BETWEEN getvariable('min_rank') AND getvariable('depth')) AS n
FROM candidates c JOIN mined_sources s USING (run)
WHERE query IN (SELECT query FROM positives) AND query IN (SELECT query FROM asked) GROUP BY s.source, query;

CREATE OR REPLACE TEMP VIEW offered AS
SELECT s.source, s.run, c.query, c.document, c.rank, c.score, t.rank AS teacher_rank,
       coalesce(t.grade > tr.grade, false) AS above, w.document IS NOT NULL AS positive,
       CASE WHEN getvariable('strategy') = 'uniform' THEN draw(a.salt, s.source, c.rank)::DOUBLE
            ELSE coalesce(-x.score, c.rank) END AS place,
       CASE WHEN w.document IS NOT NULL AND NOT getvariable('include_positives') THEN 'is a positive'
            WHEN of.query IS NOT NULL THEN 'its query has more flags than --max-flags'
            WHEN d.text_hash IS NULL THEN 'passage not held'
            WHEN w.document IS NULL AND o.document IS NOT NULL THEN o.reason
            WHEN w.document IS NULL AND pt.text_hash IS NOT NULL THEN 'same text as a positive'
            WHEN w.document IS NOT NULL THEN NULL
            WHEN (SELECT count(*) FROM scorer) > 0 AND x.score IS NULL AND getvariable('needs_score')
            THEN 'no score to compare'
            WHEN coalesce(x.score, c.score) > getvariable('max_score') THEN 'score above the maximum'
            WHEN coalesce(x.score, c.score) < getvariable('min_score') THEN 'score below the minimum'
            WHEN (getvariable('absolute_margin') IS NOT NULL OR getvariable('relative_margin') IS NOT NULL)
                 AND r.score IS NULL THEN 'no positive is ranked: no margin'
            WHEN coalesce(x.score, c.score) > r.score - getvariable('absolute_margin') THEN 'within the absolute margin'
            WHEN coalesce(x.score, c.score) > r.score - abs(r.score) * getvariable('relative_margin')
            THEN 'within the relative margin'
            WHEN (SELECT checking FROM denoiser) IS NOT NULL AND t.document IS NULL THEN 'no verdict on it'
            WHEN getvariable('denoise') = 'drop' AND t.grade > tr.grade THEN getvariable('flag_reason') END AS reason
FROM mined_sources s JOIN candidates c USING (run)
JOIN asked a ON a.query = c.query
JOIN (SELECT DISTINCT query FROM positives) having_positive ON having_positive.query = c.query
JOIN documents d ON d.document = c.document
LEFT JOIN positives w ON w.query = c.query AND w.document = c.document
LEFT JOIN (SELECT DISTINCT query, text_hash FROM positives WHERE text_hash IS NOT NULL) pt
       ON pt.query = c.query AND pt.text_hash = d.text_hash
LEFT JOIN overflagged of ON of.query = c.query
LEFT JOIN own_passages o ON o.query = c.query AND o.document = c.document
LEFT JOIN rescored x ON x.query = c.query AND x.document = c.document
LEFT JOIN reference r ON r.source = s.source AND r.query = c.query
LEFT JOIN teacher t ON t.query = c.query AND t.document = c.document
LEFT JOIN teacher_reference tr ON tr.query = c.query
WHERE c.rank BETWEEN getvariable('min_rank') AND getvariable('depth');

CREATE OR REPLACE TEMP TABLE mining_draws AS
SELECT source, run, query, document, rank, score, teacher_rank, above, positive FROM offered WHERE false;

CREATE OR REPLACE TEMP TABLE tally AS
SELECT 'queries' AS step, NULL::VARCHAR AS reason, count(*) AS n, NULL::VARCHAR AS example FROM asked
UNION ALL SELECT 'candidates', NULL, coalesce(sum(n_all), 0), NULL FROM run_sizes
UNION ALL SELECT 'candidates', 'outside the ranks', coalesce(sum(n_all - n), 0), NULL FROM run_sizes;
