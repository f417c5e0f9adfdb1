-- One source's share: the first `quota` of its candidates per query that no source before it took.
-- In   the variables source, quota, final (the last pass fills up from what all sources have left).

CREATE OR REPLACE TEMP TABLE bounds AS
SELECT query, CASE WHEN getvariable('strategy') = 'uniform' AND NOT getvariable('final')
                   THEN draw_bound(getvariable('quota'), n)::DOUBLE ELSE 'infinity'::DOUBLE END AS bound,
       least(n, getvariable('quota')) AS wanted
FROM run_sizes WHERE source = getvariable('source') AND n > 0;

CREATE OR REPLACE TEMP TABLE draws AS
SELECT o.* FROM offered o JOIN bounds b USING (query)
WHERE o.source = getvariable('source') AND (o.place < b.bound OR o.reason IS NOT NULL OR o.positive);

-- Queries that the bound left short are filled up from the rest of their candidates.
INSERT INTO draws
SELECT o.* FROM offered o JOIN bounds b USING (query)
WHERE o.source = getvariable('source') AND o.reason IS NULL AND NOT o.positive AND o.place >= b.bound
  AND query IN (SELECT b.query FROM bounds b LEFT JOIN (
                    SELECT query, count(*) AS n FROM draws d WHERE reason IS NULL
                    AND NOT EXISTS (FROM mining_draws m WHERE m.query = d.query AND m.document = d.document) GROUP BY query
                ) k USING (query) WHERE coalesce(k.n, 0) < b.wanted AND b.bound < 4294967296);

INSERT INTO tally
SELECT 'candidates', reason, count(*), min(query_id || ' ' || doc_id)
FROM draws JOIN queries USING (query) JOIN documents d USING (document)
WHERE reason IS NOT NULL AND NOT getvariable('final') GROUP BY reason;

CREATE OR REPLACE TEMP TABLE ordered AS
SELECT source, run, query, document, rank, score, teacher_rank, above, positive FROM draws d
WHERE reason IS NULL AND NOT EXISTS (FROM mining_draws m WHERE m.query = d.query AND m.document = d.document)
ORDER BY query, positive DESC, place, rank;

INSERT INTO mining_draws
SELECT o.* EXCLUDE (row) FROM (SELECT *, rowid AS row FROM ordered) o
JOIN (SELECT query, min(rowid) AS start, count(*) FILTER (positive) AS n_positive FROM ordered GROUP BY query) s USING (query)
LEFT JOIN (SELECT query, count(*) FILTER (NOT positive) AS n FROM mining_draws GROUP BY query) taken USING (query)
WHERE o.positive OR o.row - s.start - s.n_positive
      < least(getvariable('quota'), getvariable('per_query') - coalesce(taken.n, 0));
