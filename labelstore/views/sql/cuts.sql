-- What all kinds leave out at the end: equal texts in one list, lists that are too short, lists beyond max_lists.
-- In   lists(list, query, variant), pairs, numbered_passages, tally and the variables seed, kind, min_passages, max_lists.
-- Out  repeated(list, document), cut_lists(list, query, reason), tally; cuts_apply.sql deletes them.

-- Two doc_ids with one text in one list are one passage: the better placed one stays. Not when re-ranking.
CREATE OR REPLACE TEMP TABLE twins AS
SELECT document, text_hash FROM numbered_passages
WHERE getvariable('kind') <> 'rerank' AND text_hash IN (SELECT text_hash FROM numbered_passages WHERE twin);

CREATE OR REPLACE TEMP TABLE repeated AS
SELECT list, document, label FROM pairs JOIN twins USING (document) JOIN documents d USING (document)
QUALIFY row_number() OVER (PARTITION BY list, twins.text_hash ORDER BY place, d.doc_id) > 1;

INSERT INTO tally SELECT 'passages', 'same text as another', count(*), min(doc_id) FROM repeated JOIN documents d USING (document);

-- Lists that are too short, then those beyond max_lists in an order that the seed draws.
CREATE OR REPLACE TEMP TABLE short_lists AS
SELECT l.list, l.query, n FROM lists l JOIN (SELECT list, count(*) AS n FROM pairs GROUP BY list) USING (list)
LEFT JOIN (SELECT list, count(*) AS n_repeated FROM repeated GROUP BY list) USING (list)
WHERE n - coalesce(n_repeated, 0) < getvariable('min_passages');

CREATE OR REPLACE TEMP TABLE surplus_lists AS
SELECT l.list, l.query FROM lists l JOIN queries q USING (query) JOIN collections c USING (collection)
WHERE getvariable('max_lists') IS NOT NULL AND l.list NOT IN (SELECT list FROM short_lists)
QUALIFY row_number() OVER (ORDER BY salt_of(getvariable('seed'), concat(c.name, ':', q.query_id)), c.name, q.query_id, l.variant, l.list)
        > getvariable('max_lists');

CREATE OR REPLACE TEMP TABLE cut_lists AS
SELECT list, query, 'too few passages' AS reason FROM short_lists
UNION ALL SELECT list, query, 'beyond max_lists' FROM surplus_lists;

INSERT INTO tally
SELECT 'passages', 'its list was left out: ' || reason, count(*), NULL FROM pairs p JOIN cut_lists USING (list)
WHERE (getvariable('kind') <> 'contrastive' OR label = 0)
  AND NOT EXISTS (FROM repeated r WHERE r.list = p.list AND r.document = p.document) GROUP BY reason;
INSERT INTO tally
SELECT 'positives', 'its list was left out: ' || reason, count(*), NULL FROM pairs JOIN cut_lists USING (list)
WHERE getvariable('kind') = 'contrastive' AND label = 1 GROUP BY reason;
INSERT INTO tally
SELECT 'lists', reason, count(*), min(query_id) FROM cut_lists JOIN queries USING (query)
WHERE getvariable('kind') <> 'contrastive' GROUP BY reason;
INSERT INTO tally
SELECT 'queries', max(reason), count(*), min(query_id) FROM (
    SELECT query, max(c.reason) AS reason FROM lists l LEFT JOIN cut_lists c USING (list, query)
    GROUP BY query HAVING count(*) = count(c.reason)
) JOIN queries USING (query) WHERE getvariable('kind') = 'contrastive' GROUP BY reason;
