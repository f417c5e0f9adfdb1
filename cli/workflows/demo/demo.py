"""`msft demo`: run the whole path offline on this machine, by the commands that every user has."""

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.command import Context, command
from cli.output import diagnostics
from cli.workflows.demo import summary as demo_report
from cli.workflows.steps import Steps

COLLECTION = "docstrings"
TEST, DEV, TRAIN = (f"{COLLECTION}/{part}" for part in ("test", "dev", "train"))
REGIMES = ("kd", "kd,cl")  # one stage and two; "kd,cl" reuses the stage of "kd"
_ANEW = "`msft demo --fresh` replaces it; `--folder OTHER` keeps it"


@dataclass(frozen=True)
class Profile:
    """The sizes of a demo: ``full`` takes about ten minutes on two cores, ``short`` about one."""

    packages: tuple[str, ...]  # empty: all packages
    passages: int | None
    test: int
    dev: int
    train: int
    depth: int  # candidates that students re-rank
    labelled: int  # candidates that the teacher orders
    pairs: int  # per training stage; 0: as many as the recipe sets
    settings: tuple[str, ...] = ()  # other settings of the recipe


PROFILES = {
    "full": Profile((), None, test=600, dev=120, train=1000, depth=10, labelled=10, pairs=0),
    "short": Profile(
        ("python", "numpy", "networkx", "typer", "rich"),
        1200, test=60, dev=20, train=200, depth=10, labelled=10, pairs=320,
        settings=("layers=2", 'freeze=["embeddings"]'),
    ),
}  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    command(app, "demo", example="msft demo", lists=True)(demo)


def demo(
    context: Context,
    folder: Annotated[
        Path, typer.Option("--folder", help="The folder to work in; the store is FOLDER/demo.duckdb.")
    ] = Path("demo"),
    profile: Annotated[
        str, typer.Option("--profile", help="full (some 10 minutes on two cores) or short (about 1).")
    ] = "full",
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", help="An LLM that can run here (rankzephyr, a folder …) instead of MiniLM and BM25."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove what an earlier demo left in FOLDER.")
    ] = False,
) -> None:
    """Run the whole path offline on real text: collection, BM25, teacher, students, evaluation, questions in SQL.

    Queries are the summary lines of docstrings of the installed Python packages, passages are their bodies. Every
    step is a command that is printed as it runs. Run the demo again to continue or repeat it.
    """
    from labelstore.errors import UsageError

    if profile not in PROFILES:
        raise UsageError(f"no profile {profile!r}", hint=f"--profile {' | '.join(PROFILES)}")
    _require(teacher)
    began = time.monotonic()
    if fresh and (folder / "demo.json").is_file():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    steps = Steps(folder / "demo.duckdb")
    with steps.environment():
        rows = run(steps, folder, profile, teacher)
        found = demo_report.answers(steps)
    minutes = (time.monotonic() - began) / 60
    demo_report.show(rows, found, context.format)
    demo_report.conclude(rows, minutes, folder)


def _require(teacher: str | None) -> None:
    """Check that all steps have what they need: MiniLM, and the engine of a named teacher.

    Raises:
        MsftError: an extra is missing (exit code 4). TeacherError: the teacher is not known.
    """
    from msft.host import extras
    from teachers import models
    from teachers.generate import make_engine

    extras.require("demo")
    if teacher is not None:
        make_engine.require_engine(models.resolve(teacher).engine)


