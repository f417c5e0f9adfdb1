-- Queries and lists numbered 0..n-1 by text ids, with the validation split.
-- In   lists(list, query, variant) and the variables kind, valid_fraction (NULL: usual_fraction, or more if that gives fewer
--      than enough_valid lists, at most most_valid of all).
-- Out  numbered_queries(query, number), numbered_lists(list, number, query_number, valid), the variable held_out: the share.

-- The validation split follows the normalised query text alone: the same share puts the same query on the same side in
-- every view, and a larger share holds out what a smaller one does.
SET VARIABLE held_out = coalesce(getvariable('valid_fraction'), (
    SELECT greatest(getvariable('usual_fraction'), coalesce((max(normal_hash)::DOUBLE + 4096) / 18446744073709551615.0, 0))
    FROM (SELECT normal_hash, sum(count(*)) OVER (ORDER BY normal_hash) - count(*) AS before
          FROM lists JOIN queries USING (query) GROUP BY normal_hash)
    WHERE before < (SELECT CASE WHEN count(*) < 20 THEN 0
                           ELSE least(getvariable('enough_valid'), ceil(count(*) * getvariable('most_valid'))) END FROM lists)
));

CREATE OR REPLACE TEMP TABLE numbered_queries AS
SELECT query, (row_number() OVER (ORDER BY c.name, q.query_id) - 1)::INTEGER AS number, q.normal_hash,
       q.normal_hash < getvariable('held_out') * 18446744073709551615.0 AS valid
FROM (SELECT DISTINCT query FROM lists) JOIN queries q USING (query) JOIN collections c USING (collection);

UPDATE numbered_queries SET valid = true
WHERE getvariable('held_out') > 0 AND (SELECT count(*) FROM lists) >= 20
  AND NOT (SELECT bool_or(valid) FROM numbered_queries)
  AND normal_hash = (SELECT min(normal_hash) FROM numbered_queries);

CREATE OR REPLACE TEMP TABLE numbered_lists AS
SELECT l.list, (row_number() OVER (ORDER BY q.number, l.variant, l.list) - 1)::INTEGER AS number,
       q.number AS query_number, q.valid AND getvariable('kind') <> 'rerank' AS valid
FROM lists l JOIN numbered_queries q USING (query);
