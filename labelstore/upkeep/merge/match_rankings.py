"""Match students, runs and minings of another store with this one's."""

from functools import partial

from labelstore.upkeep.merge.maps import Contradiction, Maps


def match_students(maps: Maps) -> None:
    """Make m_students: the same name with the same weights is the same student."""
    maps.match_by_name("student", "students", _of_student)


def _of_student(maps: Maps, other: int, name: str, own: int) -> list[Contradiction]:
    return maps.compared(
        "student",
        name,
        """SELECT unnest(['weights', 'regime', 'max_length']),
                  unnest([p.weights_hash, p.regime, p.max_length::VARCHAR]),
                  unnest([o.weights_hash, o.regime, o.max_length::VARCHAR])
           FROM students p, msft_theirs.students o WHERE p.student = ? AND o.student = ?""",
        [own, other],
    )


def match_runs(maps: Maps) -> None:
    """Make m_runs: the same name over the same dataset with the same content hash is the same run."""

    def find(dataset: int, name: str) -> int | None:
        found = maps.rows("SELECT run FROM runs WHERE dataset = ? AND name = ?", [dataset, name])
        return int(found[0][0]) if found else None

    settled = []
    for other, name, dataset, dataset_name in maps.rows(
        """SELECT r.run, r.name, m.own, m.name FROM msft_theirs.runs r JOIN m_datasets m ON m.other = r.dataset
           ORDER BY r.run"""
    ):
        full_name = f"{dataset_name}/{name}"
        name, own = maps.settle("run", name, partial(find, dataset), partial(_of_run, maps, other, full_name))
        settled.append((other, name, own))
    maps.settled("runs", settled)


def _of_run(maps: Maps, other: int, name: str, own: int) -> list[Contradiction]:
    return maps.compared(
        "run",
        name,
        """SELECT unnest(['content', 'kind']), unnest([p.content_hash, p.kind]), unnest([o.content_hash, o.kind])
           FROM runs p, msft_theirs.runs o WHERE p.run = ? AND o.run = ?""",
        [own, other],
    )


def match_minings(maps: Maps) -> None:
    """Make m_minings: the same name over the same dataset with the same content is the same mining."""
    maps.match_by_name("negatives", "minings", _of_mining)


def _of_mining(maps: Maps, other: int, name: str, own: int) -> list[Contradiction]:
    """Compare two minings; if a source run was renamed, by content instead of hash, which holds the runs' names."""
    ((renamed,),) = maps.rows(
        """SELECT count(*) FROM (SELECT DISTINCT source_run AS run FROM msft_theirs.negatives WHERE mining = ?)
           JOIN msft_theirs.runs r USING (run) JOIN m_runs m ON m.other = run WHERE m.name <> r.name""",
        [other],
    )
    content = "concat_ws(' ', seed, n_queries, n_negatives, parameters)" if renamed else "content_hash"
    return maps.compared(
        "negatives",
        name,
        f"""SELECT unnest(['dataset', 'content']), unnest([d.name, p.content]), unnest([m.name, o.content])
            FROM (SELECT dataset, {content} AS content FROM minings WHERE mining = ?) p
            JOIN datasets d ON d.dataset = p.dataset,
                 (SELECT dataset, {content} AS content FROM msft_theirs.minings WHERE mining = ?) o
            JOIN m_datasets m ON m.other = o.dataset""",
        [own, other],
    )
