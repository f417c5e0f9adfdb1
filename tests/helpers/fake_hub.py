"""A server with the Hub's routes for making a repository and committing files to it, which are kept in memory."""

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from served import serving_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_test"


@dataclass
class FakeHub:
    """What was made: repository -> kind, whether private, and its files."""

    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repos[repo]["files"]


@contextlib.contextmanager
def hub() -> Iterator[FakeHub]:
    """Run the server until the block ends."""
    held = FakeHub()

    def allowed(request: Request) -> bool:
        held.requests.append(f"{request.method} {request.url.path}")
        return request.headers.get("authorization") == f"Bearer {TOKEN}"

    async def create(request: Request) -> Response:
        if not allowed(request):
            return JSONResponse({"error": "Invalid username or password."}, 401)
        body = await request.json()
        repo = f"{body['organization']}/{body['name']}" if body.get("organization") else f"me/{body['name']}"
        kind = body.get("type", "model")
        address = f"{held.url}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        if repo in held.repos:
            return JSONResponse({"error": "You already created this repo", "url": address}, 409)
        private = body.get("private", body.get("visibility") == "private")
        held.repos[repo] = {"kind": kind, "private": private, "files": {}}
        return JSONResponse({"url": address, "name": repo, "id": repo})

    async def preupload(request: Request) -> Response:
        body = await request.json()
        return JSONResponse(
            {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in body["files"]
                ]
            }
        )

    async def commit(request: Request) -> Response:
        repo = f"{request.path_params['owner']}/{request.path_params['name']}"
        if not allowed(request):
            return JSONResponse({"error": "no"}, 401)
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                held.files(repo)[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return JSONResponse(
            {"commitUrl": f"{held.url}/{repo}/commit/1", "commitOid": "1" * 40, "success": True}
        )

    async def validate(request: Request) -> Response:
        held.requests.append(f"{request.method} {request.url.path}")
        bad = "license:" not in (await request.json())["content"]
        errors = [{"message": '"license" is missing'}] if bad else []
        return JSONResponse({"errors": errors, "warnings": []}, 400 if bad else 200)

    async def info(request: Request) -> Response:
        repo = f"{request.path_params['owner']}/{request.path_params['name']}"
        return JSONResponse({"id": repo, "sha": "1" * 40, "private": True, "siblings": [], "tags": []})

    place = "/api/{kind}/{owner}/{name}"
    app = Starlette(
        routes=[
            Route("/api/repos/create", create, methods=["POST"]),
            Route("/api/validate-yaml", validate, methods=["POST"]),
            Route(place + "/preupload/{revision}", preupload, methods=["POST"]),
            Route(place + "/commit/{revision}", commit, methods=["POST"]),
            Route(place + "/revision/{revision}", info),
            Route(place, info),
        ]
    )
    with serving_app(app) as url:
        held.url = url
        yield held
