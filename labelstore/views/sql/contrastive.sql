-- contrastive: for each query its positives (judgments) and sampled negatives (mined ones, or straight from runs).
--
-- In   asked, judged, pool and positives of contrastive_positives.sql, own_passages, which own_passages.sql makes of
--      `asked`, and the variables seed, per_query, positives, min_relevance and graded.
-- Out  lists, pairs, tally as finish.sql takes them.

-- Candidates that cannot be negatives: what is or reads like a positive, the query itself, what has no text. Both are small tables, so
-- that the large one is filtered and not joined to all documents.
CREATE OR REPLACE TEMP TABLE excluded AS
SELECT query, document, min(reason) AS reason FROM (
    SELECT query, document, 'is a positive' AS reason FROM positives
    UNION ALL
    SELECT p.query, d.document, 'same text as a positive' FROM positives p JOIN documents d USING (text_hash)
    WHERE d.document <> p.document
    UNION ALL
    SELECT query, document, reason FROM own_passages
) GROUP BY query, document;

CREATE OR REPLACE TEMP TABLE unheld AS SELECT document FROM documents WHERE text_hash IS NULL;

CREATE OR REPLACE TEMP TABLE source_sizes AS
SELECT query, source, count(*) AS n FROM pool WHERE label = 0 GROUP BY query, source;
CREATE OR REPLACE TEMP TABLE pool_sizes AS SELECT query, sum(n)::BIGINT AS n FROM source_sizes GROUP BY query;

-- The first source of what several hold; empty where there is but one.
CREATE OR REPLACE TEMP TABLE earlier AS
SELECT p.query, p.document, min(p.source) AS source
FROM pool p JOIN (SELECT query FROM source_sizes GROUP BY query HAVING count(*) > 1) USING (query)
WHERE p.label = 0 GROUP BY p.query, p.document HAVING count(*) > 1;

-- One list per query, or one per query and positive.
CREATE OR REPLACE TEMP TABLE drawn_lists AS
SELECT row_number() OVER (ORDER BY query, number)::INTEGER AS list, query, number, variant,
       list_salt(salt, number) AS salt, draw_bound(getvariable('per_query'), n) AS bound,
       least(n, getvariable('per_query')) AS wanted
FROM (
    SELECT query, number, doc_id AS variant FROM positives WHERE reason IS NULL AND getvariable('positives') <> 'all'
    UNION ALL
    SELECT DISTINCT query, 0, '' FROM positives WHERE reason IS NULL AND getvariable('positives') = 'all'
) JOIN asked USING (query) JOIN pool_sizes USING (query);

CREATE OR REPLACE TEMP TABLE open_lists AS SELECT list, query, salt, bound FROM drawn_lists;

CREATE OR REPLACE TEMP VIEW offered AS
SELECT list, source, rank, document, weight, draw
FROM (
    SELECT l.list, l.bound, p.query, p.source, p.rank, p.document, p.weight, draw(l.salt, p.source, p.rank) AS draw
    FROM pool p JOIN open_lists l ON l.query = p.query WHERE p.label = 0
) p
-- Anti joins, spelled out: NOT EXISTS would have DuckDB keep all rows aside.
ANTI JOIN excluded x ON x.query = p.query AND x.document = p.document
ANTI JOIN unheld u ON u.document = p.document
ANTI JOIN earlier e ON e.query = p.query AND e.document = p.document AND e.source < p.source
WHERE draw < bound;

-- The first per_query draws of each list. One 64-bit sort key, since the draws of a list are distinct; and rowid of a
-- table made in order stands for row_number: half the time of a window.
CREATE OR REPLACE TEMP TABLE ordered AS
SELECT list, source, rank, document, weight FROM offered ORDER BY list::UBIGINT * 4294967296 + draw;

-- Lists that the bound left short are drawn again from all of their candidates.
DELETE FROM open_lists WHERE list NOT IN (
    SELECT l.list FROM drawn_lists l LEFT JOIN (SELECT list, count(*) AS n FROM ordered GROUP BY list) o USING (list)
    WHERE coalesce(o.n, 0) < l.wanted AND l.bound < 4294967296
);
DELETE FROM ordered WHERE list IN (SELECT list FROM open_lists);
UPDATE open_lists SET bound = 4294967296;
INSERT INTO ordered
SELECT list, source, rank, document, weight FROM offered ORDER BY list::UBIGINT * 4294967296 + draw;

CREATE OR REPLACE TEMP TABLE pairs AS
SELECT o.list, o.document, 1000000 + o.rank * 1000000::BIGINT + o.source AS place, 0::SMALLINT AS label,
       o.rank::SMALLINT AS rank, NULL::FLOAT AS score, o.weight::FLOAT AS weight, (-1)::SMALLINT AS relevance
