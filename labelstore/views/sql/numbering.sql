-- Passages numbered 0..n-1 by text hash and id: equal content has equal files in every store.
-- In   pairs. Out  numbered_passages(document, number, text_hash, twin: another passage of the view has the same text).

CREATE OR REPLACE TEMP TABLE used AS SELECT DISTINCT document FROM pairs;

CREATE OR REPLACE TEMP TABLE numbered_passages AS
SELECT document, (row_number() OVER w - 1)::INTEGER AS number, d.text_hash,
       coalesce(lag(d.text_hash) OVER w = d.text_hash, false) AS twin
FROM used JOIN documents d USING (document) JOIN collections c USING (collection)
WINDOW w AS (ORDER BY d.text_hash, d.doc_id, c.name);
