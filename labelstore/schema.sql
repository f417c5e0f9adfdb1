-- The msft store: one DuckDB file. Read this first; every table and column says what it holds.
--
-- Words: a *document* is a passage, *qrels* are human judgments only, a *run* is a ranking, a *call* is one
-- LLM answer, a *permutation* is one query's merged order, a *labeling* is a teacher over a run.
-- Integer surrogate keys (named like the thing: document, query, run …) live inside this file alone; text ids
-- (doc_id, query_id, names) and content keys are what leaves it. The views at the end carry text ids.
-- There are no primary keys on the large tables: duplicates are found set-wise at import.


-- ---------------------------------------------------------------------------------------------- provenance
CREATE TABLE provenance (
    job             INTEGER PRIMARY KEY,      -- surrogate key of one command that wrote
    job_key         VARCHAR NOT NULL UNIQUE,  -- random 128-bit hex id: the same job in merged stores
    kind            VARCHAR NOT NULL,         -- data.add, retrieve, teachers.generate, students.train, eval …
    command         VARCHAR NOT NULL,         -- the command line as typed, secrets removed
    code_version    VARCHAR NOT NULL,         -- msft version, and the git commit where there is one
    code_dirty      BOOLEAN,                  -- whether the working tree differed from that commit; NULL if unknown
    libraries       JSON NOT NULL,            -- {package: version} of what matters here
    hardware        JSON NOT NULL,            -- {cpu, cores, memory_gb, gpu, …}
    started_at      TIMESTAMPTZ NOT NULL,     -- when the job began
    seconds         DOUBLE,                   -- wall time; NULL while it runs or if it died
    peak_memory_mb  DOUBLE,                   -- peak resident memory of the process, or of a larger one that it ran
    energy_joules   DOUBLE,                   -- CPU and GPU energy, where the machine tells; else NULL
    status          VARCHAR NOT NULL          -- running, done, partial, failed, interrupted
);
COMMENT ON TABLE provenance IS 'One job: what was run, by which code, on what, for how long';

CREATE TABLE filters (
    job      INTEGER NOT NULL,                -- provenance.job
    step     VARCHAR NOT NULL,                -- which filter: documents, queries, qrels, run, labels, negatives, view …
    subject  VARCHAR NOT NULL,                -- what it filtered: a file, a run, a view name
    n_in     BIGINT NOT NULL,                 -- rows read; n_in = n_kept + the sum of its drops
    n_kept   BIGINT NOT NULL                  -- rows kept
);
COMMENT ON TABLE filters IS 'Nothing is dropped in silence: each filter of each job, in = kept + dropped';

CREATE TABLE drops (
    job      INTEGER NOT NULL,                -- provenance.job
    step     VARCHAR NOT NULL,                -- filters.step
    subject  VARCHAR NOT NULL,                -- filters.subject
    reason   VARCHAR NOT NULL,                -- why rows were dropped
    n        BIGINT NOT NULL,                 -- how many
    example  VARCHAR                          -- one of them: file:line or an id
);
COMMENT ON TABLE drops IS 'The dropped part of a filter by reason';

-- ------------------------------------------------------------------------------------------------- corpora
CREATE TABLE collections (
    collection  INTEGER PRIMARY KEY,          -- surrogate key
    name        VARCHAR NOT NULL UNIQUE,      -- e.g. msmarco-passage, nfcorpus
    source      VARCHAR,                      -- folder or ir_datasets id that it came from
    licence     VARCHAR,                      -- terms of the texts, where known
    job         INTEGER                       -- provenance.job that made it
);
COMMENT ON TABLE collections IS 'A corpus of passages';

CREATE TABLE documents (
    document    INTEGER NOT NULL,             -- surrogate key of (collection, doc_id)
    collection  INTEGER NOT NULL,             -- collections.collection
    doc_id      VARCHAR NOT NULL,             -- the collection's own id, kept as text (leading zeros stay)
    title       VARCHAR,                      -- title, NULL where the collection has none
    text        VARCHAR,                      -- body; NULL: named by labels or judgments, not held (yet)
    text_hash   UBIGINT,                      -- 64-bit hash of title and text (keys.text_hash); NULL when not held
    version     USMALLINT NOT NULL            -- 1 for the first text, +1 with each --update; 0 when not held
);
COMMENT ON TABLE documents IS 'A passage in its current version; text NULL marks an id the store knows without its text';

CREATE TABLE document_versions (
    document    INTEGER NOT NULL,             -- documents.document
    version     USMALLINT NOT NULL,           -- the version that this text was
    title       VARCHAR,                      -- its title
    text        VARCHAR NOT NULL,             -- its text
    text_hash   UBIGINT NOT NULL,             -- its hash
    replaced_by INTEGER NOT NULL              -- provenance.job of the update that replaced it
);
COMMENT ON TABLE document_versions IS 'Texts that an update replaced; labels given for them stay pinned to them';

CREATE TABLE datasets (
    dataset      INTEGER PRIMARY KEY,         -- surrogate key
    name         VARCHAR NOT NULL UNIQUE,     -- dl19, nfcorpus/train, an ir_datasets id or an own name
    collection   INTEGER NOT NULL,            -- collections.collection
    role         VARCHAR NOT NULL,            -- train, dev or test: the leakage guard protects test
    ir_datasets_id VARCHAR,                   -- the id in ir_datasets, where there is one
    source       VARCHAR,                     -- folder or id that it was added from
    qrels_hash   VARCHAR,                     -- content hash of the judgments; NULL without judgments
    job          INTEGER                      -- provenance.job that made it
);
COMMENT ON TABLE datasets IS 'A set of queries with or without judgments over a collection';

