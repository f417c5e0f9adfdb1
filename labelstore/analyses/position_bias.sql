-- where a teacher puts the passages that it was shown at each position: its pull towards the order it is given
--
-- msft sql @position_bias [--param labels=NAME] [--param bucket=5]
-- Over the calls' windows where the store has them, else over the lists and their prior order. mean_place is the place
-- from 0 (first) to 1 (last) that passages shown at these positions got; share_first how often one of them came first.
-- A teacher without bias over shuffled windows has mean_place .5 throughout; over a good first stage it rises.
WITH setting AS (
    SELECT getvariable('labels') AS labels, coalesce(getvariable('bucket'), 5) AS bucket
), windows AS (
    SELECT l.name AS labeling, 'calls' AS unit, c.call AS list, len(c.parsed) AS n,
           unnest(range(1, len(c.parsed) + 1)) AS place, unnest(c.parsed) AS position
    FROM labeling_calls lc JOIN labelings l USING (labeling) JOIN calls c USING (call)
    WHERE c.parsed IS NOT NULL AND len(c.parsed) > 1
), lists AS (
    SELECT l.name AS labeling, 'lists' AS unit, p.permutation AS list, max(i.rank) OVER (PARTITION BY p.permutation) AS n,
           i.rank AS place, i.initial_rank AS position
    FROM permutations p JOIN labelings l USING (labeling) JOIN permutation_items i USING (permutation)
    WHERE i.initial_rank IS NOT NULL AND l.name NOT IN (SELECT labeling FROM windows)
), places AS (
    SELECT w.* FROM (FROM windows UNION ALL FROM lists) w, setting s WHERE s.labels IS NULL OR w.labeling = s.labels
)
SELECT labeling, unit, (position - 1) // bucket * bucket + 1 AS from_position, from_position + bucket - 1 AS to_position,
       count(*) AS passages, avg((place - 1) / (n - 1)) AS mean_place, avg((place = 1)::INTEGER) AS share_first
FROM places, setting WHERE n > 1 GROUP BY ALL ORDER BY labeling, from_position
