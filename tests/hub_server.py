"""A stand-in of the Hugging Face Hub on localhost: enough of its protocol to read repositories.

    root/<organisation>/<name>/...   what the repository holds, at every revision

`HubServer` records the paths that were asked for. A repository in `gated` is refused as the Hub
refuses gated ones.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """`with HubServer(root) as hub: ... hub.url ...`"""

    def __init__(self, root: Path, revisions: tuple[str, ...] = ("main",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.revisions = {name: hashlib.sha1(name.encode()).hexdigest() for name in revisions}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(f"{self.command} /{path}")
        if path.startswith("api/models/"):
            organisation, name, *rest = path.removeprefix("api/models/").split("/")
            kind, revision = (rest + ["revision", "main"])[:2] if rest else ("revision", "main")
        else:
            organisation, name, kind, revision, *file = path.split("/")
        repository = f"{organisation}/{name}"
        if not (self.server.root / repository).is_dir():
            self.refuse(404, "RepoNotFound")
        elif repository in self.server.gated:
            self.refuse(403, "GatedRepo")
        elif revision not in (*self.server.revisions, *self.server.revisions.values()):
            self.refuse(404, "RevisionNotFound")
        elif kind == "resolve":
            self.send_file(self.server.root / repository / "/".join(file), revision)
        else:
            self.describe(repository, kind, revision)

    def send_file(self, path: Path, revision: str) -> None:
        if not path.is_file():
            self.refuse(404, "EntryNotFound", revision)
            return
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self.reply(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit(revision)})

    def describe(self, repository: str, kind: str, revision: str) -> None:
        folder = self.server.root / repository
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if kind == "tree":
            answer: object = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                for name, path in zip(names, files, strict=True)
            ]
        else:
            siblings = [{"rfilename": name} for name in names]
            answer = {"id": repository, "sha": self.commit(revision), "siblings": siblings}
        self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, revision: str = "main") -> None:
        commit = self.commit(revision)
        self.reply(status, b"", {"X-Error-Code": code, "X-Repo-Commit": commit})

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def commit(self, revision: str) -> str:
        return self.server.revisions.get(revision, revision)

    def log_message(self, *_: object) -> None:
        """The requests are in `HubServer.requests`, not on stderr."""
