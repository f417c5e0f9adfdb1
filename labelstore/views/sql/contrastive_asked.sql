-- The queries of a contrastive view. In and out as contrastive.sql says.

CREATE OR REPLACE TEMP TABLE asked AS
SELECT DISTINCT q.query, q.query_id, c.name AS collection, salt_of(getvariable('seed'), concat(c.name, ':', q.query_id)) AS salt,
       q.normal_hash IN (SELECT normal_hash FROM protected) AS leaks
FROM chosen_datasets JOIN dataset_queries dq USING (dataset) JOIN queries q USING (query)
JOIN collections c ON c.collection = q.collection;
