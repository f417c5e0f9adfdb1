-- Reproducible draws: murmur3's 32-bit finaliser over (seed, query_id, list number, source, rank). Everything that
-- enters is text ids or ranks, never a surrogate key, and the arithmetic is spelled out, so that a draw is the same in
-- every store and under every DuckDB.
CREATE OR REPLACE TEMP MACRO spread1(x) AS (xor(x, x >> 16) * 2246822507) & 4294967295;
CREATE OR REPLACE TEMP MACRO spread2(x) AS (xor(x, x >> 13) * 3266489909) & 4294967295;
CREATE OR REPLACE TEMP MACRO mixed(x) AS xor(spread2(spread1(x)), spread2(spread1(x)) >> 16);

-- 32 bits of text under the seed: md5 keeps them the same everywhere. Used once per query or judged passage.
CREATE OR REPLACE TEMP MACRO salt_of(seed, name) AS
    ('0x' || left(md5(concat(seed, ':', name)), 8))::UBIGINT;

-- The salt of a query's nth list.
CREATE OR REPLACE TEMP MACRO list_salt(salt, number) AS
    mixed(xor(salt, ((number::UBIGINT + 1) * 2654435769) & 4294967295));

-- The draw of one candidate: uniform in [0, 2^32). Every step maps 32 bits one to one, so that candidates of a list with
-- distinct (source, rank) have distinct draws (ranks below 40503, sources below 106000).
CREATE OR REPLACE TEMP MACRO draw(salt, source, rank) AS
    mixed(xor(salt, ((rank::UBIGINT + source::UBIGINT * 40503) * 2654435769) & 4294967295));

-- A draw below this is met by at least k of n with near certainty (4 standard deviations); what it misses is drawn in a
-- second pass, so that it changes the time and never the result.
CREATE OR REPLACE TEMP MACRO draw_bound(k, n) AS
    CASE WHEN k >= n THEN 4294967296
         ELSE least(4294967296, ceil((k + 4 * sqrt(k * (1 - k / n)) + 4) / n * 4294967296)) END::UBIGINT;
