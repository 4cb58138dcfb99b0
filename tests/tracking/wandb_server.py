"""A small server that takes what `wandb sync` uploads, and gives it back to W&B's public API.

It knows the queries that wandb makes for that, and no others.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

ENTITY = "team"
_CREATED = "2026-01-01T00:00:00Z"


@dataclass
class StoredArtifact:
    id: str
    name: str
    type: str
    digest: str
    version: int
    committed: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    logged_by: list[str] = field(default_factory=list)
    used_by: list[str] = field(default_factory=list)


@dataclass
class Server:
    """What was uploaded: fields of runs as W&B's server calls them, artifacts by their ids, files of runs."""

    address: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[str, StoredArtifact] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)  # names of queries that it does not know

    def artifact(self, name: str) -> StoredArtifact:
        (found,) = (one for one in self.artifacts.values() if one.name == name)
        return found

    def answer(self, name: str, values: dict[str, Any]) -> Any:
        known = getattr(self, f"query_{name}", None)
        if known is None:
            self.refused.append(name)
            raise LookupError(name)
        return known(values)

    def query_Viewer(self, _: Any) -> Any:
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "admin": False, "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    query_GetDefaultEntity = query_Viewer

    def query_ServerFeaturesQuery(self, _: Any) -> Any:
        return {"serverInfo": {"features": []}}

    def query_UpsertBucket(self, values: Any) -> Any:
        run = self.runs.setdefault(values["name"], {"project": values["project"]})
        run |= {key: value for key, value in values.items() if value is not None}
        entity = {"id": "1", "name": ENTITY}
        bucket = {
            "id": f"id-{values['name']}", "name": values["name"], "displayName": run.get("displayName"),
            "description": "", "config": run["config"], "sweepName": None, "historyLineCount": 0,
            "project": {"id": "1", "name": run["project"], "entity": entity},
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def query_CreateRunFiles(self, values: Any) -> Any:
        files = [{"name": name, "uploadUrl": self._upload("run", values["run"], name)} for name in values["files"]]
        return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}

    def query_CreateArtifact(self, values: Any) -> Any:
        wanted = values["input"]
        name, digest, run = wanted["artifactCollectionName"], wanted["digest"], wanted["runName"]
        versions = [one for one in self.artifacts.values() if one.name == name]
        found = next((one for one in versions if one.digest == digest), None)
        if found is None:
            number = len(self.artifacts)
            found = StoredArtifact(str(number), name, wanted["artifactTypeName"], digest, len(versions))
            self.artifacts[found.id] = found
        found.logged_by.append(run)
        sequence = {"id": name, "latestArtifact": None}
        state = "COMMITTED" if found.committed else "PENDING"
        return {"createArtifact": {"artifact": {"id": found.id, "state": state, "artifactSequence": sequence}}}

    def query_CreateArtifactManifest(self, values: Any) -> Any:
        url = self._upload("manifest", values["artifactID"], "manifest")
        file = {"id": "1", "name": "m", "displayName": "m", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": values["artifactID"], "file": file}}}

    def query_CreateArtifactFiles(self, values: Any) -> Any:
        nodes = [
            {
                "id": "1", "name": one["name"], "displayName": one["name"], "uploadHeaders": [], "storagePath": "",
                "uploadUrl": self._upload("artifact", one["artifactID"], one["name"]), "uploadMultipartUrls": None,
                "artifact": {"id": one["artifactID"]},
            }
            for one in values["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def query_CommitArtifact(self, values: Any) -> Any:
        self.artifacts[values["artifactID"]].committed = True
        return {"commitArtifact": {"artifact": {"id": values["artifactID"], "digest": ""}}}

    def query_UseArtifact(self, values: Any) -> Any:
        wanted = values["input"]
        self.artifacts[wanted["artifactID"]].used_by.append(wanted["runName"])
        return {"useArtifact": {"artifact": {"id": wanted["artifactID"]}}}

    def _upload(self, kind: str, owner: str, name: str) -> str:
        return f"{self.address}/store/{kind}/{owner}/{name}"

    def store(self, path: str, content: bytes) -> None:
        _, _, kind, owner, name = unquote(path).split("/", 4)
        if kind == "artifact":
            self.artifacts[owner].files[name] = content
        elif kind == "manifest":
            self.artifacts[owner].manifest = content
        else:
            self.files[f"{owner}/{name}"] = content
            if name == "wandb-summary.json":
                self.summaries[owner] = json.loads(content)

    def query_Runs(self, values: Any) -> Any:
        if not any(run["project"] == values["project"] for run in self.runs.values()):
            return {"project": None}
        wanted = json.loads(values["filters"] or "{}")
        edges = [
            {"node": self._run(name, run), "cursor": name}
            for name, run in self.runs.items()
            if all(_matches(run, key, value) for key, value in wanted.items())
        ]
        page = {"endCursor": None, "hasNextPage": False}
        runs = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": runs}}

    def query_Run(self, values: Any) -> Any:
        name = values["name"]
        return {"project": {"internalId": "1", "run": self._run(name, self.runs[name])}}

    def query_RunOutputArtifacts(self, values: Any) -> Any:
        found = [one for one in self.artifacts.values() if values["run"] in one.logged_by]
        nodes = [
            {
                "__typename": "Artifact", "id": one.id, "artifactSequence": self._collection(one, values["project"]),
                "versionIndex": one.version, "artifactType": {"name": one.type}, "description": None, "metadata": "{}",
                "ttlDurationSeconds": 0, "ttlIsInherited": False, "tags": [], "historyStep": None,
                "state": "COMMITTED", "size": 1, "digest": one.digest, "commitHash": "", "fileCount": len(one.files),
                "createdAt": _CREATED, "updatedAt": _CREATED, "aliases": [],
            }
            for one in found
        ]  # fmt: skip
        page = {"endCursor": None, "hasNextPage": False}
        artifacts = {"totalCount": len(nodes), "pageInfo": page, "edges": [{"node": node} for node in nodes]}
        return {"project": {"run": {"artifacts": artifacts}}}

    def _collection(self, one: StoredArtifact, project: str) -> Any:
        owner = {"id": "1", "internalId": "1", "name": project, "entity": {"name": ENTITY}}
        return {"__typename": "ArtifactSequence", "name": one.name, "project": owner}

    def query_FetchArtifactManifest(self, values: Any) -> Any:
        file = {"directUrl": self._upload("manifest", values["id"], "manifest")}
        return {"artifact": {"currentManifest": {"file": file}}}

    def query_GetArtifactMembershipFileUrls(self, values: Any) -> Any:
        one = self.artifact(values["collection"])
        edges = [
            {"node": {"__typename": "File", "name": name, "directUrl": self._upload("artifact", one.id, name)}}
            for name in one.files
        ]
        files = {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}
        membership = {"artifactMembership": {"files": files}}
        return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", **membership}}}

    def _run(self, name: str, run: dict[str, Any]) -> dict[str, Any]:
        return {
            "projectId": "1", "id": name, "tags": run.get("tags") or [], "name": name,
            "displayName": run["displayName"], "sweepName": None, "state": run.get("state", "finished"),
            "group": run.get("groupName"), "jobType": run.get("jobType"), "commit": None, "readOnly": False,
            "createdAt": _CREATED, "heartbeatAt": _CREATED, "description": "", "notes": "", "historyLineCount": 0,
            "user": {"name": ENTITY, "username": ENTITY}, "config": run["config"],
            "summaryMetrics": json.dumps(self.summaries.get(name, {})), "historyKeys": None, "systemMetrics": "{}",
        }  # fmt: skip


def _matches(run: dict[str, Any], key: str, value: Any) -> bool:
    own = run.get({"group": "groupName"}.get(key, key))
    return own in value["$in"] if isinstance(value, dict) else own == value


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: Server

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            asked = json.loads(body)
            name = asked.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]  # type: ignore[index]
            try:
                answer = {"data": self.held.answer(name, asked.get("variables") or {})}
            except LookupError:
                print(name, asked["query"], asked.get("variables"))
                answer = {"errors": [{"message": f"this server does not know {name}"}]}
            self._reply(json.dumps(answer).encode())
        else:
            self._reply(b"{}")

    def do_PUT(self) -> None:
        self.held.store(self.path, self._body())
        self._reply(b"")

    def do_GET(self) -> None:
        _, _, kind, owner, name = unquote(self.path).split("/", 4)
        artifact = self.held.artifacts[owner]
        self._reply(artifact.manifest if kind == "manifest" else artifact.files[name])

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _reply(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("etag", base64.b64encode(hashlib.md5(content).digest()).decode())
        self.end_headers()
        self.wfile.write(content)


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no error."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server at an address of its own."""
    http = _Quiet(("127.0.0.1", 0), type("Handler", (_Handler,), {}))
    held = http.RequestHandlerClass.held = Server(f"http://127.0.0.1:{http.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