def run(steps: "Steps", folder: Path, profile_name: str, teacher: str | None) -> list[dict[str, Any]]:
    """Run all steps and return the rows of the evaluation."""
    profile = PROFILES[profile_name]
    _collect(folder, profile_name)
    judged = folder / "judged"
    for dataset in (TRAIN, DEV, TEST):
        part = dataset.rpartition("/")[2]
        qrels = judged / f"qrels.{part}.txt"
        steps(
            "data", "add", dataset, "--from", str(judged), "--qrels", str(qrels), "--collection", COLLECTION
        )
    for dataset in (TRAIN, DEV, TEST):
        steps("retrieve", "--dataset", dataset, "--retriever", "bm25s", "--depth", "30")
    steps(
        "negatives", "mine", "--dataset", TRAIN, "--run", "bm25s", "--depth", "30", "--per-query", "7",
        "--name", "hard",
    )  # fmt: skip
    steps(
        "teachers", "generate", *_teacher(teacher), "--dataset", TRAIN, "--run", "bm25s",
        "--depth", str(profile.labelled), "--name", "labels",
    )  # fmt: skip
    for regime in REGIMES:
        steps(
            "students", "train", "--recipe", "demo", "--regime", regime, *_sources(regime), *_size(profile),
            "--name", student(regime),
        )  # fmt: skip
    return steps.rows(
        "eval", "--dataset", TEST, "--depth", str(profile.depth), "--fuse", "--measure", "RR@10", "--measure", "nDCG@10",
    )  # fmt: skip


def student(regime: str) -> str:
    """Name the student of a regime."""
    return f"minilm-{regime.replace(',', '-')}"


def _collect(folder: Path, profile_name: str) -> None:
    """Make the collection, or check that the folder already holds the same one.

    Raises:
        BadInput: if the folder holds the demo of another profile or of other package versions.
    """
    from cli.workflows.demo import collection as demo_collection
    from labelstore.errors import BadInput

    profile = PROFILES[profile_name]
    record = folder / "demo.json"
    held = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if held.get("profile", profile_name) != profile_name:
        raise BadInput(f"{folder} has a demo of profile {held['profile']}", hint=_ANEW)
    with diagnostics.progress("reading docstrings", unit="files") as tick:
        collection = demo_collection.build(
            profile.packages or demo_collection.PACKAGES, limit=profile.passages, progress=tick
        )
    dropped = ", ".join(f"{n:,} {reason}" for reason, (n, _) in collection.drops.items())
    diagnostics.note(
        f"collection {COLLECTION}: {collection.n_read:,} docstrings read = {len(collection.docstrings):,} kept"
        f" + {dropped}; hash {collection.content_hash}"
    )
    if held.get("collection_hash", collection.content_hash) != collection.content_hash:
        raise BadInput(
            f"{folder} has a demo of other docstrings, hash {held['collection_hash']}: packages have changed",
            hint=_ANEW,
        )
    split = demo_collection.Split(profile.test, profile.dev, profile.train)
    sizes = asdict(split)
    if held and held.get("queries") != sizes:
        raise BadInput(
            f"{folder} has a demo with other numbers of queries, made by another version", hint=_ANEW
        )
    demo_collection.write(collection, split, folder)
    about = {"profile": profile_name, "collection_hash": collection.content_hash, "queries": sizes}
    record.write_text(json.dumps(about), encoding="utf-8")


def _teacher(named: str | None) -> list[str]:
    """Make the options of `teachers generate`: the named LLM, or offline the cosine of MiniLM's embeddings with BM25."""
    if named:
        return ["--model", named]
    fused = ["--fuse", "--fuse-by", "scores", "--fuse-weight", "0.8"]
    return ["--model", "minilm", "--engine", "bi-encoder", *fused]


def _sources(regime: str) -> list[str]:
    """Make the options of `students train` that name its training data.

    A passage at the bottom of each list is random, because near candidates alone teach little in minutes.
    """
    negatives = ["--dataset", TRAIN, "--negatives", "hard"] if "cl" in regime else []
    labels = ["--labels", "labels", "--judged-first", "--stratified", "7"] if "kd" in regime else []
    return [*negatives, *labels, "--easy", "1"]


def _size(profile: Profile) -> list[str]:
    pairs = (f"max_pairs={profile.pairs}",) if profile.pairs else ()
    return [a for setting in (*pairs, *profile.settings) for a in ("--set", setting)]
