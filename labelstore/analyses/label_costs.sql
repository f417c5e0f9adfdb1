-- every labeling: queries, calls, tokens, cost and seconds per query, over all its lists or over judged queries alone
--
-- msft sql @label_costs [--param dataset=dl19] [--param labels=NAME] [--param judged=yes]
-- A call that several queries or parts of a combined labeling share counts once for each query. cost is priced call by call
-- with the prices of the teacher that was asked. cost and seconds are NULL if the store does not hold all the calls, cost also
-- if a teacher has no price. seconds sums calls that ran side by side.
WITH chosen AS (
    SELECT l.labeling, l.name, l.dataset, d.name AS dataset_name
    FROM labelings l JOIN datasets d USING (dataset)
    WHERE d.name = coalesce(getvariable('dataset'), d.name) AND l.name = coalesce(getvariable('labels'), l.name)
), lists AS (
    SELECT c.labeling, p.query, p.n_calls, p.tokens_in, p.tokens_out
    FROM chosen c JOIN permutations p USING (labeling)
    WHERE getvariable('judged') IS NULL OR p.query IN (SELECT query FROM qrels q WHERE q.dataset = c.dataset)
), held AS (
    SELECT u.labeling, count(*) AS calls, sum(c.seconds) AS seconds,
           count(*) FILTER (WHERE t.input_price IS NULL OR t.output_price IS NULL) AS unpriced,
           sum(c.tokens_in * t.input_price + c.tokens_out * t.output_price) / 1e6 AS cost
    FROM labeling_calls u SEMI JOIN lists l ON l.labeling = u.labeling AND l.query = u.query
    JOIN calls c USING (call) JOIN requests r USING (request) JOIN teachers t ON t.teacher = r.teacher
    GROUP BY u.labeling
), totals AS (
    SELECT labeling, count(*) AS queries, nullif(sum(n_calls), 0)::BIGINT AS calls,
           nullif(sum(tokens_in), 0)::BIGINT AS tokens_in, nullif(sum(tokens_out), 0)::BIGINT AS tokens_out
    FROM lists GROUP BY labeling
)
SELECT c.dataset_name AS dataset, c.name AS labeling, coalesce(t.queries, 0) AS queries, t.calls, t.tokens_in, t.tokens_out,
       CASE WHEN h.calls = t.calls AND h.unpriced = 0 THEN h.cost END AS cost,
       CASE WHEN h.calls = t.calls AND h.unpriced = 0 AND h.cost IS NOT NULL THEN 'USD' END AS currency,
       CASE WHEN h.calls = t.calls AND h.seconds > 0 THEN h.seconds / t.queries END AS seconds_per_query
FROM chosen c LEFT JOIN totals t USING (labeling) LEFT JOIN held h USING (labeling)
ORDER BY dataset, labeling;