FROM (SELECT *, rowid AS row FROM ordered) o
JOIN (SELECT list, min(rowid) AS start FROM ordered GROUP BY list) s USING (list)
WHERE o.row - s.start < getvariable('per_query');

-- Random passages of a mining have no rank.
UPDATE pairs SET rank = 0 FROM (
    SELECT l.list, n.document, s.source * 1000 AS source
    FROM negatives n JOIN chosen_sources s USING (mining) JOIN drawn_lists l USING (query) WHERE n.source_run IS NULL
) r WHERE pairs.list = r.list AND pairs.document = r.document AND pairs.place % 1000000 = r.source;

-- Candidates that were judged and are no positives: what the judgment says.
UPDATE pairs SET relevance = j.relevance FROM (
    SELECT l.list, j.document, j.relevance FROM judged j JOIN drawn_lists l USING (query)
    WHERE j.relevance < getvariable('min_relevance')
) j WHERE pairs.list = j.list AND pairs.document = j.document;

CREATE OR REPLACE TEMP TABLE lists AS
SELECT list, query, variant FROM drawn_lists WHERE list IN (SELECT list FROM pairs);

-- A positive's rank is its rank in the first source that holds it, 0 where none does.
CREATE OR REPLACE TEMP TABLE positive_ranks AS
SELECT p.query, p.document, arg_min(p.rank, p.source) AS rank
FROM pool p JOIN positives USING (query, document) GROUP BY p.query, p.document;

INSERT INTO pairs
SELECT l.list, p.document, p.number, CASE WHEN getvariable('graded') THEN greatest(p.relevance, 1) ELSE 1 END,
       coalesce(r.rank, 0), NULL, 1, p.relevance
FROM drawn_lists l JOIN positives p ON p.query = l.query AND p.reason IS NULL
     AND (l.number = p.number OR getvariable('positives') = 'all')
LEFT JOIN positive_ranks r ON r.query = p.query AND r.document = p.document
WHERE l.list IN (SELECT list FROM lists);

-- What was left out: `reason` NULL is the number that came in.
CREATE OR REPLACE TEMP TABLE tally AS
SELECT 'queries' AS step, NULL::VARCHAR AS reason, count(*) AS n, NULL::VARCHAR AS example FROM asked
UNION ALL SELECT 'positives', NULL, count(*), NULL FROM positives
UNION ALL SELECT 'positives', reason, count(*), min(query_id || ' ' || doc_id)
          FROM positives JOIN asked USING (query) WHERE reason IS NOT NULL GROUP BY reason
UNION ALL SELECT 'passages', NULL, coalesce(sum(n), 0), NULL FROM drawn_lists JOIN pool_sizes USING (query);

INSERT INTO tally
SELECT 'passages', reason, count(*), min(query_id || ' ' || doc_id) FROM (
    SELECT p.query, p.document, x.reason FROM pool p JOIN excluded x USING (query, document) WHERE p.label = 0
    UNION ALL
    SELECT p.query, p.document, 'passage not held' FROM pool p JOIN unheld USING (document)
    WHERE p.label = 0 AND NOT EXISTS (FROM excluded x WHERE x.query = p.query AND x.document = p.document)
    UNION ALL
    SELECT p.query, p.document, 'already from an earlier source' FROM pool p JOIN earlier e USING (query, document)
    WHERE p.label = 0 AND e.source < p.source
      AND NOT EXISTS (FROM excluded x WHERE x.query = p.query AND x.document = p.document)
      AND NOT EXISTS (FROM unheld u WHERE u.document = p.document)
) JOIN drawn_lists USING (query) JOIN documents d USING (document) JOIN queries q USING (query) GROUP BY reason;

INSERT INTO tally
SELECT 'passages', 'not drawn',
       coalesce((SELECT sum(CASE WHEN reason IS NULL THEN n ELSE -n END) FROM tally WHERE step = 'passages'), 0)
       - (SELECT count(*) FROM pairs WHERE label = 0), NULL;

INSERT INTO tally
SELECT 'positives', 'no negatives', count(*), min(query_id || ' ' || doc_id)
FROM positives p JOIN asked USING (query)
WHERE p.reason IS NULL AND NOT EXISTS (FROM lists l WHERE l.query = p.query);

INSERT INTO tally
SELECT 'queries', reason, count(*), min(query_id) FROM (
    SELECT query_id,
           CASE WHEN leaks THEN 'stands in a test set'
                WHEN query NOT IN (SELECT query FROM positives) THEN 'no positive'
                WHEN query NOT IN (SELECT query FROM positives WHERE reason IS NULL) THEN
                    CASE WHEN query IN (SELECT query FROM positives WHERE reason = 'positive not retrieved')
                         THEN 'positive not retrieved' ELSE 'positive not held' END
                WHEN query NOT IN (SELECT query FROM lists) THEN 'no negatives' END AS reason
    FROM asked
) WHERE reason IS NOT NULL GROUP BY reason;
