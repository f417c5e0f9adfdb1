-- Queries that came out with too few negatives, and the counts.
-- In   the variable at_least. Out  mining_rows, tally.

CREATE OR REPLACE TEMP TABLE enough AS
SELECT query FROM mining_draws WHERE NOT positive GROUP BY query HAVING count(*) >= getvariable('at_least');

CREATE OR REPLACE TEMP TABLE mining_rows AS
SELECT m.query, m.document, m.run AS source_run, m.rank AS source_rank, m.score AS source_score, m.teacher_rank,
       CASE WHEN m.positive OR (m.above AND getvariable('denoise') = 'relabel') THEN 1 ELSE 0 END::UTINYINT AS label,
       CASE WHEN m.above AND NOT m.positive AND getvariable('denoise') = 'downweight'
            THEN getvariable('denoise_weight') ELSE 1 END::FLOAT AS weight
FROM mining_draws m WHERE query IN (SELECT query FROM enough) ORDER BY m.query, m.run, m.rank;

INSERT INTO tally
SELECT 'candidates', 'its query has too few', count(*), NULL FROM mining_draws WHERE query NOT IN (SELECT query FROM enough);
INSERT INTO tally
SELECT 'candidates', 'not drawn',
       (SELECT sum(CASE WHEN reason IS NULL THEN n ELSE -n END) FROM tally WHERE step = 'candidates')
       - (SELECT count(*) FROM mining_rows), NULL;

INSERT INTO tally
SELECT 'queries', reason, count(*), min(query_id) FROM (
    SELECT query_id, CASE WHEN query NOT IN (SELECT query FROM positives) THEN 'no positive'
                          WHEN query NOT IN (SELECT query FROM run_sizes) THEN 'not in the run'
                          WHEN query IN (SELECT query FROM overflagged) THEN 'more flags than --max-flags'
                          WHEN query NOT IN (SELECT query FROM enough) THEN 'too few negatives' END AS reason
    FROM asked
) WHERE reason IS NOT NULL GROUP BY reason;

-- What denoising did, of the candidates that were drawn or that it dropped.
INSERT INTO tally
SELECT 'denoising', NULL, (SELECT count(*) FROM mining_rows m WHERE label = 0 OR m.document NOT IN (
           SELECT document FROM positives p WHERE p.query = m.query))
       + coalesce((SELECT sum(n) FROM tally WHERE reason = getvariable('flag_reason')), 0), NULL
WHERE (SELECT count(*) FROM denoiser) > 0;
INSERT INTO tally
SELECT 'denoising', reason, sum(n), min(example) FROM (
    SELECT 'dropped: ' || getvariable('flag_reason') AS reason, n, example
    FROM tally WHERE reason = getvariable('flag_reason')
    UNION ALL
    SELECT CASE getvariable('denoise') WHEN 'relabel' THEN 'relabelled as positive' ELSE 'down-weighted' END, count(*), NULL
    FROM mining_rows m WHERE getvariable('denoise') <> 'drop' AND (weight < 1 OR label = 1 AND m.document NOT IN (
        SELECT document FROM positives p WHERE p.query = m.query))
) WHERE (SELECT count(*) FROM denoiser) > 0 GROUP BY reason;
