-- The queries whose lists get random passages: own_passages.sql, which runs next, says what reads as they do.
CREATE OR REPLACE TEMP TABLE asked AS SELECT DISTINCT query FROM lists;
