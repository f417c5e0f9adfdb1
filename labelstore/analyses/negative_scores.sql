-- each mining's scores: positives, negatives and their difference, with the mean, spread and quartiles
--
-- msft sql @negative_scores [--param negatives=NAME]
-- The scores are those of the run that a negative was taken from; a positive's is its own in the same run, the best of
-- several. Random passages have no scores. difference is positive - negative, over negatives of queries whose positive the run ranks.
WITH chosen AS (
    SELECT * FROM minings WHERE name = coalesce(getvariable('negatives'), name)
), positives AS (
    SELECT c.mining, c.dataset, r.run, q.query, max(k.score) AS score
    FROM chosen c JOIN (SELECT DISTINCT mining, source_run AS run FROM negatives WHERE source_run IS NOT NULL) r USING (mining)
    JOIN qrels q ON q.dataset = c.dataset AND q.relevance >= coalesce((c.parameters->>'min_relevance')::INTEGER, 1)
    JOIN candidates k ON k.run = r.run AND k.query = q.query AND k.document = q.document
    GROUP BY ALL
), mined AS (
    SELECT n.mining, n.query, n.source_run AS run, n.source_score AS score
    FROM negatives n JOIN chosen USING (mining) WHERE n.label = 0 AND n.source_run IS NOT NULL
), values_ AS (
    SELECT mining, 'positive' AS of, score FROM positives
    UNION ALL SELECT mining, 'negative', score FROM mined
    UNION ALL SELECT m.mining, 'difference', p.score - m.score FROM mined m JOIN positives p USING (mining, run, query)
)
SELECT c.name AS negatives, of AS scores, count(*) AS n, round(avg(score), 4) AS mean, round(stddev(score), 4) AS std,
       round(min(score), 4) AS min, round(quantile_cont(score, .25), 4) AS q25, round(median(score), 4) AS median,
       round(quantile_cont(score, .75), 4) AS q75, round(max(score), 4) AS max
FROM values_ JOIN chosen c USING (mining) GROUP BY c.name, of ORDER BY c.name, of DESC;