CREATE TABLE queries (
    query       INTEGER NOT NULL,             -- surrogate key of (collection, query_id)
    collection  INTEGER NOT NULL,             -- collections.collection: datasets over one collection share queries
    query_id    VARCHAR NOT NULL,             -- the collection's own id, kept as text
    text        VARCHAR NOT NULL,             -- the query as its user typed it
    text_hash   UBIGINT NOT NULL,             -- 64-bit hash of the text
    normal_hash UBIGINT NOT NULL              -- hash of the normalised text: the leakage guard compares these
);
COMMENT ON TABLE queries IS 'A query';

CREATE TABLE dataset_queries (
    dataset     INTEGER NOT NULL,             -- datasets.dataset
    query       INTEGER NOT NULL              -- queries.query
);
COMMENT ON TABLE dataset_queries IS 'Which queries a dataset has';

CREATE TABLE qrels (
    dataset     INTEGER NOT NULL,             -- datasets.dataset
    query       INTEGER NOT NULL,             -- queries.query
    document    INTEGER NOT NULL,             -- documents.document
    relevance   SMALLINT NOT NULL             -- the assessor's grade
);
COMMENT ON TABLE qrels IS 'Human judgments';

-- ------------------------------------------------------------------------------------- rankings, negatives
CREATE TABLE runs (
    run          INTEGER PRIMARY KEY,         -- surrogate key
    name         VARCHAR NOT NULL,            -- unique in its dataset: bm25, splade-pp-ed, a student's name …
    dataset      INTEGER NOT NULL,            -- datasets.dataset
    kind         VARCHAR NOT NULL,            -- first_stage, student, base, untrained, teacher, fused, imported
    system       VARCHAR NOT NULL,            -- what ranked: bm25s, anserini, colbert, student:NAME, the file's tag …
    source_run   INTEGER,                     -- runs.run that was re-ranked; NULL for a first stage
    student      INTEGER,                     -- students.student that re-ranked
    parameters   JSON NOT NULL,               -- k1, b, depth, index, fusion weight …
    depth        INTEGER NOT NULL,            -- deepest rank held
    n_queries    INTEGER NOT NULL,            -- queries with at least one candidate
    n_candidates BIGINT NOT NULL,             -- rows in candidates
    content_hash VARCHAR NOT NULL,            -- hash over (query_id, rank, doc_id, score), independent of surrogate keys
    job          INTEGER                      -- provenance.job
);
COMMENT ON TABLE runs IS 'A ranking job over a dataset';

CREATE TABLE candidates (
    run       INTEGER NOT NULL,               -- runs.run
    query     INTEGER NOT NULL,               -- queries.query
    rank      INTEGER NOT NULL,               -- 1 is best; by score descending, ties in the file's order
    document  INTEGER NOT NULL,               -- documents.document
    score     FLOAT NOT NULL                  -- the system's score
);
COMMENT ON TABLE candidates IS 'One ranked passage; stored query by query, best first, so that it packs into 8 bytes';

CREATE TABLE minings (
    mining      INTEGER PRIMARY KEY,          -- surrogate key
    name        VARCHAR NOT NULL UNIQUE,      -- how commands call it
    dataset     INTEGER NOT NULL,             -- datasets.dataset whose judgments give the positives
    parameters  JSON NOT NULL,                -- runs, strategy, depth, per_query, margins, denoising …
    seed        BIGINT NOT NULL,              -- seed of the sample
    n_queries   INTEGER NOT NULL,             -- queries with at least one negative
    n_negatives BIGINT NOT NULL,              -- rows in negatives
    content_hash VARCHAR NOT NULL,            -- hash over its rows by text ids
    job         INTEGER                       -- provenance.job
);
COMMENT ON TABLE minings IS 'A hard-negative mining job';

CREATE TABLE negatives (
    mining       INTEGER NOT NULL,            -- minings.mining
    query        INTEGER NOT NULL,            -- queries.query
    document     INTEGER NOT NULL,            -- documents.document
    source_run   INTEGER,                     -- runs.run it was taken from; NULL for a random passage of the collection
    source_rank  INTEGER NOT NULL,            -- its rank there; the number of the draw of a random passage
    source_score FLOAT,                       -- its score there; NULL for a random passage
    teacher_rank INTEGER,                     -- its rank in the denoising labeling; NULL if that does not hold it
    label        UTINYINT NOT NULL,           -- 0 a negative; 1 relabelled as positive by denoising
    weight       FLOAT NOT NULL               -- 1, or less where denoising down-weights it
);
COMMENT ON TABLE negatives IS 'One mined negative and its evidence';

-- ------------------------------------------------------------------------------------------ teacher labels
CREATE TABLE teachers (
    teacher        INTEGER PRIMARY KEY,       -- surrogate key
    teacher_key    VARCHAR NOT NULL UNIQUE,   -- content key over model, revision, prompt hash, sampling, constraint
    name           VARCHAR NOT NULL,          -- registry name, or the name in an imported file
    model          VARCHAR,                   -- Hugging Face id or folder; NULL when only a name was imported
    revision       VARCHAR,                   -- commit or weight hash of the model
    engine         VARCHAR NOT NULL,          -- vllm, openai, ray, cross-encoder, bi-encoder, scripted, imported, combined
    prompt         VARCHAR,                   -- template name and version, e.g. rankzephyr@1
    prompt_hash    VARCHAR,                   -- hash of the template's bytes
    sampling       JSON,                      -- temperature, max_tokens, seed, constraint …
    input_price    DOUBLE,                    -- US dollars per million input tokens; NULL if unknown
    output_price   DOUBLE,                    -- per million output tokens
    licence        VARCHAR                    -- terms that its labels carry
);
COMMENT ON TABLE teachers IS 'A model with its prompt and sampling';

