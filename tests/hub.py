"""A server that speaks as much of the Hugging Face Hub as huggingface_hub asks of it, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_somebody"
Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Repositories with one branch, `main`, of one commit: the newest."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Files] = {}
        self.large: dict[str, bytes] = {}
        """Files that came by LFS, by their SHA-256."""
        self.private: dict[str, bool] = {}
        self.sent: list[str] = []
        """What was downloaded."""

    def commit_of(self, repo: str) -> str:
        content = sorted(self.repos[repo].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()


class Request(BaseHTTPRequestHandler):
    """One request; its method's name is its verb."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        """The tests' output stays empty."""

    def answer(self, data: Any = b"", status: int = 200, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body, path = self.body(), self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            status = 409 if repo in self.server.repos else 200
            self.server.repos.setdefault(repo, {})
            self.server.private.setdefault(repo, asked.get("visibility") == "private")
            return self.answer({"url": f"{self.server.url}/{repo}"}, status)
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        return self.answer({"error": f"the stub has no POST {path}"}, 500)

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            told = line["value"]
            if line["key"] == "file":
                self.server.repos[repo][told["path"]] = base64.b64decode(told["content"])
            elif line["key"] == "lfsFile":
                self.server.repos[repo][told["path"]] = self.server.large[told["oid"]]
        commit = self.server.commit_of(repo)
        self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{commit}", "commitOid": commit})

    def do_PUT(self) -> None:
        data = self.body()
        self.server.large[hashlib.sha256(data).hexdigest()] = data
        self.answer()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if self.knows(found[1], found[2] or "main"):
                self.answer({"id": found[1], "modelId": found[1], "sha": self.server.commit_of(found[1])})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            files = self.server.repos[found[1]].items()
            self.answer([{"type": "file", "path": p, "size": len(d), "oid": blob_id(d)} | lfs(d) for p, d in files])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(found[1], found[2], found[3])
        else:
            self.answer({"error": f"the stub has no {self.command} {path}"}, 500)

    do_HEAD = do_GET

    def knows(self, repo: str, revision: str) -> bool:
        if repo not in self.server.repos:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return False
        if revision not in ("main", self.server.commit_of(repo)):
            self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return False
        return True

    def file(self, repo: str, revision: str, name: str) -> None:
        if not self.knows(repo, revision):
            return
        data = self.server.repos[repo].get(name)
        if data is None:
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return
        if self.command == "GET":
            self.server.sent.append(name)
        etag = lfs(data)["lfs"]["oid"] if lfs(data) else blob_id(data)
        self.answer(data, ETag=f'"{etag}"', X_Repo_Commit=self.server.commit_of(repo))


def blob_id(data: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs(data: bytes) -> dict[str, Any]:
    """What the listing says of a large file."""
    digest = hashlib.sha256(data).hexdigest()
    return {"lfs": {"oid": digest, "size": len(data), "pointerSize": 130}} if data[:1] != b"{" else {}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """The hub, on a free port of this machine."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
