-- every labeling: nDCG@10, agreement with a reference teacher, position bias, repairs, tokens and cost
--
-- msft sql @label_quality [--param dataset=dl19] [--param reference=rankzephyr]
-- reference is a labeling's name or the beginning of a teacher's name; of several labelings that fit, the one that
-- shares the most passages with a dataset's others is taken. tau is Kendall's tau-b over the passages that both ranked
-- (ties count), the mean over queries; shared_passages and shared_queries say on how much it stands. position_bias and
-- untouched are NULL where the first stage's order is not known. nDCG@10 is trec_eval's (linear gain, unjudged 0,
-- a judged query without a list 0).
WITH chosen AS (
    SELECT l.labeling, l.name, l.dataset, t.name AS teacher
    FROM labelings l JOIN teachers t USING (teacher) JOIN datasets d ON d.dataset = l.dataset
    WHERE d.name = coalesce(getvariable('dataset'), d.name)
), items AS (
    SELECT c.labeling, c.dataset, p.query, i.document, i.rank, i.grade
    FROM chosen c JOIN permutations p USING (labeling) JOIN permutation_items i USING (permutation)
    WHERE p.status IN ('ok', 'repaired')
), fitting AS (
    SELECT * FROM chosen WHERE name = coalesce(getvariable('reference'), 'rankzephyr')
        OR starts_with(lower(teacher), lower(coalesce(getvariable('reference'), 'rankzephyr')))
), reference AS (
    SELECT f.dataset, f.labeling, f.name
    FROM fitting f LEFT JOIN items i ON i.labeling = f.labeling LEFT JOIN items o
      ON o.dataset = i.dataset AND o.query = i.query AND o.document = i.document AND o.labeling <> i.labeling
    GROUP BY f.dataset, f.labeling, f.name
    QUALIFY row_number() OVER (PARTITION BY f.dataset ORDER BY count(o.document) DESC, f.labeling) = 1
), shared AS (
    SELECT i.labeling, i.query, i.document, i.grade, r.grade AS reference_grade
    FROM items i JOIN reference f ON f.dataset = i.dataset
    JOIN items r ON r.labeling = f.labeling AND r.query = i.query AND r.document = i.document
), pairs AS (
    SELECT a.labeling, a.query, count(*) AS n,
           sum(sign(a.grade::INTEGER - b.grade) * sign(a.reference_grade::INTEGER - b.reference_grade)) AS concordance,
           count(*) FILTER (WHERE a.grade <> b.grade) AS untied,
           count(*) FILTER (WHERE a.reference_grade <> b.reference_grade) AS untied_reference
    FROM shared a JOIN shared b ON a.labeling = b.labeling AND a.query = b.query AND a.document < b.document
    GROUP BY ALL
), agreement AS (
    SELECT s.labeling, s.shared_passages, p.shared_queries, p.tau
    FROM (SELECT labeling, count(*) AS shared_passages FROM shared GROUP BY labeling) s
    LEFT JOIN (SELECT labeling, count(*) AS shared_queries,
                      avg(concordance / sqrt(untied::DOUBLE * untied_reference)) AS tau
               FROM pairs WHERE untied > 0 AND untied_reference > 0 GROUP BY labeling) p USING (labeling)
), ideal AS (
    SELECT dataset, query, sum(greatest(relevance, 0) / log2(place + 1)) AS gain
    FROM (SELECT dataset, query, relevance,
                 row_number() OVER (PARTITION BY dataset, query ORDER BY relevance DESC) AS place FROM qrels)
    WHERE place <= 10 GROUP BY ALL
), gains AS (
    SELECT i.labeling, i.query, sum(greatest(q.relevance, 0) / log2(i.rank + 1)) AS gain
    FROM items i JOIN qrels q ON q.dataset = i.dataset AND q.query = i.query AND q.document = i.document
    WHERE i.rank <= 10 GROUP BY ALL
), ndcg AS (
    SELECT c.labeling, avg(CASE WHEN o.gain > 0 THEN coalesce(g.gain, 0) / o.gain ELSE 0 END) AS ndcg
    FROM chosen c JOIN ideal o USING (dataset) LEFT JOIN gains g ON g.labeling = c.labeling AND g.query = o.query
    GROUP BY c.labeling
)
SELECT q.dataset, q.labeling, q.teacher, q.first_stage, n.ndcg AS "nDCG@10", f.name AS reference, a.tau,
       coalesce(a.shared_passages, 0) AS shared_passages, coalesce(a.shared_queries, 0) AS shared_queries,
       q.position_bias, q.untouched, q.lists, q.ok, q.repaired, q.quarantined, q.repairs, q.depth, q.reliable_depth,
       q.calls, q.tokens_in, q.tokens_out, q.cost, q.currency
FROM chosen c JOIN labeling_quality q ON q.labeling = c.name
LEFT JOIN ndcg n ON n.labeling = c.labeling LEFT JOIN reference f ON f.dataset = c.dataset
LEFT JOIN agreement a ON a.labeling = c.labeling
ORDER BY q.dataset, n.ndcg DESC NULLS LAST, q.labeling
