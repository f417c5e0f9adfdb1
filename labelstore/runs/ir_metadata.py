"""Write the ir_metadata of a run: what made it, by the components of PRIMAD (platform, research goal, implementation, method,
actor, data), as YAML between ``ir_metadata.start`` and ``ir_metadata.end``.

Breuer, Keller, Schaer: "ir_metadata: An Extensible Metadata Schema for IR Experiments" (SIGIR 2022) puts it into the
run file as comment lines. ir-measures and pytrec_eval end with an error on the first comment line
(tests/labelstore/runs/test_ir_metadata.py tries both). So by default the metadata lies beside the run. The six components are
always there; unknown facts are left out.
"""

import json
from pathlib import Path
from typing import Any

import duckdb
import yaml

from labelstore.store import lookup
from labelstore.store.rows import fetch

START, END = "ir_metadata.start", "ir_metadata.end"
SUFFIX = ".ir_metadata.yaml"


def beside(run_file: Path) -> Path:
    """Name the metadata file of a run file: ``bm25.run.gz`` -> ``bm25.run.ir_metadata.yaml``."""
    name = run_file.name
    for ending in (".gz", ".zst"):
        name = name.removesuffix(ending)
    return run_file.with_name(name + SUFFIX)


def text(content: dict[str, Any]) -> str:
    """Write the metadata as YAML."""
    written: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=4096)
    return written


def header(content: dict[str, Any]) -> list[str]:
    """Return the YAML between its two markers, line by line, without the comment signs."""
    return [START, *text(content).rstrip("\n").split("\n"), END]


def metadata(
    con: duckdb.DuckDBPyConnection, of: lookup.Dataset, run: lookup.Run, actor: str | None = None
) -> dict[str, Any]:
    """Collect all facts of the store about a run.

    Args:
        actor: who made the run; the store has no names of people.
    """
    job = _job(con, run.run)
    content = {
        "tag": run.name,
        "platform": _platform(job),
        "research goal": _goal(con, of, run),
        "implementation": _implementation(job),
        "method": {
            "automatic": True,
            "score ties": "the stored order, by rank",
            "retrieval": [_step(con, made) for made in _cascade(con, run)],
        },
        "actor": {"name": actor or "not given", "role": "experimenter"},
        "data": _data(con, of, run),
        "msft": {"run_hash": run.content_hash, "job": job.get("job_key")},
    }
    return {component: _without_nothing(said) for component, said in content.items()}


def _job(con: duckdb.DuckDBPyConnection, run: int) -> dict[str, Any]:
    found = fetch(con, "SELECT p.* FROM runs r JOIN provenance p USING (job) WHERE r.run = ?", [run])
    return found[0] if found else {}


def _platform(job: dict[str, Any]) -> dict[str, Any]:
    hardware = json.loads(job.get("hardware") or "{}")
    libraries = json.loads(job.get("libraries") or "{}")
    memory = hardware.get("memory_gb")
    return {
        "hardware": {
            "cpu": {
                "model": hardware.get("cpu"),
                "architecture": hardware.get("architecture"),
                "number of cores": hardware.get("cores"),
            },
            "gpu": hardware.get("gpus"),
            "ram": f"{memory} GB" if memory is not None else None,
        },
        "operating system": {
            "platform": hardware.get("os"),
            "kernel": hardware.get("kernel"),
            "distribution": hardware.get("distribution"),
        },
        "software": {"libraries": {"python": [f"{name}=={version}" for name, version in libraries.items()]}},
    }


def _goal(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, run: lookup.Run) -> dict[str, Any]:
    measures = con.execute(
        "SELECT measure FROM evaluations WHERE run = ? AND run_hash = ? AND qrels_hash = ? ORDER BY evaluation",
        [run.run, run.content_hash, of.qrels_hash],
    ).fetchall()
    if not measures:
        return {}
    baseline = [first.name for first in _cascade(con, run)[-1:] if first.run != run.run]
    return {
        "evaluation": {
            "reported measures": [measure for (measure,) in measures],
            "baseline": baseline,
            "significance test": [{"name": "paired t-test, two-sided"}] if baseline else None,
        }
    }


def _implementation(job: dict[str, Any]) -> dict[str, Any]:
    version, _, commit = str(job.get("code_version") or "").partition("+")
    return {
        "executable": {"cmd": job.get("command"), "version": f"msft {version}" if version else None},
        "source": {"lang": ["python"], "commit": commit, "changed since that commit": job.get("code_dirty")},
        "resources": {
            "seconds": job.get("seconds"),
            "peak memory in MB": job.get("peak_memory_mb"),
            "energy in joules": job.get("energy_joules"),
        },
    }


def _cascade(con: duckdb.DuckDBPyConnection, run: lookup.Run) -> list[lookup.Run]:
    """List the run, the run that it re-ranked, and so on to the first stage."""
    made = [run]
    while (source := made[-1].source_run) is not None and all(source != other.run for other in made):
        made.append(lookup.run_by_id(con, source))
    return made


def _step(con: duckdb.DuckDBPyConnection, run: lookup.Run) -> dict[str, Any]:
    source = lookup.run_by_id(con, run.source_run).name if run.source_run is not None else None
    return {
        "name": run.name,
        "method": run.system,
        "kind": run.kind,
        "parameters": run.parameters,
        "reranks": source,
    }


def _data(con: duckdb.DuckDBPyConnection, of: lookup.Dataset, run: lookup.Run) -> dict[str, Any]:
    source, licence = con.execute(
        "SELECT d.source, c.licence FROM datasets d JOIN collections c USING (collection) WHERE d.dataset = ?",
        [of.dataset],
    ).fetchall()[0]
    training = fetch(
        con,
        """SELECT DISTINCT made_from AS kind, source AS name, teacher, model, revision, prompt,
                  prompt_hash AS "prompt hash"
           FROM student_sources WHERE student = (SELECT name FROM students WHERE student = ?) ORDER BY ALL""",
        [run.student],
    )
    return {
        "test collection": {
            "name": of.collection_name,
            "dataset": of.name,
            "ir_datasets": of.ir_datasets_id,
            "source": Path(source).name if source else None,
            "qrels hash": of.qrels_hash,
            "licence": licence,
        },
        "training data": training,
    }


def _without_nothing(value: Any) -> Any:
    """Remove unknown facts at every depth."""
    if isinstance(value, dict):
        kept = {key: _without_nothing(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, {}, [], "")}
    if isinstance(value, list):
        return [_without_nothing(item) for item in value]
    return value