CREATE TABLE labelings (
    labeling       INTEGER PRIMARY KEY,       -- surrogate key
    name           VARCHAR NOT NULL UNIQUE,   -- TEACHER@FIRST_STAGE unless named
    teacher        INTEGER NOT NULL,          -- teachers.teacher
    dataset        INTEGER NOT NULL,          -- datasets.dataset
    run            INTEGER,                   -- runs.run that was labelled; NULL for imported lists without one
    first_stage    VARCHAR,                   -- its name as the labels' origin gives it
    strategy       VARCHAR NOT NULL,          -- sliding, single, full, top-down …, pointwise, imported, combined
    parameters     JSON NOT NULL,             -- window, stride, depth, passes, samples, fusion …
    depth          INTEGER NOT NULL,          -- passages per query offered to the teacher
    reliable_depth INTEGER,                   -- ranks that the strategy settles; NULL if unknown
    licence        VARCHAR,                   -- terms of the labels
    origin         VARCHAR NOT NULL,          -- generated, combined, or the imported file's name
    origin_hash    VARCHAR,                   -- hash of the imported file, or of a combined labeling's parts
    job            INTEGER                    -- provenance.job that began it
);
COMMENT ON TABLE labelings IS 'A teacher over a run';

CREATE TABLE requests (
    request        BIGINT NOT NULL,           -- surrogate key
    request_key    VARCHAR NOT NULL,          -- content key over token ids, model revision, sampling, constraint
    teacher        INTEGER NOT NULL,          -- teachers.teacher
    query          INTEGER,                   -- queries.query; NULL where a query was asked for
    n_passages     USMALLINT NOT NULL,        -- passages shown
    n_prompt_tokens INTEGER NOT NULL,         -- rendered prompt length
    truncated_words USMALLINT                 -- words kept per passage when the context forced shortening; NULL if not
);
COMMENT ON TABLE requests IS 'What an LLM was asked';

CREATE TABLE request_passages (
    request    BIGINT NOT NULL,               -- requests.request
    position   USMALLINT NOT NULL,            -- identifier shown, from 1
    document   INTEGER NOT NULL,              -- documents.document
    text_hash  UBIGINT NOT NULL               -- hash of the text version that was shown
);
COMMENT ON TABLE request_passages IS 'The passages of a request, pinned to their text';

CREATE TABLE calls (
    call           BIGINT NOT NULL,           -- surrogate key
    call_key       VARCHAR NOT NULL,          -- content key over request, job, attempt, sample: the same call in merged stores
    request        BIGINT NOT NULL,           -- requests.request
    job_key        VARCHAR NOT NULL,          -- provenance.job_key of the job that made it
    attempt        USMALLINT NOT NULL,        -- 1 for the first try
    sample         USMALLINT NOT NULL,        -- 0, or the number of the shuffled order, or of the call about the same passages
    status         VARCHAR NOT NULL,          -- ok, repaired, wrong_format, truncated, refused, engine_error
    reply          VARCHAR,                   -- raw reply (a thought only if kept); the error's text for engine_error
    parsed         USMALLINT[],               -- identifiers in the order replied, after repairs; NULL if unusable
    scores         FLOAT[],                   -- score per shown position, where the teacher gives scores
    n_missing      USMALLINT NOT NULL,        -- identifiers that repairs appended
    n_repeated     USMALLINT NOT NULL,        -- repeats dropped
    n_out_of_range USMALLINT NOT NULL,        -- numbers outside the window dropped
    finish_reason  VARCHAR,                   -- as the engine says: stop, length …; marks follow after "; "
    tokens_in      INTEGER NOT NULL,          -- prompt tokens billed
    tokens_out     INTEGER NOT NULL,          -- generated tokens
    seconds        DOUBLE NOT NULL,           -- from submission to answer
    server         VARCHAR,                   -- which engine answered: host:port without credentials, or in-process
    completed_at   TIMESTAMPTZ NOT NULL       -- when
);
COMMENT ON TABLE calls IS 'One LLM answer: the expensive, durable row';

CREATE TABLE labeling_calls (
    labeling   INTEGER NOT NULL,              -- labelings.labeling
    query      INTEGER NOT NULL,              -- queries.query
    step       INTEGER NOT NULL,              -- place in the strategy's sequence, from 0
    call       BIGINT NOT NULL                -- calls.call whose answer the labeling used
);
COMMENT ON TABLE labeling_calls IS 'Which answers a labeling was merged from';

CREATE TABLE permutations (
    permutation BIGINT NOT NULL,              -- surrogate key
    labeling    INTEGER NOT NULL,             -- labelings.labeling
    query       INTEGER NOT NULL,             -- queries.query
    status      VARCHAR NOT NULL,             -- the worst call's: ok, repaired, wrong_format …; imported lists: ok, repaired
    repairs     INTEGER NOT NULL,             -- missing + repeated + out of range over its calls
    n_calls     INTEGER NOT NULL,             -- calls used; 0 for imported lists
    tokens_in   BIGINT NOT NULL,              -- their prompt tokens
    tokens_out  BIGINT NOT NULL,              -- their generated tokens
    disagreement FLOAT,                       -- 1 - mean Kendall tau between samples, both orders of pairs, or parts; else NULL
    settled     INTEGER,                      -- ranks decided by the teacher when it stopped early; NULL: all
    content_hash VARCHAR NOT NULL             -- hash over its items by text ids
);
COMMENT ON TABLE permutations IS 'One query''s merged order in a labeling';

