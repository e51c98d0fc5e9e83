"""A stand-in of wandb's server, on a free port of this machine: it takes what is uploaded and keeps it."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """What came: the variables of each mutation of a run, and the rows of its history."""

    address: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def _answer(name: str) -> dict[str, Any]:
    """Return what sync needs to know to go on; it passes over the rest."""
    owner = {"id": "e", "name": "me"}
    bucket = {"id": "b", "name": name, "displayName": name, "config": "{}",
              "project": {"id": "p", "name": "voyage", "entity": owner}}  # fmt: skip
    return {
        "upsertBucket": {"bucket": bucket, "inserted": True}, "model": {"bucket": None},
        "viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
        "createRunFiles": {"runID": name, "uploadHeaders": [], "files": []},
    }  # fmt: skip


@contextlib.contextmanager
def serving() -> Iterator[Received]:
    """Serve as long as the block lasts."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            answer: dict[str, Any] = {}
            if "graphql" in self.path:
                asked = json.loads(body)
                given = asked.get("variables") or {}
                if "UpsertBucket" in asked["query"]:
                    received.runs.append(given)
                answer = {"data": _answer(given.get("name") or "run")}
            elif self.path.endswith("file_stream"):
                history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"content": []})
                received.rows += [json.loads(line) for line in history["content"]]
            self._send(json.dumps(answer).encode())

        def do_GET(self) -> None:
            self._send(b"{}")

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
