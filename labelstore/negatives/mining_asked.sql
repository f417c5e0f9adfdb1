-- The queries of a mining. In and out as mining.sql says.

CREATE OR REPLACE TEMP TABLE asked AS
SELECT q.query, q.query_id, salt_of(getvariable('seed'), concat(c.name, ':', q.query_id)) AS salt
FROM mined_dataset JOIN dataset_queries USING (dataset) JOIN queries q USING (query)
JOIN collections c ON c.collection = q.collection;