CREATE TABLE permutation_items (
    permutation  BIGINT NOT NULL,             -- permutations.permutation
    rank         USMALLINT NOT NULL,          -- 1 is best, unique: ties are ordered as the teacher wrote them
    document     INTEGER NOT NULL,            -- documents.document
    initial_rank USMALLINT,                   -- its rank before; NULL when the first stage's order is unknown
    grade        USMALLINT NOT NULL,          -- equal grades are ties; higher is better
    score        FLOAT,                       -- the teacher's score, where it gives one
    text_hash    UBIGINT                      -- the text it was judged on; NULL when that is unknown (not held)
);
COMMENT ON TABLE permutation_items IS 'One passage of a permutation';

CREATE TABLE quarantine (
    labeling  INTEGER NOT NULL,               -- labelings.labeling
    query     INTEGER,                        -- queries.query; NULL when the line named none that is known
    step      INTEGER,                        -- the window that failed; NULL for an imported line
    reason    VARCHAR NOT NULL,               -- status or the import's reason
    detail    VARCHAR NOT NULL,               -- the last error or reply, or file:line and what is wrong
    attempts  INTEGER NOT NULL,               -- tries made
    job       INTEGER                         -- provenance.job
);
COMMENT ON TABLE quarantine IS 'Queries without a permutation, with the reason: never filled with the retrieval order';

CREATE TABLE canaries (
    teacher      INTEGER NOT NULL,            -- teachers.teacher
    job          INTEGER NOT NULL,            -- provenance.job that asked
    request_key  VARCHAR NOT NULL,            -- what was asked
    reply_hash   VARCHAR NOT NULL,            -- hash of the reply
    reply        VARCHAR NOT NULL,            -- the reply
    drifted      BOOLEAN NOT NULL             -- whether it differs from the first one on record
);
COMMENT ON TABLE canaries IS 'A fixed set of calls repeated at each start: does the model still answer as it did?';

-- ------------------------------------------------------------------- generated queries, judgments of LLMs
CREATE TABLE query_origins (
    query      INTEGER NOT NULL,              -- queries.query
    dataset    INTEGER NOT NULL,              -- datasets.dataset that it was generated for, whether or not a filter took it out
    document   INTEGER NOT NULL,              -- documents.document that it was generated from: its positive
    text_hash  UBIGINT NOT NULL,              -- hash of the text version that was shown
    call       BIGINT NOT NULL,               -- calls.call whose reply it is
    place      USMALLINT NOT NULL,            -- its place among its passage's queries, from 1
    log_probability FLOAT                     -- mean log-probability of the reply's tokens; NULL if unknown
);
COMMENT ON TABLE query_origins IS 'Where a generated query comes from; its positive is generated, never a human judgment';

CREATE TABLE query_filters (
    filter     INTEGER PRIMARY KEY,           -- surrogate key
    filter_key VARCHAR NOT NULL UNIQUE,       -- random 128-bit hex id: the same filter in merged stores
    dataset    INTEGER NOT NULL,              -- datasets.dataset of generated queries
    kind       VARCHAR NOT NULL,              -- leakage, length, copied, duplicate, log-probability, round-trip, reranker
    parameters JSON NOT NULL,                 -- its thresholds, and the run or model that it used
    active     BOOLEAN NOT NULL,              -- whether the dataset leaves out what failed it
    n_in       INTEGER NOT NULL,              -- queries that it tested
    n_kept     INTEGER NOT NULL,              -- queries that passed
    job        INTEGER                        -- provenance.job
);
COMMENT ON TABLE query_filters IS 'A test of generated queries; undone, it stays as a row and takes nothing out';

CREATE TABLE query_tests (
    filter     INTEGER NOT NULL,              -- query_filters.filter
    query      INTEGER NOT NULL,              -- queries.query
    passed     BOOLEAN NOT NULL,              -- whether it stays
    value      DOUBLE,                        -- what was measured: words, rank, score, similarity; NULL if there was nothing to measure
    evidence   VARCHAR                        -- the other query, or why it failed
);
COMMENT ON TABLE query_tests IS 'One generated query''s result in a filter';

CREATE TABLE judgings (
    judging    INTEGER PRIMARY KEY,           -- surrogate key
    name       VARCHAR NOT NULL UNIQUE,       -- how commands call it
    dataset    INTEGER NOT NULL,              -- datasets.dataset
    teacher    INTEGER NOT NULL,              -- teachers.teacher that judged: model, prompt, sampling
    parameters JSON NOT NULL,                 -- scale, depth, and the runs that were pooled, by name and content hash
    job        INTEGER                        -- provenance.job that began it
);
COMMENT ON TABLE judgings IS 'An LLM judge over a pool; human judgments are in qrels and nowhere else';

CREATE TABLE llm_judgments (
    judging    INTEGER NOT NULL,              -- judgings.judging
    query      INTEGER NOT NULL,              -- queries.query
    document   INTEGER NOT NULL,              -- documents.document
    grade      SMALLINT,                      -- the judge's grade; NULL where its reply held none (quarantined, never 0)
    status     VARCHAR NOT NULL,              -- ok, repaired; wrong_format, truncated, refused, engine_error without a grade
    call       BIGINT,                        -- calls.call with the reply; NULL if no prompt could be made
    text_hash  UBIGINT NOT NULL               -- hash of the text version that was judged
);
COMMENT ON TABLE llm_judgments IS 'One passage''s grade for one query by an LLM judge';

