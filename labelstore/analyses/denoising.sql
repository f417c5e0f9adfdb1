-- how many of a run's negatives a teacher ranks above a judged positive, and what the judgments say about those
--
-- msft sql @denoising --param dataset=dl19 --param run=bm25 [--param labels=NAME] [--param depth=100]
--                     [--param relevant=2] [--param positives=one|all]
-- positives=one (the default) looks as training data does: one judged positive per query (its highest grade, best
-- ranked in the run), everything else that the run found is a negative; the other judgments tell which of those
-- negatives are false. positives=all compares with the best of all relevant passages, and negatives are the rest:
-- none of them is relevant then, so the rates are NULL and above_judged tells how many are known not to be.
-- base_rate is the share of relevant passages among negatives that the teacher ranks below the positive.
WITH setting AS (
    SELECT coalesce(getvariable('run'), 'bm25') AS run_name, getvariable('labels') AS labels,
           coalesce(getvariable('depth'), 100) AS depth, coalesce(getvariable('relevant'), 2) AS relevant,
           coalesce(getvariable('positives'), 'one') AS positives, d.dataset, d.name AS dataset_name
    FROM datasets d WHERE d.name = coalesce(getvariable('dataset'), 'dl19')
), ranked_passages AS (
    SELECT c.query, c.document, c.rank FROM candidates c JOIN runs r USING (run) JOIN setting s ON r.dataset = s.dataset
    WHERE r.name = s.run_name AND c.rank <= s.depth
), judged AS (
    SELECT j.query, j.document, j.relevance FROM qrels j JOIN setting USING (dataset)
), positives AS (
    SELECT j.query, j.document
    FROM judged j CROSS JOIN setting s LEFT JOIN ranked_passages p USING (query, document)
    WHERE j.relevance >= s.relevant
    QUALIFY s.positives = 'all'
         OR row_number() OVER (PARTITION BY j.query ORDER BY p.rank IS NULL, j.relevance DESC, p.rank, j.document) = 1
), labelled AS (
    SELECT l.name AS labels, p.query, i.document, i.grade
    FROM labelings l JOIN setting s USING (dataset) JOIN permutations p USING (labeling)
    JOIN permutation_items i USING (permutation)
    WHERE (s.labels IS NULL OR l.name = s.labels) AND p.status IN ('ok', 'repaired')
), positive_grades AS (
    SELECT labels, query, max(grade) AS grade FROM labelled JOIN positives USING (query, document) GROUP BY labels, query
), negatives AS (
    SELECT l.labels, l.query, l.document, l.grade > g.grade AS above, j.relevance
    FROM labelled l JOIN positive_grades g USING (labels, query) JOIN ranked_passages r USING (query, document)
    LEFT JOIN judged j USING (query, document)
    WHERE (l.query, l.document) NOT IN (SELECT (query, document) FROM positives)
)
SELECT negatives.labels, count(DISTINCT query) AS queries, count(*) AS negatives,
       count(*) FILTER (above) AS above_positive,
       count(*) FILTER (above AND relevance IS NOT NULL) AS above_judged,
       count(*) FILTER (above AND relevance >= relevant) AS above_relevant,
       round(count(*) FILTER (above AND relevance >= relevant)
             / nullif(count(*) FILTER (positives = 'one' AND above AND relevance IS NOT NULL), 0), 4) AS relevant_rate,
       round(count(*) FILTER (NOT above AND relevance >= relevant)
             / nullif(count(*) FILTER (positives = 'one' AND NOT above AND relevance IS NOT NULL), 0), 4) AS base_rate
FROM negatives CROSS JOIN setting GROUP BY negatives.labels ORDER BY relevant_rate DESC NULLS LAST, 1;
