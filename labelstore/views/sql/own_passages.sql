-- Passages that are the query itself: they bear its id, or read as it does, case and white space apart.
-- In   asked(query). Out own_passages(query, document, reason).

CREATE OR REPLACE TEMP MACRO folded(text) AS lower(trim(regexp_replace(text, '\s+', ' ', 'g')));

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
    UNION ALL
    SELECT a.query, s.document, 'is the query itself: same text'
    FROM short s JOIN asked_texts a ON a.collection = s.collection AND a.folded = folded(s.text)
    UNION ALL
    SELECT a.query, s.document, 'is the query itself: same text'
    FROM short s JOIN asked_texts a ON a.collection = s.collection AND a.folded = folded(s.full_text)
) GROUP BY query, document;
