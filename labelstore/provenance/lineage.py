"""Trace what a student's numbers were made from: evaluations, stages, views, their sources, teachers, prompts.

The result is a tree of nodes; `text` draws it, `rows` makes flat rows. If a source of a view was replaced since, the tree has
the name and hash that the view recorded.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb

from labelstore.store import lookup
from labelstore.store.rows import fetch, named

Row = dict[str, Any]
COLUMNS = ("node", "parent", "level", "what", "name", "hash", "detail", "job")


@dataclass
class Node:
    """A thing with its sources.

    Attributes:
        hash: its content key, where it has one.
        detail: what else there is to say about it, by name.
        job: the command that made it.
    """

    what: str
    name: str
    hash: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    children: list["Node"] = field(default_factory=list)

    def line(self) -> str:
        """Write the node on one line."""
        parts = [f"{self.what} {self.name}"]
        if self.hash:
            parts.append(f"[{self.hash}]")
        told = [
            f"{key.replace('_', ' ')} {_value(value)}"
            for key, value in self.detail.items()
            if value is not None
        ]
        return " ".join(parts) + (": " + ", ".join(told) if told else "")


def lineage(con: duckdb.DuckDBPyConnection, name: str) -> Node:
    """Make the tree of a student.

    Raises:
        DataMissing: no student has that name.
    """
    return _Tree(con).student(lookup.student(con, name).name)


def text(root: Node) -> str:
    """Write the tree in lines; the sources of a node stand below it."""
    return "\n".join(_drawn(root, "", ""))


def _drawn(node: Node, first: str, rest: str) -> Iterator[str]:
    yield first + node.line()
    if node.job:
        yield f"{rest}{'│ ' if node.children else '  '} $ {node.job}"
    for n, child in enumerate(node.children, 1):
        last = n == len(node.children)
        yield from _drawn(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def rows(root: Node) -> list[Row]:
    """List the tree as flat rows: `parent` names another row's `node`, `level` is 0 for the student."""
    flat: list[Row] = []

    def walk(node: Node, parent: int | None, level: int) -> None:
        number = len(flat) + 1
        detail = ", ".join(
            f"{key} {_value(value)}" for key, value in node.detail.items() if value is not None
        )
        values = (number, parent, level, node.what, node.name, node.hash, detail or None, node.job)
        flat.extend(named(COLUMNS, [values]))
        for child in node.children:
            walk(child, number, level + 1)

    walk(root, None, 0)
    return flat


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class _Tree:
    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        self.seen: set[str] = set()  # students on the way up: a base may be a student

    def _rows(self, sql: str, *parameters: Any) -> list[Row]:
        return fetch(self.con, sql, parameters)

    def student(self, name: str) -> Node:
        (s,) = self._rows(
            """SELECT s.student, s.base, s.base_revision, s.regime, s.architecture, s.seed, s.licence, s.weights_hash,
                      p.command, p.code_version, p.code_dirty, p.started_at FROM students s LEFT JOIN provenance p USING (job)
               WHERE s.name = ?""",
            name,
        )
        self.seen.add(name)
        detail = {key: s[key] for key in ("regime", "architecture", "seed", "licence")}
        detail["code"] = _code(s)
        node = Node("student", name, s["weights_hash"], detail, s["command"])
        node.children += self._evaluations(s["student"])
        node.children += self._stages(s["student"])
        node.children.append(self._base(s["base"], s["base_revision"]))
        return node

    def _base(self, base: str, revision: str | None) -> Node:
        own = base.removeprefix("student:")
        known = self._rows("SELECT 1 FROM students WHERE name = ?", own)
        if base.startswith("student:") and known and own not in self.seen:
            return Node("base", base, revision, children=[self.student(own)])
        return Node("base", base, revision)

    def _evaluations(self, student: int) -> list[Node]:
        """List the student's evaluations by its runs."""
        made: dict[int, Node] = {}
        for row in self._rows(
            """SELECT e.run, d.name AS dataset, r.name, r.content_hash, src.name AS source, r.kind, r.depth, e.measure,
                      e.value, e.n_queries, p.command
               FROM evaluations e JOIN runs r ON r.run = e.run JOIN datasets d ON d.dataset = e.dataset
               LEFT JOIN runs src ON src.run = r.source_run LEFT JOIN provenance p ON p.job = r.job
               WHERE r.student = ? ORDER BY d.name, r.name, e.evaluation""",
            student,
        ):
            if row["run"] not in made:
                detail = {"re-ranks": row["source"], "depth": row["depth"], "queries": row["n_queries"]}
                name = f"{row['dataset']}/{row['name']}"
                made[row["run"]] = Node("evaluated run", name, row["content_hash"], detail, row["command"])
            made[row["run"]].detail[row["measure"]] = row["value"]
        return list(made.values())

    def _stages(self, student: int) -> list[Node]:
        nodes = []
        for g in self._rows("SELECT * FROM stages WHERE student = ? ORDER BY stage", student):
            settings = json.loads(g["hyperparameters"])
            learning_rate = settings.get("lr", settings.get("learning_rate"))
            detail = {"loss": g["loss"], "lr": learning_rate, "steps": g["steps"], "pairs": g["pairs"]}
            detail |= {"weights_moved": g["weights_moved"], "stopped_by": g["stopped_by"]}
            node = Node("stage", f"{g['stage']} {g['objective']}", g["weights_hash"], detail)
            node.children += [self._view(view_hash) for view_hash in g["view_hash"].split("+")]
            nodes.append(node)
        return nodes

    def _view(self, view_hash: str) -> Node:
        found = self._rows(
            "SELECT v.*, p.command FROM views v LEFT JOIN provenance p USING (job) WHERE v.view_hash = ?",
            view_hash,
        )
        if not found:
            return Node("view", "of another store", view_hash)
        (v,) = found
        detail = {key: v[key] for key in ("kind", "n_lists", "n_pairs", "seed", "licence")}
        node = Node("view", v["name"], view_hash, detail, v["command"])
        recorded = {(s["kind"], s["hash"]): s["name"] for s in json.loads(v["parameters"]).get("sources", [])}
        for source in self._rows(
            "SELECT kind, source, hash FROM view_sources WHERE view = ? ORDER BY kind, source", v["view"]
        ):
            name = recorded.get((source["kind"], source["hash"]), "unknown")
            node.children.append(self._source(source["kind"], source["source"], source["hash"], name))
        return node

    def _source(self, kind: str, key: int | None, content: str | None, name: str) -> Node:
        make = {
            "dataset": self._dataset,
            "run": self._run,
            "mining": self._mining,
            "labeling": self._labeling,
        }
        node = make[kind](key) if key is not None else None
        if node is None:
            return Node(kind, name, content, {"now": "replaced since, or not in this store"})
        if kind != "labeling" and node.hash != content:
            node.detail["then"] = content  # it was replaced since under its name
        return node

    def _dataset(self, key: int) -> Node | None:
        for d in self._rows(
            """SELECT d.*, c.name AS collection_name, c.licence, p.command,
                      (SELECT count(*) FROM dataset_queries q WHERE q.dataset = d.dataset) AS queries
               FROM datasets d JOIN collections c USING (collection) LEFT JOIN provenance p ON p.job = d.job
               WHERE d.dataset = ?""",
            key,
        ):
            detail = {"collection": d["collection_name"], "role": d["role"], "queries": d["queries"]}
            detail |= {"ir_datasets": d["ir_datasets_id"], "source": d["source"], "licence": d["licence"]}
            return Node("dataset", d["name"], d["qrels_hash"], detail, d["command"])
        return None

    def _run(self, key: int) -> Node | None:
        for r in self._rows(
            """SELECT r.*, d.name AS of, s.name AS student_name, p.command FROM runs r JOIN datasets d USING (dataset)
               LEFT JOIN students s ON s.student = r.student LEFT JOIN provenance p ON p.job = r.job WHERE r.run = ?""",
            key,
        ):
            detail = {key: r[key] for key in ("kind", "system", "depth", "n_queries")}
            node = Node("run", f"{r['of']}/{r['name']}", r["content_hash"], detail, r["command"])
            source = self._run(r["source_run"]) if r["source_run"] is not None else None
            if source is not None:
                node.children.append(source)
            if r["student_name"] and r["student_name"] not in self.seen:
                node.children.append(self.student(r["student_name"]))
            return node
        return None

    def _mining(self, key: int) -> Node | None:
        for m in self._rows(
            """SELECT m.*, d.name AS of, p.command FROM minings m JOIN datasets d USING (dataset)
               LEFT JOIN provenance p ON p.job = m.job WHERE m.mining = ?""",
            key,
        ):
            parameters = json.loads(m["parameters"])
            detail = {"dataset": m["of"], "seed": m["seed"], "negatives": m["n_negatives"]}
            detail |= {
                key: parameters.get(key) for key in ("strategy", "depth", "per_query", "denoise_labels")
            }
            detail |= {"random": parameters["random"]} if "random" in parameters else {}
            node = Node("negatives", m["name"], m["content_hash"], detail, m["command"])
            for source in self._rows(
                "SELECT DISTINCT source_run AS run FROM negatives WHERE mining = ? AND source_run IS NOT NULL ORDER BY 1",
                key,
            ):
                run = self._run(source["run"])
                if run is not None:
                    node.children.append(run)
            for labels in self._rows(
                "SELECT labeling FROM labelings WHERE name = ?", parameters.get("denoise_labels")
            ):
                labeling = self._labeling(labels["labeling"])
                if labeling is not None:
                    node.children.append(labeling)
            node.children += self._verdicts(parameters.get("denoise_verdicts"))
            return node
        return None

    def _verdicts(self, name: str | None) -> list[Node]:
        nodes = []
        for k in self._rows(
            "SELECT k.*, p.command FROM checkings k LEFT JOIN provenance p ON p.job = k.job WHERE k.name = ?",
            name,
        ):
            node = Node("verdicts", k["name"], None, json.loads(k["parameters"]), k["command"])
            node.children += [self._teacher(key) for key in (k["teacher"], k["strong"]) if key is not None]
            nodes.append(node)
        return nodes

    def _labeling(self, key: int) -> Node | None:
        for row in self._rows(
            """SELECT l.*, d.name AS of, p.command,
                      (SELECT count(*) FROM permutations x WHERE x.labeling = l.labeling) AS lists,
                      (SELECT count(*) FROM labeling_calls c WHERE c.labeling = l.labeling) AS calls
               FROM labelings l JOIN datasets d ON d.dataset = l.dataset LEFT JOIN provenance p ON p.job = l.job
               WHERE l.labeling = ?""",
            key,
        ):
            detail = {"dataset": row["of"], "strategy": row["strategy"], "depth": row["depth"]}
            detail |= {"lists": row["lists"], "calls": row["calls"] or None, "origin": row["origin"]}
            if row["origin"] == "combined":
                detail["by"] = json.loads(row["parameters"])["by"]
            node = Node("labels", row["name"], row["origin_hash"], detail, row["command"])
            run = self._run(row["run"]) if row["run"] is not None else None
            if run is not None:
                node.children.append(run)
            elif row["first_stage"]:
                node.children.append(Node("run", row["first_stage"], None, {"now": "not in this store"}))
            if row["origin"] == "combined":
                node.children += self._parts(row["name"], json.loads(row["parameters"]))
            else:
                node.children.append(self._teacher(row["teacher"]))
            return node
        return None

    def _parts(self, name: str, parameters: Row) -> list[Node]:
        """List the labelings that a combined one was made from, each on the way up once."""
        nodes = []
        mark = f"labels {name}"
        self.seen.add(mark)
        for part in parameters["parts"]:
            found = self._rows("SELECT labeling FROM labelings WHERE name = ?", part)
            node = (
                self._labeling(found[0]["labeling"]) if found and f"labels {part}" not in self.seen else None
            )
            nodes.append(node or Node("labels", part, None, {"now": "not in this store"}))
        self.seen.discard(mark)
        return nodes

    def _teacher(self, key: int) -> Node:
        (t,) = self._rows("SELECT * FROM teachers WHERE teacher = ?", key)
        drawn = None if t["sampling"] == "{}" else t["sampling"]
        detail = {"engine": t["engine"], "sampling": drawn, "licence": t["licence"]}
        node = Node("teacher", t["name"], t["teacher_key"], detail)
        if t["model"]:
            node.children.append(Node("model", t["model"], None, {"revision": t["revision"] or "not known"}))
            own = t["model"].removeprefix("student:")
            if (
                t["model"].startswith("student:")
                and own not in self.seen
                and self._rows("SELECT 1 FROM students WHERE name = ?", own)
            ):
                node.children.append(self.student(own))
        if t["prompt"]:
            node.children.append(Node("prompt", t["prompt"], t["prompt_hash"]))
        return node


def _code(row: Row) -> str | None:
    if row["code_version"] is None:
        return None
    return f"msft {row['code_version']}" + (", changed since that commit" if row["code_dirty"] else "")
