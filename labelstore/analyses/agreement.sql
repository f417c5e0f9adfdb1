-- every two labelings of a dataset: Kendall tau and rank-biased overlap over the passages that both ranked
--
-- msft sql @agreement [--param dataset=dl19] [--param labels=NAME] [--param p=0.9]
-- tau is tau-b over grades (ties count), rbo the extrapolated rank-biased overlap of the two orders of the shared
-- passages; both are means over queries that share at least two passages.
WITH setting AS (
    SELECT getvariable('dataset') AS dataset, getvariable('labels') AS labels, coalesce(getvariable('p'), 0.9) AS p
), chosen AS (
    SELECT l.labeling, l.name, l.dataset FROM labelings l JOIN datasets d USING (dataset), setting s
    WHERE s.dataset IS NULL OR d.name = s.dataset
), couples AS (
    SELECT a.labeling AS one, b.labeling AS other FROM chosen a JOIN chosen b USING (dataset), setting s
    WHERE a.labeling < b.labeling AND (s.labels IS NULL OR s.labels IN (a.name, b.name))
), items AS (
    SELECT p.labeling, p.query, i.document, i.rank, i.grade
    FROM permutations p JOIN chosen USING (labeling) JOIN permutation_items i USING (permutation)
    WHERE p.status IN ('ok', 'repaired')
), shared AS (
    SELECT c.one, c.other, a.query, a.document, a.grade::INTEGER AS grade_a, b.grade::INTEGER AS grade_b,
           row_number() OVER (PARTITION BY c.one, c.other, a.query ORDER BY a.rank) AS rank_a,
           row_number() OVER (PARTITION BY c.one, c.other, a.query ORDER BY b.rank) AS rank_b
    FROM couples c JOIN items a ON a.labeling = c.one
    JOIN items b ON b.labeling = c.other AND b.query = a.query AND b.document = a.document
), pairs AS (
    SELECT x.one, x.other, x.query, sum(sign(x.grade_a - y.grade_a) * sign(x.grade_b - y.grade_b)) AS concordance,
           count(*) FILTER (WHERE x.grade_a <> y.grade_a) AS untied_a,
           count(*) FILTER (WHERE x.grade_b <> y.grade_b) AS untied_b
    FROM shared x JOIN shared y ON x.one = y.one AND x.other = y.other AND x.query = y.query AND x.document < y.document
    GROUP BY ALL
), depths AS (
    SELECT s.one, s.other, s.query, s.rank_a AS depth, count(*) OVER (PARTITION BY s.one, s.other, s.query) AS length,
           sum(coalesce(m.n, 0)) OVER (PARTITION BY s.one, s.other, s.query ORDER BY s.rank_a) AS overlap
    FROM shared s
    LEFT JOIN (SELECT one, other, query, greatest(rank_a, rank_b) AS depth, count(*) AS n FROM shared GROUP BY ALL) m
           ON m.one = s.one AND m.other = s.other AND m.query = s.query AND m.depth = s.rank_a
), overlapping AS (
    SELECT one, other, query, any_value(length) AS length,
           pow(any_value(p), any_value(length)) + (1 - any_value(p)) / any_value(p) * sum(overlap / depth * pow(p, depth)) AS rbo
    FROM depths, setting GROUP BY ALL
)
SELECT d.name AS dataset, a.name AS labeling, b.name AS other, sum(o.length)::BIGINT AS shared_passages,
       count(p.query) AS shared_queries, avg(p.concordance / sqrt(p.untied_a::DOUBLE * p.untied_b)) AS tau,
       avg(o.rbo) FILTER (WHERE o.length > 1) AS rbo
FROM overlapping o LEFT JOIN pairs p ON p.one = o.one AND p.other = o.other AND p.query = o.query AND p.untied_a > 0 AND p.untied_b > 0
JOIN labelings a ON a.labeling = o.one JOIN labelings b ON b.labeling = o.other JOIN datasets d ON d.dataset = a.dataset
GROUP BY ALL ORDER BY dataset, labeling, tau DESC NULLS LAST, other