CREATE TABLE checkings (
    checking   INTEGER PRIMARY KEY,           -- surrogate key
    name       VARCHAR NOT NULL UNIQUE,       -- how commands call it
    dataset    INTEGER NOT NULL,              -- datasets.dataset of the mined negatives
    teacher    INTEGER NOT NULL,              -- teachers.teacher that was shown every negative
    strong     INTEGER,                       -- teachers.teacher that was shown what the first one flagged; NULL without one
    parameters JSON NOT NULL,                 -- negatives by name and content hash, window, which verdicts are flags
    job        INTEGER                        -- provenance.job that began it
);
COMMENT ON TABLE checkings IS 'An LLM check of mined negatives, by one model or by a cheap and a strong one';

CREATE TABLE verdicts (
    checking   INTEGER NOT NULL,              -- checkings.checking
    query      INTEGER NOT NULL,              -- queries.query
    document   INTEGER NOT NULL,              -- documents.document, a mined negative
    stage      UTINYINT NOT NULL,             -- 1 by checkings.teacher, 2 by checkings.strong
    verdict    VARCHAR,                       -- better (as good as the positive, or better), worse (relevant), irrelevant; NULL: unreadable
    flagged    BOOLEAN,                       -- whether it counts as a false negative; NULL where the reply held no verdict
    status     VARCHAR NOT NULL,              -- ok, repaired; wrong_format, truncated, refused, engine_error without a verdict
    call       BIGINT NOT NULL,               -- calls.call with the reply; its request shows the positive first
    text_hash  UBIGINT NOT NULL               -- hash of the text version that was shown
);
COMMENT ON TABLE verdicts IS 'What a model said of one mined negative beside a positive';

-- ------------------------------------------------------------------------------------------ training views
CREATE TABLE views (
    view        INTEGER PRIMARY KEY,          -- surrogate key
    name        VARCHAR NOT NULL,             -- how commands call it; the newest of a name counts
    kind        VARCHAR NOT NULL,             -- contrastive, distillation, rerank
    sql         VARCHAR NOT NULL,             -- the SQL that made it
    parameters  JSON NOT NULL,                -- its parameters, sources by name and content hash included
    seed        BIGINT NOT NULL,              -- seed of its samples
    view_hash   VARCHAR NOT NULL UNIQUE,      -- content hash of the rows by text ids and texts
    folder      VARCHAR NOT NULL,             -- where it lies, relative to <store>.files/
    n_lists     BIGINT NOT NULL,              -- queries (lists) kept
    n_pairs     BIGINT NOT NULL,              -- query-passage pairs kept
    licence     VARCHAR,                      -- strictest terms among its labels
    job         INTEGER                       -- provenance.job; its counts by reason are in filters and drops
);
COMMENT ON TABLE views IS 'A training view: a content-addressed folder of Parquet';

CREATE TABLE view_sources (
    view    INTEGER NOT NULL,                 -- views.view
    kind    VARCHAR NOT NULL,                 -- dataset, run, mining, labeling
    source  INTEGER,                          -- its surrogate key; NULL: came by a merge after it had been replaced
    hash    VARCHAR                           -- its content hash when the view was made
);
COMMENT ON TABLE view_sources IS 'What a view was made from';

-- ------------------------------------------------------------------------------------------------ students
CREATE TABLE students (
    student       INTEGER PRIMARY KEY,        -- surrogate key
    name          VARCHAR NOT NULL UNIQUE,    -- how commands call it
    base          VARCHAR NOT NULL,           -- base model: Hugging Face id or folder
    base_revision VARCHAR,                    -- commit or hash of its weights
    architecture  VARCHAR NOT NULL,           -- electra, roberta, bert, modernbert
    regime        VARCHAR NOT NULL,           -- cl | kd | cl,kd | kd,cl | cl+kd … ; none for an untrained model
    folder        VARCHAR NOT NULL,           -- where its weights lie, relative to <store>.files/
    weights_hash  VARCHAR NOT NULL,           -- hash of model.safetensors
    max_length    INTEGER NOT NULL,           -- tokens per pair
    seed          BIGINT NOT NULL,            -- training seed
    recipe        JSON,                       -- the recipe as run
    licence       VARCHAR,                    -- terms of its base and its labels
    job           INTEGER                     -- provenance.job
);
COMMENT ON TABLE students IS 'A trained cross-encoder';

CREATE TABLE stages (
    student         INTEGER NOT NULL,         -- students.student
    stage           USMALLINT NOT NULL,       -- place in the regime, from 1
    objective       VARCHAR NOT NULL,         -- cl, kd or cl+kd
    loss            VARCHAR NOT NULL,         -- lce, ranknet …
    view            INTEGER,                  -- views.view; NULL when it was trained from a folder this store has not
    view_hash       VARCHAR NOT NULL,         -- the view's content hash
    parent_hash     VARCHAR NOT NULL,         -- hash of the weights it started from
    weights_hash    VARCHAR NOT NULL,         -- hash of the weights it ended with
    hyperparameters JSON NOT NULL,            -- lr, schedule, batch, accumulation, clip, precision …
    steps           INTEGER NOT NULL,         -- optimiser steps taken
    pairs           BIGINT NOT NULL,          -- pairs scored in training
    lists_skipped   BIGINT NOT NULL,          -- lists without a valid target
    truncated_pairs BIGINT NOT NULL,          -- pairs cut at max_length
    seconds         DOUBLE NOT NULL,          -- training time
    weights_moved   DOUBLE NOT NULL,          -- relative L2 distance of the weights from the stage's start
    best_step       INTEGER,                  -- step of the kept checkpoint; NULL without validation
    best_value      DOUBLE,                   -- its validation measure
    stopped_by      VARCHAR NOT NULL          -- end, early_stopping, max_steps, max_minutes
);
COMMENT ON TABLE stages IS 'One stage of a regime';

