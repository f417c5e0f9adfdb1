"""Datasets registered in ir_datasets by the test, with its own handlers: nothing is fetched."""

from collections.abc import Callable

import ir_datasets
import pytest
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQuery, TrecQrel


class Docs(BaseDocs):
    reads = 0

    def docs_iter(self):
        Docs.reads += 1
        return iter([GenericDoc("007", "bond\u2028james"), GenericDoc("7", "seven"), GenericDoc("8", " ")])

    def docs_cls(self):
        return GenericDoc


class Queries(BaseQueries):
    def __init__(self, *rows: tuple[str, str]) -> None:
        self.rows = rows

    def queries_iter(self):
        return iter([GenericQuery(*row) for row in self.rows])

    def queries_cls(self):
        return GenericQuery


class Qrels(BaseQrels):
    def __init__(self, *rows: tuple[str, str, int]) -> None:
        self.rows = rows

    def qrels_iter(self):
        return iter([TrecQrel(q, d, r, "0") for q, d, r in self.rows])

    def qrels_cls(self):
        return TrecQrel


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    docs = Docs()
    monkeypatch.setattr(Docs, "reads", 0)

    def put(name: str, *handlers) -> None:
        monkeypatch.setitem(ir_datasets.registry._registered, name, Dataset(docs, *handlers))

    return put
