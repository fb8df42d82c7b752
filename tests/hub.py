"""A hub on loopback: as much of the Hugging Face hub as its own client needs to push and fetch models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "t" * 34


class Hub:
    """Repositories of files by commit; requests need `TOKEN` to write."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files by repository and commit, oldest first."""
        self.private: dict[str, bool] = {}
        self.broken: set[str] = set()
        """Files that are sent with a flipped byte."""
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def files(self, repository: str) -> dict[str, bytes]:
        """Return the files of the last commit."""
        return list(self.commits[repository].values())[-1]

    def commit(self, repository: str, changes: dict[str, bytes]) -> str:
        """Add a commit and return its name."""
        history = self.commits[repository]
        files = (self.files(repository) if history else {}) | changes
        name = hashlib.sha1(repr((len(history), sorted(files.items()))).encode()).hexdigest()
        history[name] = files
        return name

    def revision(self, repository: str, named: str) -> str | None:
        """Return the commit that a revision names."""
        history = self.commits[repository]
        if named == "main":
            return list(history)[-1]
        return named if named in history else None


class _Handler(BaseHTTPRequestHandler):
    served: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repository, revision = found[1], found[2] or "main"
            if (commit := self._commit(repository, revision)) is None:
                return
            siblings = [{"rfilename": name} for name in self.served.commits[repository][commit]]
            self._json(
                {"_id": "1", "id": repository, "modelId": repository, "sha": commit, "siblings": siblings}
            )
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", path):
            if (commit := self._commit(found[1], found[2])) is None:
                return
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.served.commits[found[1]][commit].items()
            ]
            self._json(listed)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        else:
            self._json({"error": f"no such route {path}"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not self._may_write():
            self._json({"error": "Invalid username or password."}, 401)
            return
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = (
                f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            )
            if repository in self.served.commits:
                self._json(
                    {
                        "error": "You already created this model repo",
                        "url": f"{self.served.url}/{repository}",
                    },
                    409,
                )
                return
            self.served.commits[repository] = {}
            self.served.private[repository] = asked.get("visibility") == "private"
            self.served.commit(repository, {".gitattributes": b""})
            self._json({"url": f"{self.served.url}/{repository}", "name": repository})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            asked = [file["path"] for file in json.loads(body)["files"]]
            self._json(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in asked]}
            )
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.splitlines()]
            changes = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = self.served.commit(found[1], changes)
            self._json(
                {
                    "success": True,
                    "commitOid": commit,
                    "commitUrl": f"{self.served.url}/{found[1]}/commit/{commit}",
                }
            )
        else:
            self._json({"error": f"no such route {path}"}, 404)

    def _may_write(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _commit(self, repository: str, revision: str) -> str | None:
        hub = self.served
        if repository not in hub.commits or (hub.private[repository] and not self._may_write()):
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = hub.revision(repository, revision)
        if commit is None:
            self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _file(self, repository: str, revision: str, name: str) -> None:
        if (commit := self._commit(repository, revision)) is None:
            return
        data = self.served.commits[repository][commit].get(name)
        if data is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha1(data).hexdigest()
        if name in self.served.broken:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self._send(
            200,
            data,
            {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"},
        )

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
