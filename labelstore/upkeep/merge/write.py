"""Write another store's new rows through the maps, set-wise, in the caller's transaction."""

from dataclasses import dataclass, field

from labelstore.labels import write as labels
from labelstore.negatives import mine as negatives
from labelstore.store.relations import REFERENCES, TARGETS
from labelstore.upkeep.merge.maps import Maps
from labelstore.upkeep.verify.digest import CURRENT_EVALUATIONS, current_rankings

# Histories that were united: a text stands where the longer history has it.
_RENUMBER = """
    UPDATE document_versions SET version = t.version FROM msft_theirs.document_versions t
    JOIN m_documents m ON m.other = t.document WHERE document_versions.document = m.own
      AND document_versions.text_hash = t.text_hash AND document_versions.version < t.version;
    CREATE OR REPLACE TEMP TABLE histories AS
    SELECT v.rowid AS row, v.document,
           row_number() OVER (PARTITION BY v.document ORDER BY v.version, v.text_hash) AS version
    FROM document_versions v SEMI JOIN m_documents m ON m.own = v.document;
    UPDATE document_versions SET version = h.version FROM histories h
    WHERE h.row = document_versions.rowid AND h.version <> document_versions.version;
    UPDATE documents SET version = h.n + 1
    FROM (SELECT document, max(version) AS n FROM histories GROUP BY document) h
    WHERE h.document = documents.document AND documents.version <> h.n + 1"""


@dataclass
class Taken:
    """A table's part in a merge: rows there, new rows among them, and rows here that changed."""

    table: str
    there: int = 0
    new: int = 0
    changed: int = 0
    stale: int = 0  # fresh there, and left out: of a ranking or of judgments that were replaced or grew


