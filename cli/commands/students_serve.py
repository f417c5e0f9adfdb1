"""`msft students serve`: a student behind HTTP."""

from typing import Annotated

import typer

from cli.command import Context, command
from cli.output import diagnostics


def add_to(app: typer.Typer) -> None:
    """Add `serve` to the group of students."""
    command(app, "serve", example="msft students serve minilm-cl --port 8080")(serve)


def serve(
    context: Context,
    student: Annotated[str, typer.Argument(help="A student's name, a model's folder, or a Hugging Face id.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 picks a free one.")] = 8080,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")] = "auto",
    max_texts: Annotated[int, typer.Option("--max-texts", help="Texts per request at most.")] = 1000,
    max_body: Annotated[int, typer.Option("--max-body", help="Megabytes per request at most.")] = 16,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", help="Pairs that may wait; beyond, requests get 429.")
    ] = 20_000,
) -> None:
    """Serve re-ranking over HTTP with text-embeddings-inference's /rerank route, /health, /info and /metrics."""
    from students.jobs.serve import serve_student

    serve_student(
        context.store,
        student,
        host=host,
        port=port,
        precision=precision,
        max_texts=max_texts,
        max_body=max_body * 1_000_000,
        max_waiting=max_waiting,
        note=diagnostics.note,
    )
