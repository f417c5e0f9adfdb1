-- Draws of random passages, more than are wanted, since some meet what may not be drawn.
--
-- In   drawers(list, query, collection, salt) and the variables seed, random_wanted.
-- Out  random_draws(list, query, document, text_hash, try), no text twice in a list.
-- A draw is a place in the collection's passages by doc_id: the same in every store that holds the same collection.

CREATE OR REPLACE TEMP TABLE random_pool AS
SELECT collection, document, text_hash,
       (row_number() OVER (PARTITION BY collection ORDER BY doc_id) - 1)::UBIGINT AS place
FROM documents WHERE text_hash IS NOT NULL AND collection IN (SELECT collection FROM drawers);

CREATE OR REPLACE TEMP TABLE random_sizes AS SELECT collection, count(*)::UBIGINT AS n FROM random_pool GROUP BY collection;

-- A table of its own: the join is then by place. A small collection is shuffled whole, so that a lack is a real one.
CREATE OR REPLACE TEMP TABLE random_places AS
SELECT list, query, collection, try, (draw(salt, 1, try) * n) >> 32 AS place
FROM drawers JOIN random_sizes USING (collection)
JOIN (SELECT unnest(range(1, 8 * getvariable('random_wanted') + 33)) AS try) ON true WHERE n > 500
UNION ALL
SELECT list, query, collection, row_number() OVER (PARTITION BY list ORDER BY draw(salt, 1, place)) AS try, place
FROM drawers JOIN random_sizes USING (collection) JOIN random_pool USING (collection) WHERE n <= 500;

CREATE OR REPLACE TEMP TABLE random_draws AS
SELECT list, query, document, text_hash, try FROM random_places JOIN random_pool USING (collection, place)
QUALIFY row_number() OVER (PARTITION BY list, text_hash ORDER BY try) = 1;