@dataclass
class Writer:
    """Writes table by table and counts.

    Attributes:
        replaces: SQL that stands for a column of what comes in, by (table, column).
    """

    maps: Maps
    taken: dict[str, Taken] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Tell whether anything was written; a job row of a merge alone does not count."""
        ((merges,),) = self.maps.rows(
            """SELECT count(*) FROM m_provenance m JOIN msft_theirs.provenance p ON p.job = m.other
               WHERE m.fresh AND p.kind = 'merge'"""
        )
        silent = ("filters", "drops")
        n = sum(t.new + t.changed for t in self.taken.values() if t.table not in silent)
        return bool(n > merges)

    def run(self) -> None:
        """Write everything."""
        self._jobs()
        self._corpora()
        self._rankings()
        self._labels()
        self._generated()
        self._judged()
        self._training()
        self._evaluations()

    # --------------------------------------------------------------------------------------------------- helpers
    def _count(self, table: str, sql: str, *, changed: bool = False) -> int:
        """Run an INSERT, UPDATE or DELETE and count its rows."""
        ((n,),) = self.maps.rows(sql)
        taken = self._of(table)
        if changed:
            taken.changed += n
        else:
            taken.new += n
        return int(n)

    def _of(self, table: str) -> Taken:
        if table not in self.taken:
            ((there,),) = self.maps.rows(f"SELECT count(*) FROM msft_theirs.{table}")
            self.taken[table] = Taken(table, there)
        return self.taken[table]

    def _mapped(self, table: str, owner: str | None = None, fresh: bool = True, **columns: str) -> str:
        """Make a SELECT of a table's new rows there with this store's keys.

        Args:
            owner: the column whose row must be fresh, where the rows are parts of another table's; default: their own key.
            fresh: False: take the rows of known owners as well.
            columns: SQL that stands for a column, over ``t`` (the row there) and ``k`` (the map of its key or owner).
        """
        key = owner or TARGETS[table]
        references = {
            r.column: r.target for r in REFERENCES if r.table == table and r.key == TARGETS[r.target]
        }
        target = references.pop(key) if owner else table
        values, joins = [], [f"JOIN m_{target} k ON k.other = t.{key}{' AND k.fresh' * fresh}"]
        for (column,) in self.maps.rows(
            """SELECT column_name FROM duckdb_columns() WHERE table_name = ? AND database_name = current_database()
               AND schema_name = 'main' ORDER BY column_index""",
            [table],
        ):
            value = columns.get(column)
            if value is None and column == key:
                value = "k.own"
            elif value is None and column in references:
                value = f"r_{column}.own"
                joins.append(f"LEFT JOIN m_{references[column]} r_{column} ON r_{column}.other = t.{column}")
            values.append(f"{value or 't.' + column} AS {column}")
        return f"SELECT {', '.join(values)} FROM msft_theirs.{table} t {' '.join(joins)}"

    def _take(self, table: str, owner: str | None = None, order: str = "", **columns: str) -> int:
        """Insert a table's new rows."""
        mapped = self._mapped(table, owner, True, **columns)
        ordered = f"SELECT * FROM ({mapped}) ORDER BY {order}" if order else mapped
        return self._count(table, f"INSERT INTO {table} BY NAME {ordered}")

    def _fill(self, table: str, *columns: str) -> None:
        """Fill empty values of known rows from the other store."""
        for column in columns:
            self._count(
                table,
                f"""UPDATE {table} SET {column} = t.{column} FROM msft_theirs.{table} t JOIN m_{table} m ON m.other = t.{TARGETS[table]}
                    WHERE NOT m.fresh AND {table}.{TARGETS[table]} = m.own AND {table}.{column} IS NULL
                      AND t.{column} IS NOT NULL""",
                changed=True,
            )

    # ------------------------------------------------------------------------------------------------------ jobs
    def _jobs(self) -> None:
        self._take("provenance", order="job")
        self._count(
            "provenance",
            """UPDATE provenance SET seconds = t.seconds, peak_memory_mb = t.peak_memory_mb,
                      energy_joules = t.energy_joules, status = t.status
               FROM msft_theirs.provenance t JOIN m_provenance m ON m.other = t.job AND NOT m.fresh
               WHERE provenance.job = m.own AND provenance.status = 'running' AND t.status <> 'running'""",
            changed=True,
        )
        for table, columns in (
            ("filters", "step, subject, n_in, n_kept"),
            ("drops", "step, subject, reason, n, example"),
        ):
            self._take(table, "job")
            self._count(
                table,
                f"""INSERT INTO {table} SELECT m.own, {columns} FROM msft_theirs.{table} t
                    JOIN m_provenance m ON m.other = t.job AND NOT m.fresh EXCEPT FROM {table}""",
            )

    # --------------------------------------------------------------------------------------------------- corpora
    def _corpora(self) -> None:
        self._take("collections", order="collection", name="k.name")
        self._fill("collections", "source", "licence")
        self._take("documents", order="document")
        self._texts()
        self._take("queries", order="query")
        self._take("datasets", order="dataset", name="k.name")
        self._fill("datasets", "ir_datasets_id", "source")
        self._count(
            "dataset_queries",
            """INSERT INTO dataset_queries SELECT d.own AS dataset, q.own AS query FROM msft_theirs.dataset_queries t
               LEFT JOIN m_datasets d ON d.other = t.dataset LEFT JOIN m_queries q ON q.other = t.query
               ANTI JOIN (SELECT f.dataset, s.query FROM query_tests s JOIN query_filters f USING (filter)
                          WHERE f.active AND NOT s.passed) gone ON gone.dataset = d.own AND gone.query = q.own
               EXCEPT FROM dataset_queries ORDER BY ALL""",
        )
        self._count(
            "qrels",
            """INSERT INTO qrels SELECT d.own AS dataset, q.own AS query, p.own AS document, t.relevance FROM msft_theirs.qrels t
               LEFT JOIN m_datasets d ON d.other = t.dataset LEFT JOIN m_queries q ON q.other = t.query
               LEFT JOIN m_documents p ON p.other = t.document EXCEPT FROM qrels ORDER BY ALL""",
        )
        self._fill("datasets", "qrels_hash")

    def _texts(self) -> None:
        """Store newer texts of known passages, and both histories, numbered by the time of each text."""
        self._count(
            "documents",
            """UPDATE documents SET title = t.title, text = t.text, text_hash = t.text_hash, version = t.version
               FROM msft_theirs.documents t JOIN m_documents m ON m.other = t.document
               WHERE m.newer AND NOT m.fresh AND documents.document = m.own""",
            changed=True,
        )
        n = self._count(
            "document_versions",
            """INSERT INTO document_versions
               SELECT m.own, t.version, t.title, t.text, t.text_hash, j.own FROM msft_theirs.document_versions t
               JOIN m_documents m ON m.other = t.document JOIN documents d ON d.document = m.own
               LEFT JOIN m_provenance j ON j.other = t.replaced_by
               ANTI JOIN document_versions v ON v.document = m.own AND v.text_hash = t.text_hash
               WHERE m.fresh OR t.text_hash <> d.text_hash""",
        )
        if n:
            self.maps.con.execute(_RENUMBER)

    # -------------------------------------------------------------------------------------------------- rankings
    def _rankings(self) -> None:
        folder = "CASE WHEN t.name = k.name THEN t.folder ELSE 'students/' || k.name END"
        self._take("students", order="student", name="k.name", folder=folder)
        self._take("runs", order="run", name="k.name")
        self._of("candidates")
        for other, own in self.maps.rows("SELECT other, own FROM m_runs WHERE fresh ORDER BY own"):
            self._count(
                "candidates",
                f"""INSERT INTO candidates SELECT {own} AS run, q.own AS query, t.rank, d.own AS document, t.score
                    FROM (FROM msft_theirs.candidates WHERE run = {other}) t
                    LEFT JOIN m_queries q ON q.other = t.query LEFT JOIN m_documents d ON d.other = t.document
                    ORDER BY q.own, t.rank""",
            )
        self._take("minings", order="mining", name="k.name")
        self._take("negatives", "mining", order="mining, query, source_run, source_rank")
        for (mining,) in self.maps.rows(
            """SELECT DISTINCT m.own FROM m_minings m JOIN msft_theirs.negatives n ON n.mining = m.other
               JOIN m_runs r ON r.other = n.source_run JOIN msft_theirs.runs t ON t.run = n.source_run
               WHERE m.fresh AND r.name <> t.name"""
        ):  # its hash is over the names of its runs, too
            content = negatives.content_hash(self.maps.con, mining)
            self.maps.con.execute("UPDATE minings SET content_hash = ? WHERE mining = ?", [content, mining])

    # ---------------------------------------------------------------------------------------------------- labels
    def _labels(self) -> None:
        self._take("teachers", order="teacher")
        self._fill("teachers", "input_price", "output_price", "licence")
        self._take("labelings", order="labeling", name="k.name")
        self._fill("labelings", "first_stage", "reliable_depth", "licence")
        self._count(
            "labelings",
            """UPDATE labelings SET depth = t.depth FROM msft_theirs.labelings t JOIN m_labelings m ON m.other = t.labeling
               WHERE NOT m.fresh AND labelings.labeling = m.own AND labelings.depth < t.depth""",
            changed=True,
        )
        self._take("requests", order="request")
        self._take("request_passages", "request", order="request, position")
        self._take("calls", order="call")
        self._take("permutations", order="permutation")
        self._take("permutation_items", "permutation", order="permutation, rank")
        self._both_labelled()
        self._count(
            "labeling_calls",
            """INSERT INTO labeling_calls SELECT l.own, q.own, t.step, c.own FROM msft_theirs.labeling_calls t
               LEFT JOIN m_labelings l ON l.other = t.labeling LEFT JOIN m_queries q ON q.other = t.query
               LEFT JOIN m_calls c ON c.other = t.call
               ANTI JOIN labeling_calls u ON u.labeling = l.own AND u.query = q.own ORDER BY l.own, q.own, t.step""",
        )
        self._quarantine()
        self._count(
            "canaries",
            """INSERT INTO canaries SELECT k.own, j.own, t.request_key, t.reply_hash, t.reply, t.drifted
               FROM msft_theirs.canaries t LEFT JOIN m_teachers k ON k.other = t.teacher
               LEFT JOIN m_provenance j ON j.other = t.job
               ANTI JOIN canaries c ON c.teacher = k.own AND c.job = j.own AND c.request_key = t.request_key
               ORDER BY j.own, t.request_key""",
        )

    def _both_labelled(self) -> None:
        """Unite queries that both stores labelled alike: the row that counts, its calls, and texts that only one store has."""
        self._count(
            "permutations",
            """UPDATE permutations SET repairs = t.repairs, n_calls = t.n_calls, tokens_in = t.tokens_in,
                      tokens_out = t.tokens_out, disagreement = t.disagreement, settled = t.settled
               FROM msft_theirs.permutations t JOIN m_permutations m ON m.other = t.permutation AND m.take
               WHERE permutations.permutation = m.own""",
            changed=True,
        )
        self.maps.con.execute(
            """DELETE FROM labeling_calls USING permutations p, m_permutations m
               WHERE m.own = p.permutation AND m.take
                 AND labeling_calls.labeling = p.labeling AND labeling_calls.query = p.query"""
        )
        self._count(
            "permutation_items",
            """UPDATE permutation_items SET text_hash = t.text_hash
               FROM msft_theirs.permutation_items t JOIN m_permutations m ON m.other = t.permutation AND NOT m.fresh
               WHERE permutation_items.permutation = m.own AND permutation_items.rank = t.rank
                 AND permutation_items.text_hash IS NULL AND t.text_hash IS NOT NULL""",
            changed=True,
        )

    def _quarantine(self) -> None:
        """Unite failures, except of queries that one store has labelled since."""
        self._count(
            "quarantine",
            """INSERT INTO quarantine
               SELECT l.own, q.own, t.step, t.reason, t.detail, t.attempts, j.own FROM msft_theirs.quarantine t
               JOIN m_labelings l ON l.other = t.labeling LEFT JOIN m_queries q ON q.other = t.query
               LEFT JOIN m_provenance j ON j.other = t.job
               ANTI JOIN quarantine z ON z.labeling = l.own AND z.query IS NOT DISTINCT FROM q.own
                    AND z.step IS NOT DISTINCT FROM t.step AND z.reason = t.reason AND z.detail = t.detail
               ANTI JOIN (FROM permutations WHERE status IN ('ok', 'repaired')) p ON p.labeling = l.own AND p.query = q.own""",
        )
        for (labeling,) in self.maps.rows("SELECT own FROM m_labelings ORDER BY own"):
            self._of("quarantine").changed += labels.release(self.maps.con, labeling)

    # ------------------------------------------------------------------------------- generated queries, judgings
    def _generated(self) -> None:
        """Unite generated queries' origins and filters; a filter that one store has undone is undone."""
        self._count(
            "query_origins",
            """INSERT INTO query_origins
               SELECT q.own, k.own, d.own, t.text_hash, c.own, t.place, t.log_probability FROM msft_theirs.query_origins t
               JOIN m_datasets k ON k.other = t.dataset LEFT JOIN m_queries q ON q.other = t.query
               LEFT JOIN m_documents d ON d.other = t.document LEFT JOIN m_calls c ON c.other = t.call
               ANTI JOIN query_origins u ON u.dataset = k.own AND u.query = q.own ORDER BY k.own, q.own""",
        )
        self._take("query_filters", order="filter")
        self._take("query_tests", "filter", order="filter, query")
        self._count(
            "query_filters",
            """UPDATE query_filters SET active = false FROM msft_theirs.query_filters t JOIN m_query_filters m ON m.other = t.filter
               WHERE query_filters.filter = m.own AND query_filters.active AND NOT t.active""",
            changed=True,
        )
        self._count(
            "dataset_queries",
            """DELETE FROM dataset_queries USING query_tests s JOIN query_filters f USING (filter)
               WHERE f.active AND NOT s.passed AND dataset_queries.dataset = f.dataset AND dataset_queries.query = s.query""",
            changed=True,
        )
        self._count(
            "dataset_queries",
            """INSERT INTO dataset_queries SELECT dataset, query FROM query_origins
               ANTI JOIN (SELECT f.dataset, s.query FROM query_tests s JOIN query_filters f USING (filter)
                          WHERE f.active AND NOT s.passed) USING (dataset, query)
               EXCEPT FROM dataset_queries ORDER BY ALL""",
        )

    def _judged(self) -> None:
        """Unite judgings and checks of negatives passage by passage; a grade or verdict replaces a reply that held none."""
        self._take("judgings", order="judging", name="k.name")
        self._take("checkings", order="checking", name="k.name")
        self._united(
            "llm_judgments",
            "judging",
            ("judging", "query", "document"),
            ("grade", "status", "call", "text_hash"),
        )
        self._united(
            "verdicts",
            "checking",
            ("checking", "query", "document", "stage"),
            ("verdict", "flagged", "status", "call", "text_hash"),
        )

    def _united(self, table: str, owner: str, key: tuple[str, ...], figures: tuple[str, ...]) -> None:
        """Unite a table's rows by their key; the first figure is NULL where a reply held nothing."""
        theirs = f"({self._mapped(table, owner, fresh=False)})"
        same = " AND ".join(f"{table}.{column} = t.{column}" for column in key)
        self._count(
            table,
            f"""UPDATE {table} SET {", ".join(f"{column} = t.{column}" for column in figures)} FROM {theirs} t
                WHERE {same} AND {table}.{figures[0]} IS NULL AND t.{figures[0]} IS NOT NULL""",
            changed=True,
        )
        self._count(
            table,
            f"""INSERT INTO {table} BY NAME SELECT * FROM {theirs} t
                WHERE NOT EXISTS (FROM {table} WHERE {same}) ORDER BY ALL""",
        )

    # -------------------------------------------------------------------------------------------------- training
    def _training(self) -> None:
        self._take("views", order="view")
        self._take(
            "view_sources",
            "view",
            source="""CASE t.kind WHEN 'dataset' THEN (SELECT own FROM m_datasets m WHERE m.other = t.source)
                                  WHEN 'run' THEN (SELECT own FROM m_runs m WHERE m.other = t.source)
                                  WHEN 'mining' THEN (SELECT own FROM m_minings m WHERE m.other = t.source)
                                  ELSE (SELECT own FROM m_labelings m WHERE m.other = t.source) END""",
        )
        self._take("stages", "student", order="student, stage")
        self._take("training_log", "student", order="student, stage, step")
        self._take("calibrations", "student", order="student")
        self._count(
            "stages",
            """UPDATE stages SET view = v.view FROM views v WHERE stages.view IS NULL AND v.view_hash = stages.view_hash""",
            changed=True,
        )

    # ----------------------------------------------------------------------------------------------- evaluations
    def _evaluations(self) -> None:
        """Unite evaluations, except those whose rankings or judgments changed: here, there or by the merge."""
        self._take("evaluations", order="evaluation")
        self._take("query_scores", "evaluation", order="evaluation, query")
        con = self.maps.con
        current_rankings(con)
        con.execute(f"CREATE OR REPLACE TEMP TABLE kept AS SELECT e.evaluation {CURRENT_EVALUATIONS}")
        for table in ("query_scores", "evaluations"):
            ((stale,),) = self.maps.rows(
                f"""SELECT count(*) FROM {table} e JOIN m_evaluations m ON m.own = e.evaluation AND m.fresh
                    ANTI JOIN kept ON kept.evaluation = e.evaluation"""
            )
            self._of(table).new -= stale
            self._of(table).stale += stale
            con.execute(f"DELETE FROM {table} WHERE evaluation NOT IN (FROM kept)")