CREATE TABLE training_log (
    student     INTEGER NOT NULL,             -- students.student
    stage       USMALLINT NOT NULL,           -- stages.stage
    step        INTEGER NOT NULL,             -- optimiser step
    pairs       BIGINT NOT NULL,              -- pairs seen so far in the stage
    seconds     DOUBLE NOT NULL,              -- since the stage began
    measure     VARCHAR NOT NULL,             -- loss, lr, grad_norm, valid_loss, valid_nDCG@10, valid_tau …
    value       DOUBLE NOT NULL               -- its value
);
COMMENT ON TABLE training_log IS 'What training measured as it went';

CREATE TABLE calibrations (
    student        INTEGER PRIMARY KEY,       -- students.student; a newer calibration takes the place of an older one
    weights_hash   VARCHAR NOT NULL,          -- students.weights_hash that it was fitted for
    method         VARCHAR NOT NULL,          -- platt or isotonic
    parameters     JSON NOT NULL,             -- of the map from logit to probability
    dataset        VARCHAR NOT NULL,          -- name of the dataset whose judged queries it was fitted on
    run            VARCHAR NOT NULL,          -- name of the run whose candidates were scored
    depth          INTEGER NOT NULL,          -- candidates per query
    relevant_from  INTEGER NOT NULL,          -- the lowest grade that counts as relevant
    n_queries      INTEGER NOT NULL,          -- queries that it was fitted on
    n_pairs        BIGINT NOT NULL,           -- their scored pairs
    n_relevant     BIGINT NOT NULL,           -- relevant ones among them
    ece_before     DOUBLE NOT NULL,           -- expected calibration error of the logits' sigmoid
    ece            DOUBLE NOT NULL,           -- the same of the map, on queries that it was not fitted on
    bins           JSON NOT NULL,             -- before and after: [predicted, observed, pairs] of each tenth
    none_below     DOUBLE,                    -- best probability below which a list holds nothing relevant; NULL: no such bound
    none_precision DOUBLE NOT NULL,           -- share of such lists for which this holds
    job            INTEGER                    -- provenance.job
);
COMMENT ON TABLE calibrations IS 'A student''s map from logit to probability of relevance';

-- ---------------------------------------------------------------------------------------------- evaluation
CREATE TABLE evaluations (
    evaluation  INTEGER PRIMARY KEY,          -- surrogate key
    dataset     INTEGER NOT NULL,             -- datasets.dataset
    run         INTEGER,                      -- runs.run that was measured; NULL for a labeling
    labeling    INTEGER,                      -- labelings.labeling that was measured; NULL for a run
    run_hash    VARCHAR NOT NULL,             -- content hash of the ranking
    qrels_hash  VARCHAR NOT NULL,             -- content hash of the judgments
    measure     VARCHAR NOT NULL,             -- ir-measures name
    value       DOUBLE NOT NULL,              -- mean over n_queries
    n_queries   INTEGER NOT NULL,             -- judged queries; one that the run lacks counts as 0
    n_missing   INTEGER NOT NULL,             -- judged queries that the run lacks
    job         INTEGER                       -- provenance.job
);
COMMENT ON TABLE evaluations IS 'One ranking under one measure';

CREATE TABLE query_scores (
    evaluation  INTEGER NOT NULL,             -- evaluations.evaluation
    query       INTEGER NOT NULL,             -- queries.query
    value       DOUBLE NOT NULL               -- the measure on this query
);
COMMENT ON TABLE query_scores IS 'One query''s value';

-- -------------------------------------------------------------------------- readable views, with text ids
CREATE VIEW passages AS
    SELECT c.name AS collection, d.doc_id, d.title, d.text, d.version
    FROM documents d JOIN collections c USING (collection) WHERE d.text IS NOT NULL;
COMMENT ON VIEW passages IS 'Held passages by collection and doc_id';

CREATE VIEW dataset_query_texts AS
    SELECT ds.name AS dataset, q.query_id, q.text
    FROM dataset_queries dq JOIN datasets ds USING (dataset) JOIN queries q USING (query);
COMMENT ON VIEW dataset_query_texts IS 'Queries by dataset and query_id';

CREATE VIEW judgments AS
    SELECT ds.name AS dataset, q.query_id, d.doc_id, r.relevance
    FROM qrels r JOIN datasets ds USING (dataset) JOIN queries q USING (query) JOIN documents d USING (document);
COMMENT ON VIEW judgments IS 'Qrels by text ids';

CREATE VIEW ranked AS
    SELECT ds.name AS dataset, r.name AS run, r.kind, q.query_id, c.rank, d.doc_id, c.score
    FROM candidates c JOIN runs r USING (run) JOIN datasets ds USING (dataset)
    JOIN queries q USING (query) JOIN documents d ON d.document = c.document;
COMMENT ON VIEW ranked IS 'Candidates by text ids';

CREATE VIEW mined AS
    SELECT m.name AS mining, ds.name AS dataset, q.query_id, d.doc_id, coalesce(r.name, 'random') AS source_run,
           n.source_rank, n.source_score, n.teacher_rank, n.label, n.weight
    FROM negatives n JOIN minings m USING (mining) JOIN datasets ds USING (dataset)
    JOIN queries q USING (query) JOIN documents d USING (document) LEFT JOIN runs r ON r.run = n.source_run;
