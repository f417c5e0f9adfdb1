"""Match collections with their passages and queries, and datasets, of another store with this one's."""

from labelstore.upkeep.merge.maps import RENAME, SHOWN, Contradiction, Maps, shown


def match_collections(maps: Maps) -> None:
    """Make m_collections, m_documents (newer: whether their text is the newer one) and m_queries."""
    maps.con.execute(
        """CREATE OR REPLACE TEMP TABLE p_documents (other INTEGER, own INTEGER, newer BOOLEAN);
           CREATE OR REPLACE TEMP TABLE p_queries (other INTEGER, own INTEGER)"""
    )
    maps.match_by_name("collection", "collections", _of_collection, _keep_pairs)
    maps.map("documents", "SELECT * FROM p_documents", ", newer")
    maps.map("queries", "SELECT * FROM p_queries")


def _keep_pairs(maps: Maps, other: int, own: int | None) -> None:
    """Add the passages and queries of two collections to p_documents and p_queries."""
    _pair(maps, other, own)
    maps.con.execute("INSERT INTO p_documents SELECT other, own, verdict = 'theirs' FROM paired_documents")
    maps.con.execute("INSERT INTO p_queries SELECT other, own FROM paired_queries")


def _pair(maps: Maps, other: int, own: int | None) -> None:
    """Make paired_documents and paired_queries of two collections; `own` is NULL if an id is new.

    Of two texts of a passage, the one whose history has the other is newer. If neither history has it, or both do and
    have one length, the texts contradict each other.
    """
    maps.con.execute(
        f"""CREATE OR REPLACE TEMP TABLE paired_documents AS
            SELECT o.document AS other, p.document AS own,
                   CASE WHEN p.document IS NULL OR o.text_hash IS NULL OR o.text_hash = p.text_hash THEN 'same'
                        WHEN p.text_hash IS NULL THEN 'theirs'
                        WHEN ours_was.document IS NOT NULL AND (theirs_was.document IS NULL OR o.version > p.version)
                        THEN 'theirs'
                        WHEN theirs_was.document IS NOT NULL AND (ours_was.document IS NULL OR p.version > o.version)
                        THEN 'ours' ELSE 'contradiction' END AS verdict
            FROM (FROM msft_theirs.documents WHERE collection = {other}) o
            LEFT JOIN (FROM documents WHERE collection = {own or -1}) p ON p.doc_id = o.doc_id
            LEFT JOIN (SELECT DISTINCT document, text_hash FROM msft_theirs.document_versions) ours_was
                   ON ours_was.document = o.document AND ours_was.text_hash = p.text_hash
            LEFT JOIN (SELECT DISTINCT document, text_hash FROM document_versions) theirs_was
                   ON theirs_was.document = p.document AND theirs_was.text_hash = o.text_hash;
            CREATE OR REPLACE TEMP TABLE paired_queries AS
            SELECT o.query AS other, p.query AS own, o.text_hash <> p.text_hash AS differs
            FROM (FROM msft_theirs.queries WHERE collection = {other}) o
            LEFT JOIN (FROM queries WHERE collection = {own or -1}) p ON p.query_id = o.query_id"""
    )


def _of_collection(maps: Maps, other: int, name: str, own: int) -> list[Contradiction]:
    _pair(maps, other, own)
    ((here, there),) = maps.rows(
        """SELECT p.licence, o.licence FROM collections p, msft_theirs.collections o
           WHERE p.collection = ? AND o.collection = ?""",
        [own, other],
    )
    found = []
    if None not in (here, there) and here != there:
        hint = f"give both the same licence (`msft sql --write`); or {RENAME}"
        found.append(Contradiction("licence", name, here, there, hint))
    documents = maps.rows(
        """SELECT d.doc_id, concat_ws(' ', p.title, p.text), concat_ws(' ', d.title, d.text), count(*) OVER ()
           FROM paired_documents m JOIN msft_theirs.documents d ON d.document = m.other
           JOIN documents p ON p.document = m.own WHERE m.verdict = 'contradiction' ORDER BY d.doc_id LIMIT ?""",
        [SHOWN],
    )
    queries = maps.rows(
        """SELECT q.query_id, p.text, q.text, count(*) OVER () FROM paired_queries m
           JOIN msft_theirs.queries q ON q.query = m.other JOIN queries p ON p.query = m.own
           WHERE m.differs ORDER BY q.query_id LIMIT ?""",
        [SHOWN],
    )
    hint = f"`msft data add --update` in the store whose text is the older one; or {RENAME}"
    return found + shown("passage", name, documents, hint) + shown("query", name, queries, hint)


