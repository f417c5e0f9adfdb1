-- Queries and lists numbered 0..n-1 by text ids, with the validation split.
-- In   lists(list, query, variant) and the variables kind, valid_fraction.
-- Out  numbered_queries(query, number), numbered_lists(list, number, query_number, valid).

-- The validation split follows the normalised query text alone: the same query is on the same side in every view.
CREATE OR REPLACE TEMP TABLE numbered_queries AS
SELECT query, (row_number() OVER (ORDER BY c.name, q.query_id) - 1)::INTEGER AS number, q.normal_hash,
       q.normal_hash < getvariable('valid_fraction') * 18446744073709551615.0 AS valid
FROM (SELECT DISTINCT query FROM lists) JOIN queries q USING (query) JOIN collections c USING (collection);

UPDATE numbered_queries SET valid = true
WHERE getvariable('valid_fraction') > 0 AND (SELECT count(*) FROM lists) >= 20
  AND NOT (SELECT bool_or(valid) FROM numbered_queries)
  AND normal_hash = (SELECT min(normal_hash) FROM numbered_queries);

CREATE OR REPLACE TEMP TABLE numbered_lists AS
SELECT l.list, (row_number() OVER (ORDER BY q.number, l.variant, l.list) - 1)::INTEGER AS number,
       q.number AS query_number, q.valid AND getvariable('kind') <> 'rerank' AS valid
FROM lists l JOIN numbered_queries q USING (query);
