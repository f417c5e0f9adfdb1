-- Passages that are the query itself: they read as it does, case and white space apart. The same id alone says so only
-- where the collection's protocol does; elsewhere query 7 and passage 7 may have nothing to do with each other.
-- In   asked(query). Out own_passages(query, document, reason).

CREATE OR REPLACE TEMP MACRO folded(text) AS lower(nfc_normalize(trim(regexp_replace(text, '\s+', ' ', 'g'))));

-- The names that catalog.leaves_out_self knows, and those below them (quora/dev).
CREATE OR REPLACE TEMP TABLE self_retrieving AS
SELECT DISTINCT c.collection FROM collections c LEFT JOIN datasets d ON d.collection = c.collection
WHERE regexp_matches(c.name, '^(beir/)?(arguana|quora)(/|$)')
   OR regexp_matches(coalesce(d.ir_datasets_id, d.name), '^(beir/)?(arguana|quora)(/|$)');

CREATE OR REPLACE TEMP TABLE asked_texts AS
SELECT q.query, q.collection, folded(q.text) AS folded, strlen(q.text) AS size FROM asked JOIN queries q USING (query);

-- A long passage cannot read as a query does: only the others are folded. White space may double a text's size.
CREATE OR REPLACE TEMP TABLE own_passages AS
WITH short AS (
    SELECT document, collection, text, concat_ws(' ', title, text) AS full_text FROM documents
    WHERE strlen(text) <= 2 * (SELECT max(size) FROM asked_texts)
      AND collection IN (SELECT collection FROM asked_texts)
)
SELECT query, document, min(reason) AS reason FROM (
    SELECT q.query, d.document, 'is the query itself: same id' AS reason
    FROM asked JOIN queries q USING (query) JOIN documents d ON d.collection = q.collection AND d.doc_id = q.query_id
    WHERE q.collection IN (SELECT collection FROM self_retrieving)
    UNION ALL
    SELECT a.query, s.document, 'is the query itself: same text'
    FROM short s JOIN asked_texts a ON a.collection = s.collection AND a.folded = folded(s.text)
    UNION ALL
    SELECT a.query, s.document, 'is the query itself: same text'
    FROM short s JOIN asked_texts a ON a.collection = s.collection AND a.folded = folded(s.full_text)
) GROUP BY query, document;
