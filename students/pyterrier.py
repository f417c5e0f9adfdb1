"""A student as a PyTerrier transformer: it scores the texts of a frame, and ranks each query's.

    import pyterrier as pt
    from students import Reranker
    from students.pyterrier import Rerank

    pipeline = first_stage % 100 >> Rerank(Reranker.load("msft.files/students/ranker"))

The frame needs the columns qid, query, docno and text; `labelstore.pyterrier` makes such frames of a store's runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msft.host import extras
from students.errors import ExitCode, StudentError

extras.require("pyterrier")
import pandas as pd  # noqa: E402 - the check above says how to install them
import pyterrier as pt  # noqa: E402

if TYPE_CHECKING:
    from students.rerank.reranker import Reranker


class Rerank(pt.Transformer):  # type: ignore[misc]
    """Score every row of a frame with a student. Other columns stay; score and rank are replaced.

    Args:
        reranker: a loaded student (`Reranker.load`, `load_reranker`), or its folder.
        text: the column with the passages' texts.
    """

    def __init__(self, reranker: "Reranker | str | Path", *, text: str = "text") -> None:
        if isinstance(reranker, str | Path):
            from students.rerank.reranker import Reranker

            reranker = Reranker.load(reranker)
        self.reranker, self.text = reranker, text

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the frame with the student's scores and ranks; equal scores keep the frame's order.

        Raises:
            StudentError: a column is missing, or a text is (exit code 2).
        """
        missing = [name for name in ("qid", "query", "docno", self.text) if name not in frame.columns]
        if missing:
            raise StudentError(
                f"the frame has no column {', '.join(missing)}: expected qid, query, docno and {self.text}",
                hint="add texts before: pt.text.get_text(dataset, 'text') >> Rerank(…)",
                exit_code=ExitCode.USAGE,
            )
        if frame[self.text].isna().any():
            docno = frame.loc[frame[self.text].isna(), "docno"].iloc[0]
            raise StudentError(f"document {docno} has no text", hint="add its text", exit_code=ExitCode.USAGE)
        found = frame.copy()
        scores = np.empty(len(found), dtype=np.float32)
        groups = [np.asarray(rows) for rows in found.groupby("qid", sort=False).indices.values()]
        lists: list[tuple[str, list[Any]]] = [
            (str(found["query"].iloc[rows[0]]), found[self.text].iloc[rows].tolist()) for rows in groups
        ]
        for rows, part in zip(groups, self.reranker.scores(lists), strict=True):
            scores[rows] = part
        found["score"] = scores.astype(np.float64)
        ranked: pd.DataFrame = pt.model.add_ranks(found)
        return ranked
