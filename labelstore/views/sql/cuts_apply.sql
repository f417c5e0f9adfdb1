-- Deletes what cuts.sql found; numbering.sql runs again after it.
DELETE FROM pairs USING repeated WHERE pairs.list = repeated.list AND pairs.document = repeated.document;
DELETE FROM pairs WHERE list IN (SELECT list FROM cut_lists);
DELETE FROM lists WHERE list IN (SELECT list FROM cut_lists);
