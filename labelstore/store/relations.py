"""Describe the references between the store's tables, and which rows must be unique.

`schema.sql` says the same in words. DuckDB itself has no foreign keys here (they would cost as much as the data), and primary
keys only on the small tables. `verify`, `merge` and the archive's manifest read this module.
"""

from typing import NamedTuple


class Reference(NamedTuple):
    """A column that refers to a row of another table by `key`.

    Attributes:
        part: True if the row is a part of the other row and must be removed with it.
    """

    table: str
    column: str
    target: str
    key: str
    part: bool = False


def _to(
    target: str, *columns: tuple[str, str], part: bool = False, key: str | None = None
) -> tuple[Reference, ...]:
    own = key or TARGETS[target]
    return tuple(Reference(table, column, target, own, part) for table, column in columns)


# The surrogate key of each table that others refer to: the table's name in the singular.
TARGETS = {
    "provenance": "job",
    "collections": "collection",
    "documents": "document",
    "datasets": "dataset",
    "queries": "query",
    "runs": "run",
    "minings": "mining",
    "teachers": "teacher",
    "labelings": "labeling",
    "requests": "request",
    "calls": "call",
    "permutations": "permutation",
    "views": "view",
    "students": "student",
    "evaluations": "evaluation",
    "query_filters": "filter",
    "judgings": "judging",
    "checkings": "checking",
}

REFERENCES: tuple[Reference, ...] = (
    *_to("provenance", ("filters", "job"), ("drops", "job"), part=True),
    *_to("provenance", *((table, "job") for table in ("collections", "datasets", "runs", "minings", "labelings"))),
    *_to("provenance", *((table, "job") for table in ("quarantine", "canaries", "views", "students", "evaluations", "calibrations"))),
    *_to("provenance", ("document_versions", "replaced_by")),
    *_to("provenance", ("calls", "job_key"), key="job_key"),
    *_to("collections", ("documents", "collection"), ("queries", "collection"), part=True),
    *_to("collections", ("datasets", "collection")),
    *_to("documents", ("document_versions", "document"), part=True),
    *_to("documents", *((table, "document") for table in ("qrels", "candidates", "negatives"))),
    *_to("documents", *((table, "document") for table in ("request_passages", "permutation_items"))),
    *_to("datasets", ("dataset_queries", "dataset"), ("qrels", "dataset"), part=True),
    *_to("datasets", *((table, "dataset") for table in ("runs", "minings", "labelings", "evaluations"))),
    *_to("queries", *((table, "query") for table in ("dataset_queries", "qrels", "candidates", "negatives"))),
    *_to("queries", *((table, "query") for table in ("requests", "labeling_calls", "permutations"))),
    *_to("queries", ("quarantine", "query"), ("query_scores", "query")),
    *_to("runs", ("candidates", "run"), part=True),
    *_to("runs", ("runs", "source_run"), ("negatives", "source_run"), ("labelings", "run"), ("evaluations", "run")),
    *_to("minings", ("negatives", "mining"), part=True),
    *_to("teachers", ("labelings", "teacher"), ("requests", "teacher"), ("canaries", "teacher")),
    *_to("labelings", ("labeling_calls", "labeling"), ("permutations", "labeling"), part=True),
    *_to("labelings", ("quarantine", "labeling"), part=True),
    *_to("labelings", ("evaluations", "labeling")),
    *_to("requests", ("request_passages", "request"), part=True),
    *_to("requests", ("calls", "request")),
    *_to("calls", ("labeling_calls", "call")),
    *_to("permutations", ("permutation_items", "permutation"), part=True),
    *_to("views", ("view_sources", "view"), part=True),
    *_to("views", ("stages", "view")),
    *_to("students", ("stages", "student"), ("training_log", "student"), ("calibrations", "student"), part=True),
    *_to("students", ("runs", "student")),
    *_to("evaluations", ("query_scores", "evaluation"), part=True),
    *_to("datasets", ("query_origins", "dataset"), part=True),
    *_to("queries", ("query_origins", "query"), ("query_tests", "query"), ("llm_judgments", "query")),
    *_to("documents", ("query_origins", "document"), ("llm_judgments", "document")),
    *_to("calls", ("query_origins", "call"), ("llm_judgments", "call")),
    *_to("datasets", ("query_filters", "dataset"), ("judgings", "dataset")),
    *_to("teachers", ("judgings", "teacher")),
    *_to("provenance", ("query_filters", "job"), ("judgings", "job")),
    *_to("query_filters", ("query_tests", "filter"), part=True),
    *_to("judgings", ("llm_judgments", "judging"), part=True),
    *_to("datasets", ("checkings", "dataset")),
    *_to("teachers", ("checkings", "teacher"), ("checkings", "strong")),
    *_to("provenance", ("checkings", "job")),
    *_to("checkings", ("verdicts", "checking"), part=True),
    *_to("queries", ("verdicts", "query")),
    *_to("documents", ("verdicts", "document")),
    *_to("calls", ("verdicts", "call")),
)  # fmt: skip
# view_sources.source is left out on purpose: a view outlives a mining or run that was replaced, and its parameters
# keep the name and hash of the source.