COMMENT ON VIEW mined IS 'Negatives by text ids; source_run random and no score for a random passage of the collection';

CREATE VIEW labels AS
    SELECT l.name AS labeling, t.name AS teacher, l.first_stage, ds.name AS dataset, q.query_id, i.rank, d.doc_id,
           i.initial_rank, i.grade, i.score, p.status,
           coalesce(i.text_hash = d.text_hash, false) AS text_is_current
    FROM permutation_items i JOIN permutations p USING (permutation) JOIN labelings l USING (labeling)
    JOIN teachers t USING (teacher) JOIN datasets ds ON ds.dataset = l.dataset
    JOIN queries q ON q.query = p.query JOIN documents d ON d.document = i.document;
COMMENT ON VIEW labels IS 'Teacher labels by text ids';

CREATE VIEW teacher_calls AS
    SELECT t.name AS teacher, l.name AS labeling, q.query_id, lc.step, c.attempt, c.sample, c.status, c.reply,
           c.n_missing, c.n_repeated, c.n_out_of_range, c.finish_reason, c.tokens_in, c.tokens_out, c.seconds,
           c.server, c.completed_at, rq.request_key, t.prompt, t.prompt_hash
    FROM calls c JOIN requests rq USING (request) JOIN teachers t ON t.teacher = rq.teacher
    LEFT JOIN queries q ON q.query = rq.query
    LEFT JOIN labeling_calls lc ON lc.call = c.call LEFT JOIN labelings l ON l.labeling = lc.labeling;
COMMENT ON VIEW teacher_calls IS 'Calls with teacher, labeling and query names; labeling NULL for an answer that none uses, query_id NULL where a query was asked for';

CREATE VIEW judge_grades AS
    SELECT j.name AS judging, ds.name AS dataset, t.name AS judge, t.model, t.prompt, t.prompt_hash, q.query_id, d.doc_id,
           g.grade, g.status, c.call_key, g.text_hash = d.text_hash AS text_is_current
    FROM llm_judgments g JOIN judgings j USING (judging) JOIN datasets ds ON ds.dataset = j.dataset
    JOIN teachers t ON t.teacher = j.teacher JOIN queries q ON q.query = g.query JOIN documents d ON d.document = g.document
    LEFT JOIN calls c ON c.call = g.call;
COMMENT ON VIEW judge_grades IS 'Grades of LLM judges by text ids; human ones are in judgments';

CREATE VIEW final_verdicts AS
    SELECT k.checking, f.query, f.document, f.text_hash, f.verdict, s.verdict AS strong_verdict,
           CASE WHEN f.flagged AND k.strong IS NOT NULL THEN s.flagged ELSE f.flagged END AS flagged,
           f.call, s.call AS strong_call
    FROM checkings k JOIN verdicts f ON f.checking = k.checking AND f.stage = 1
    LEFT JOIN verdicts s ON s.checking = f.checking AND s.query = f.query AND s.document = f.document AND s.stage = 2;
COMMENT ON VIEW final_verdicts IS 'Checked negatives by surrogate keys; flagged by the strong model where there is one, NULL without a readable verdict';

CREATE VIEW negative_verdicts AS
    SELECT k.name AS checking, ds.name AS dataset, k.parameters->>'negatives' AS negatives, q.query_id, d.doc_id,
           v.flagged, v.verdict, v.strong_verdict, t.name AS teacher, u.name AS strong_teacher, c.call_key,
           e.call_key AS strong_call_key, v.text_hash = d.text_hash AS text_is_current
    FROM final_verdicts v JOIN checkings k USING (checking) JOIN datasets ds ON ds.dataset = k.dataset
    JOIN queries q ON q.query = v.query JOIN documents d ON d.document = v.document
    JOIN teachers t ON t.teacher = k.teacher LEFT JOIN teachers u ON u.teacher = k.strong
    JOIN calls c ON c.call = v.call LEFT JOIN calls e ON e.call = v.strong_call;
COMMENT ON VIEW negative_verdicts IS 'Verdicts on mined negatives by text ids, with the calls of both models';

CREATE VIEW filtered_out AS
    SELECT dataset, query FROM query_origins ANTI JOIN dataset_queries USING (dataset, query);
COMMENT ON VIEW filtered_out IS 'Generated queries that a filter has taken out of their dataset, by surrogate keys';

CREATE VIEW generated_queries AS
    SELECT ds.name AS dataset, q.query_id, q.text, d.doc_id, t.name AS teacher, t.model, t.prompt, t.prompt_hash,
           c.call_key, c.job_key, o.log_probability, m.query IS NOT NULL AS kept,
           coalesce(f.passed, []) AS passed, coalesce(f.failed, []) AS failed
    FROM query_origins o JOIN datasets ds USING (dataset) JOIN queries q USING (query)
    JOIN documents d ON d.document = o.document JOIN calls c ON c.call = o.call JOIN requests r USING (request)
    JOIN teachers t ON t.teacher = r.teacher
    LEFT JOIN dataset_queries m ON m.dataset = o.dataset AND m.query = o.query
    LEFT JOIN (SELECT x.dataset, s.query, list(x.kind ORDER BY x.filter) FILTER (s.passed) AS passed,
                      list(x.kind ORDER BY x.filter) FILTER (NOT s.passed) AS failed
               FROM query_tests s JOIN query_filters x USING (filter) WHERE x.active GROUP BY ALL) f
           ON f.dataset = o.dataset AND f.query = o.query;
COMMENT ON VIEW generated_queries IS 'Generated queries with passage, prompt, call and the filters that they passed or failed';