def match_datasets(maps: Maps) -> None:
    """Make m_datasets."""
    maps.match_by_name("dataset", "datasets", _of_dataset)


def _of_dataset(maps: Maps, other: int, name: str, own: int) -> list[Contradiction]:
    ((same_collection, *collections, role, their_role, irds, their_irds, qrels, their_qrels),) = maps.rows(
        """SELECT p.collection = m.own, c.name, m.name, p.role, o.role, p.ir_datasets_id, o.ir_datasets_id,
                  p.qrels_hash, o.qrels_hash
           FROM (FROM msft_theirs.datasets WHERE dataset = ?) o JOIN m_collections m ON m.other = o.collection,
                (FROM datasets WHERE dataset = ?) p JOIN collections c ON c.collection = p.collection""",
        [other, own],
    )
    if not same_collection:
        here, there = (f"over collection {collection}" for collection in collections)
        return [Contradiction("dataset", name, here, there, RENAME)]
    found = []
    if role != their_role:
        hint = f"`msft data add --role` makes them the same; or {RENAME}"
        found.append(Contradiction("dataset", name, f"role {role}", f"role {their_role}", hint))
    if None not in (irds, their_irds) and irds != their_irds:
        found.append(Contradiction("dataset", name, irds, their_irds, RENAME))
    if None not in (qrels, their_qrels) and qrels != their_qrels:
        found.append(_of_qrels(maps, other, name, own))
    return found


def _of_qrels(maps: Maps, other: int, name: str, own: int) -> Contradiction:
    ((only_here, only_there, differ, example, grade, their_grade),) = maps.rows(
        """WITH pairs AS (
               SELECT coalesce(p.query, t.query) AS query, coalesce(p.document, t.document) AS document,
                      p.relevance AS here, t.relevance AS there
               FROM (FROM qrels WHERE dataset = ?) p
               FULL JOIN (SELECT q.own AS query, d.own AS document, r.relevance FROM msft_theirs.qrels r
                          JOIN m_queries q ON q.other = r.query JOIN m_documents d ON d.other = r.document
                          WHERE r.dataset = ?) t ON t.query = p.query AND t.document = p.document),
           named AS (
               SELECT here, there, concat_ws(' ', q.query_id, d.doc_id) AS pair FROM pairs
               LEFT JOIN queries q ON q.query = pairs.query LEFT JOIN documents d ON d.document = pairs.document)
           SELECT count(*) FILTER (there IS NULL), count(*) FILTER (here IS NULL), count(*) FILTER (here <> there),
                  min(pair) FILTER (here <> there), arg_min(here, pair) FILTER (here <> there),
                  arg_min(there, pair) FILTER (here <> there) FROM named""",
        [own, other],
    )
    hint = f"`msft data add --update` makes the judgments the same; or {RENAME}"
    if differ:
        of = f"{name} {example}" + (f" and {differ - 1:,} more" if differ > 1 else "")
        return Contradiction("judgment", of, f"grade {grade}", f"grade {their_grade}", hint)
    here, there = f"{only_here:,} judgments that are not there", f"{only_there:,} that are not here"
    return Contradiction("dataset", name, here, there, hint)
