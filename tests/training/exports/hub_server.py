"""A small stand-in for the Hugging Face hub on the loopback interface: repositories, commits and large files.

Its error messages tell the `Authorization` header, as careless servers do, and it signs the addresses of uploads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_QWERTYuiopASDFGHjkl"
SIGNATURE = "X-Amz-Signature=0123456789abcdef"


@dataclass
class Repo:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=list)  # files of each, by path


@dataclass
class Hub:
    """What the hub holds, and how it is asked to fail.

    Attributes:
        role: of the token: write or read.
        repos: by `models/owner/name` or `datasets/owner/name`.
        faults: status with which requests whose path holds the key are answered.
    """

    address: str = ""
    role: str = "write"
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers."""
        path = path.partition("?")[0]
        for part, status in self.faults.items():
            if part in path:
                return status, {"error": "as it was asked to"}, {}
        if path == "/api/whoami-v2":
            auth = {"accessToken": {"role": self.role}}
            return 200, {"type": "user", "name": "me", "orgs": [{"name": "lab"}], "auth": auth}, {}
        if path == "/api/validate-yaml":
            wrong = "license: nonsense" in json.loads(body)["content"].replace('"', "")
            return (400, {"errors": [{"message": '"license" must be one of ...'}]}, {}) if wrong else (200, {}, {})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": [self._place(item) for item in json.loads(body)["objects"]]}, {}
        found = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(preupload|commit)/main)?", path)
        if not found or found[1] not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if method == "GET":
            return 200, {"id": found[1].partition("/")[2], "private": self.repos[found[1]].private, "sha": "0"}, {}
        if found[2] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": file, "shouldIgnore": False, "uploadMode": _mode(file)} for file in files]
            return 200, {"files": modes}, {}
        return self._commit(self.repos[found[1]], found[1], body)

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = f"{wanted.get('type', 'model')}s/{wanted['organization']}/{wanted['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this repo"}, {}
        self.repos[name] = Repo(private=wanted.get("visibility") == "private")
        return 200, {"url": f"{self.address}/{name.removeprefix('models/')}"}, {}

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.address}/store/{item['oid']}?{SIGNATURE}"
        return {**item, "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
        repo.commits.append(files)
        url = f"{self.address}/{name.removeprefix('models/')}/commit/1"
        return 200, {"commitUrl": url, "commitOid": "1", "success": True}, {}


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        body = self._body()
        self.hub.requests.append(f"{self.command} {self.path}")
        given = self.headers.get("authorization", "")
        if self.path.startswith("/store/"):
            self.hub.stored[hashlib.sha256(body).hexdigest()] = body
            status, content, headers = self.hub.faults.get("/store/", 200), {"error": "no"}, {}
        elif given != f"Bearer {TOKEN}":
            status, content, headers = 401, {"error": "Invalid credentials"}, {}
            headers = {"X-Error-Message": "Invalid credentials in Authorization header"}
        else:
            status, content, headers = self.hub.answer(self.command, self.path, body)
        if status >= 400:
            content = {**content, "error": f"{content.get('error', '')} to {given}"}
        text = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"content-type": "application/json", "content-length": str(len(text)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at an address of its own."""
    handler = type("Handler", (_Handler,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    hub = handler.hub = Hub(f"http://127.0.0.1:{http.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def use(hub: Hub, monkeypatch: Any, token: str | None = TOKEN) -> None:
    """Have the library ask this hub, with a token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose storage is another service
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