CREATE VIEW labeling_quality AS
    WITH items AS (
        SELECT p.labeling, p.permutation,
               CASE WHEN bool_and(i.initial_rank IS NOT NULL)
                    THEN list(i.rank ORDER BY i.initial_rank) END AS moved_to  -- new ranks in the prior order
        FROM permutations p JOIN permutation_items i USING (permutation) GROUP BY ALL
    ), neighbours AS (
        SELECT labeling, moved_to, len(moved_to) - 1 AS n,
               len(list_filter(range(1, len(moved_to)), lambda k: moved_to[k] < moved_to[k + 1])) AS n_kept
        FROM items WHERE len(moved_to) > 1
    ), bias AS (
        SELECT labeling, sum(n_kept) / sum(n) AS position_bias, avg((n_kept = n)::INTEGER) AS untouched
        FROM neighbours GROUP BY labeling
    ), lists AS (
        SELECT labeling, count(*) AS n_lists, count(*) FILTER (WHERE status = 'ok') AS n_ok,
               count(*) FILTER (WHERE status = 'repaired') AS n_repaired, sum(repairs)::BIGINT AS repairs,
               sum(n_calls)::BIGINT AS n_calls, sum(tokens_in)::BIGINT AS tokens_in,
               sum(tokens_out)::BIGINT AS tokens_out, avg(disagreement) AS disagreement
        FROM permutations GROUP BY labeling
    ), failed AS (
        SELECT labeling, count(*) AS n_quarantined FROM quarantine GROUP BY labeling
    )
    SELECT l.name AS labeling, t.name AS teacher, ds.name AS dataset, l.first_stage, l.strategy, l.depth,
           l.reliable_depth, coalesce(n_lists, 0) AS lists, coalesce(n_ok, 0) AS ok, coalesce(n_repaired, 0) AS repaired,
           coalesce(n_quarantined, 0) AS quarantined, coalesce(repairs, 0) AS repairs, b.position_bias, b.untouched,
           disagreement, coalesce(n_calls, 0) AS calls, tokens_in, tokens_out,
           (tokens_in * t.input_price + tokens_out * t.output_price) / 1e6 AS cost,
           CASE WHEN cost IS NOT NULL THEN 'USD' END AS currency, l.licence
    FROM labelings l JOIN teachers t USING (teacher) JOIN datasets ds ON ds.dataset = l.dataset
    LEFT JOIN lists USING (labeling) LEFT JOIN bias b USING (labeling) LEFT JOIN failed USING (labeling);
COMMENT ON VIEW labeling_quality IS 'Labelings by name: statuses, repairs, tokens, cost; position_bias is the share of neighbours in the prior order that kept it (.5 by chance, 1: nothing moved, NULL: prior order unknown), untouched the share of lists left exactly as they were';

CREATE VIEW student_stages AS
    SELECT s.name AS student, s.base, s.regime, g.stage, g.objective, g.loss, v.name AS view, g.view_hash, g.steps,
           g.pairs, g.seconds, g.weights_moved, g.lists_skipped, g.truncated_pairs, g.best_value, g.stopped_by,
           g.hyperparameters
    FROM stages g JOIN students s USING (student) LEFT JOIN views v USING (view);
COMMENT ON VIEW student_stages IS 'Stages by student and view name';

CREATE VIEW student_sources AS
    SELECT s.name AS student, g.stage, g.objective, g.loss, g.view_hash, v.kind AS view_kind, vs.kind AS made_from,
           coalesce(d.name, m.name, l.name, rd.name || '/' || r.name) AS source, t.name AS teacher, t.model,
           t.revision, t.prompt, t.prompt_hash, l.licence
    FROM stages g JOIN students s USING (student) JOIN views v ON v.view = g.view
    JOIN view_sources vs ON vs.view = v.view
    LEFT JOIN datasets d ON vs.kind = 'dataset' AND d.dataset = vs.source
    LEFT JOIN minings m ON vs.kind = 'mining' AND m.mining = vs.source
    LEFT JOIN runs r ON vs.kind = 'run' AND r.run = vs.source LEFT JOIN datasets rd ON rd.dataset = r.dataset
    LEFT JOIN labelings l ON vs.kind = 'labeling' AND l.labeling = vs.source
    LEFT JOIN teachers t ON t.teacher = l.teacher;
COMMENT ON VIEW student_sources IS 'What each stage of a student learnt from: a row per source of its view, with teacher, model revision and prompt';

CREATE VIEW results AS
    SELECT ds.name AS dataset, coalesce(r.name, l.name) AS system,
           CASE WHEN e.labeling IS NOT NULL THEN 'teacher' ELSE r.kind END AS kind,
           coalesce(src.name, l.first_stage, CASE WHEN r.kind IN ('first_stage', 'imported') THEN r.name END) AS first_stage,
           s.name AS student, s.regime, e.measure, e.value, e.n_queries, e.n_missing, e.evaluation
    FROM evaluations e JOIN datasets ds USING (dataset)
    LEFT JOIN runs r ON r.run = e.run LEFT JOIN runs src ON src.run = r.source_run
    LEFT JOIN labelings l ON l.labeling = e.labeling LEFT JOIN students s ON s.student = r.student;
COMMENT ON VIEW results IS 'Evaluations by name: ask this for nDCG@10 by regime and first stage';

CREATE VIEW result_queries AS
    SELECT rs.dataset, rs.system, rs.kind, rs.first_stage, rs.student, rs.regime, rs.measure, q.query_id, qs.value
    FROM query_scores qs JOIN results rs USING (evaluation) JOIN queries q USING (query);
COMMENT ON VIEW result_queries IS 'Per-query values by name';
