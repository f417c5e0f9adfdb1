"""Write a student as a graph for a runtime, and open graphs again."""

import tempfile
from pathlib import Path

from students.errors import ExitCode, StudentError
from students.rerank import onnx, openvino
from students.rerank.graph import FILES, GraphEncoder
from students.text.frames import Framing


def export_graph(
    source: Path,
    folder: Path,
    backend: str,
    *,
    max_length: int | None,
    int8: bool = False,
    calibrate: openvino.TextLists | None = None,
) -> Path:
    """Write a student's graph, tokenizer and config to a folder; returns the graph's path.

    Args:
        calibrate: lists of the student's domain, which OpenVINO's int8 needs.

    Raises:
        MsftError: the extra is not installed (exit code 4).
        StudentError: the runtime does not support the model, or int8 for OpenVINO has no pairs (exit code 4).
    """
    if backend == "onnx":
        return onnx.export_onnx(source, folder, max_length=max_length, int8=int8)
    if int8 and not calibrate:
        raise StudentError(
            f"{source}: int8 for OpenVINO needs pairs to calibrate it on, and none was given",
            hint="export the student from its store: msft students export STUDENT --format openvino-int8 -o FOLDER",
            exit_code=ExitCode.DATA_MISSING,
        )
    return openvino.export_openvino(
        source, folder, max_length=max_length, calibrate=calibrate if int8 else None
    )


def load_graph(
    path: str | Path,
    backend: str,
    precision: str,
    *,
    max_length: int | None,
    workers: int,
    framing: Framing = Framing(),
    calibrate: openvino.TextLists | None = None,
) -> GraphEncoder:
    """Open a folder's graph; a student without that graph is first exported to a temporary folder.

    Args:
        precision: auto, fp32 or int8; auto is the graph's, or fp32 for a student without a graph.

    Raises:
        StudentError: the precision is not known, or another one than the graph's (exit code 2).
    """
    if precision not in ("auto", "fp32", "int8"):
        raise StudentError(
            f"precision {precision!r} is not known to backend {backend}",
            hint="--precision auto | fp32 | int8, or --backend torch",
            exit_code=ExitCode.USAGE,
        )
    if (Path(path) / FILES[backend]).is_file():
        made = _open(Path(path), backend, max_length, workers, framing)
        if precision not in ("auto", made.precision):
            raise StudentError(
                f"the graph in {path} is in {made.precision}, not in {precision}",
                hint=f"--precision {made.precision}, or export the student again: msft students export",
                exit_code=ExitCode.USAGE,
            )
        return made
    with tempfile.TemporaryDirectory(prefix="msft-graph-") as work:
        export_graph(
            Path(path),
            Path(work),
            backend,
            max_length=max_length,
            int8=precision == "int8",
            calibrate=calibrate,
        )
        return _open(Path(work), backend, max_length, workers, framing)


def _open(folder: Path, backend: str, max_length: int | None, workers: int, framing: Framing) -> GraphEncoder:
    opened = onnx.open_onnx if backend == "onnx" else openvino.open_openvino
    return GraphEncoder(folder, opened(folder, workers), max_length=max_length, framing=framing)
