-- distillation: the permutations of one or more labelings, with the teacher's scores where it gives any.
--
-- In   chosen_datasets(dataset), chosen_labelings(labeling), protected(normal_hash) and the variables
--      statuses (list), max_repairs, depth, judged_first, stratified, seed.
-- Out  lists, pairs, tally as finish.sql takes them.
-- Left out with counts: permutations whose status or number of repairs is not taken, passages whose text the store
-- does not hold, passages whose text is no longer the one that the teacher judged.

CREATE OR REPLACE TEMP TABLE judged AS
SELECT dataset, query, document, relevance FROM qrels JOIN chosen_datasets USING (dataset);

CREATE OR REPLACE TEMP TABLE offered AS
SELECT row_number() OVER (ORDER BY p.query, p.content_hash, p.permutation)::INTEGER AS list, p.permutation, p.query,
       q.query_id, l.dataset, p.content_hash AS variant,
       CASE WHEN q.normal_hash IN (SELECT normal_hash FROM protected) THEN 'stands in a test set'
            WHEN f.query IS NOT NULL THEN 'taken out by a filter of generated queries'
            WHEN NOT list_contains(getvariable('statuses'), p.status) THEN 'status ' || p.status
            WHEN p.repairs > getvariable('max_repairs') THEN 'too many repairs'
            WHEN row_number() OVER (PARTITION BY p.query, p.content_hash ORDER BY p.permutation) > 1
            THEN 'same permutation twice' END AS reason
FROM permutations p JOIN chosen_labelings USING (labeling) JOIN labelings l USING (labeling)
JOIN queries q ON q.query = p.query
LEFT JOIN filtered_out f ON f.dataset = l.dataset AND f.query = p.query
WHERE l.dataset IN (SELECT dataset FROM chosen_datasets);

CREATE OR REPLACE TEMP TABLE items AS
SELECT o.list, o.query, i.document, i.rank, i.grade, i.score, coalesce(j.relevance, -1) AS relevance,
       CASE WHEN i.rank > getvariable('depth') THEN 'below the depth'
            WHEN d.text_hash IS NULL THEN 'passage not held'
            WHEN i.text_hash IS NULL AND d.version > 1 THEN 'text has changed'
            WHEN i.text_hash IS NOT NULL AND i.text_hash <> d.text_hash THEN 'text has changed' END AS reason
FROM permutation_items i JOIN offered o USING (permutation) JOIN documents d USING (document)
LEFT JOIN judged j ON j.dataset = o.dataset AND j.query = o.query AND j.document = i.document
WHERE o.reason IS NULL;

-- Where asked, passages that are judged relevant lead their list: above all grades, by what the assessor gave.
ALTER TABLE items ADD COLUMN led BOOLEAN DEFAULT false;
UPDATE items SET led = true, grade = t.top + items.relevance
FROM (SELECT list, max(grade) AS top FROM items WHERE reason IS NULL GROUP BY list) t
WHERE getvariable('judged_first') AND items.list = t.list AND items.reason IS NULL AND items.relevance > 0;

-- The scores of a list whose order has changed no longer say it.
UPDATE items SET score = NULL WHERE list IN (
    SELECT list FROM items WHERE reason IS NULL GROUP BY list HAVING min(rank) FILTER (NOT led) < max(rank) FILTER (led)
);

-- Where asked, one passage from each of equal bands of the teacher's order: its head alone shows near candidates only.
UPDATE items SET reason = 'not drawn' FROM (
    SELECT list, document FROM (
        SELECT i.list, i.document, r.place, i.rank, i.led, salt_of(getvariable('seed'), concat(c.name, ':', q.query_id, ':', o.variant)) AS salt,
               (r.place - 1) * getvariable('stratified') // r.n AS band, r.n
        FROM items i JOIN (
            SELECT list, document, row_number() OVER (PARTITION BY list ORDER BY led DESC, CASE WHEN led THEN -relevance END, rank) AS place,
                   count(*) OVER (PARTITION BY list) AS n
            FROM items WHERE reason IS NULL AND getvariable('stratified') IS NOT NULL
        ) r USING (list, document)
        JOIN offered o USING (list) JOIN queries q ON q.query = i.query JOIN collections c USING (collection)
    ) WHERE n > getvariable('stratified')
    QUALIFY row_number() OVER (PARTITION BY list, band ORDER BY led DESC, draw(salt, 1, place)) > 1
) d WHERE items.list = d.list AND items.document = d.document;

CREATE OR REPLACE TEMP TABLE lists AS
SELECT list, query, variant FROM offered
WHERE reason IS NULL AND list IN (SELECT list FROM items WHERE reason IS NULL);

CREATE OR REPLACE TEMP TABLE pairs AS
SELECT list, document,
       row_number() OVER (PARTITION BY list ORDER BY led DESC, CASE WHEN led THEN -relevance END, rank)::INTEGER AS place, grade::SMALLINT AS label, rank::SMALLINT AS rank, score::FLOAT AS score,
       1::FLOAT AS weight, relevance::SMALLINT AS relevance
FROM items WHERE reason IS NULL;

CREATE OR REPLACE TEMP TABLE tally AS
SELECT 'lists' AS step, NULL::VARCHAR AS reason, count(*) AS n, NULL::VARCHAR AS example FROM offered
UNION ALL SELECT 'lists', reason, count(*), min(query_id) FROM offered WHERE reason IS NOT NULL GROUP BY reason
UNION ALL SELECT 'lists', 'no passage held with the judged text', count(*), min(query_id) FROM offered
          WHERE reason IS NULL AND list NOT IN (SELECT list FROM lists)
UNION ALL SELECT 'passages', NULL, count(*), NULL FROM items
UNION ALL SELECT 'passages', reason, count(*), min(query_id || ' ' || doc_id)
          FROM items JOIN queries USING (query) JOIN documents d USING (document)
          WHERE reason IS NOT NULL GROUP BY reason;

-- How many lists hold a passage that leads them.
INSERT INTO tally
SELECT 'judged first', NULL, count(*), NULL FROM lists HAVING getvariable('judged_first')
UNION ALL
SELECT 'judged first', 'no passage of the list is judged relevant', count(*), min(query_id) FROM lists JOIN queries USING (query)
WHERE getvariable('judged_first') AND list NOT IN (SELECT list FROM items WHERE led AND reason IS NULL)
HAVING count(*) > 0;