UNIQUE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("documents", ("document",)),
    ("documents", ("collection", "doc_id")),
    ("document_versions", ("document", "version")),
    ("queries", ("query",)),
    ("queries", ("collection", "query_id")),
    ("dataset_queries", ("dataset", "query")),
    ("qrels", ("dataset", "query", "document")),
    ("runs", ("dataset", "name")),
    ("candidates", ("run", "query", "rank")),
    ("candidates", ("run", "query", "document")),
    ("negatives", ("mining", "query", "document")),
    ("requests", ("request",)),
    ("requests", ("request_key",)),
    ("request_passages", ("request", "position")),
    ("calls", ("call",)),
    ("calls", ("call_key",)),
    ("labeling_calls", ("labeling", "query", "step")),
    ("permutations", ("permutation",)),
    ("permutations", ("labeling", "query")),
    ("permutation_items", ("permutation", "rank")),
    ("permutation_items", ("permutation", "document")),
    ("canaries", ("teacher", "job", "request_key")),
    ("stages", ("student", "stage")),
    ("training_log", ("student", "stage", "step", "measure")),
    ("evaluations", ("dataset", "run", "labeling", "measure", "run_hash", "qrels_hash")),
    ("query_scores", ("evaluation", "query")),
    ("query_origins", ("dataset", "query")),
    ("query_tests", ("filter", "query")),
    ("llm_judgments", ("judging", "query", "document")),
    ("verdicts", ("checking", "query", "document", "stage")),
)

# Names of a large table's rows in messages: SQL for the name, over `t` joined by the clause.
OWNERS: dict[str, tuple[str, str]] = {
    "documents": ("o.name", "LEFT JOIN collections o ON o.collection = t.collection"),
    "queries": ("o.name", "LEFT JOIN collections o ON o.collection = t.collection"),
    "dataset_queries": ("o.name", "LEFT JOIN datasets o ON o.dataset = t.dataset"),
    "qrels": ("o.name", "LEFT JOIN datasets o ON o.dataset = t.dataset"),
    "candidates": (
        "d.name || '/' || o.name",
        "LEFT JOIN runs o ON o.run = t.run LEFT JOIN datasets d ON d.dataset = o.dataset",
    ),
    "negatives": ("o.name", "LEFT JOIN minings o ON o.mining = t.mining"),
    "labeling_calls": ("o.name", "LEFT JOIN labelings o ON o.labeling = t.labeling"),
    "permutations": ("o.name", "LEFT JOIN labelings o ON o.labeling = t.labeling"),
    "permutation_items": (
        "o.name",
        "LEFT JOIN permutations p ON p.permutation = t.permutation LEFT JOIN labelings o ON o.labeling = p.labeling",
    ),
    "quarantine": ("o.name", "LEFT JOIN labelings o ON o.labeling = t.labeling"),
    "requests": ("o.name", "LEFT JOIN teachers o ON o.teacher = t.teacher"),
    "canaries": ("o.name", "LEFT JOIN teachers o ON o.teacher = t.teacher"),
    "stages": ("o.name", "LEFT JOIN students o ON o.student = t.student"),
    "training_log": ("o.name", "LEFT JOIN students o ON o.student = t.student"),
    "calibrations": ("o.name", "LEFT JOIN students o ON o.student = t.student"),
    "query_scores": (
        "d.name || ' ' || o.measure",
        "LEFT JOIN evaluations o ON o.evaluation = t.evaluation LEFT JOIN datasets d ON d.dataset = o.dataset",
    ),
    "query_origins": ("o.name", "LEFT JOIN datasets o ON o.dataset = t.dataset"),
    "query_filters": ("o.name", "LEFT JOIN datasets o ON o.dataset = t.dataset"),
    "llm_judgments": ("o.name", "LEFT JOIN judgings o ON o.judging = t.judging"),
    "verdicts": ("o.name", "LEFT JOIN checkings o ON o.checking = t.checking"),
}
