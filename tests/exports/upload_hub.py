"""A stub of the Hugging Face hub's API on loopback: data sets, uploads by SHA-256, one commit, range requests.

It serves the requests of huggingface_hub over plain HTTP (without Xet). Rights, quotas and error formats of the real hub
are not covered.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class HubStub:
    """``repos``: name → path → content of the last commit; ``blobs``: uploads by SHA-256; ``commits``: messages;
    ``uploads``: number of blobs sent. ``fail_after``: refuse uploads after this number. ``tokens``: accepted
    tokens; None accepts all requests."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.asked: list[str] = []
        self.sent = 0
        self.uploads = 0
        self.fail_after: int | None = None
        self.tokens: set[str] | None = None
        hub = self

        class Handler(_Handler):
            stub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def commit_id(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    stub: HubStub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.stub.sent += len(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _is_refused(self) -> bool:
        """Answer a request without a known token as the hub does: private data is not found."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.stub.tokens is None or token in self.stub.tokens:
            return False
        message = "Invalid username or password."
        code = {} if self.command == "POST" else {"X_Error_Code": "RepoNotFound"}
        self._answer(401, {"error": message}, X_Error_Message=message, **code)
        return True

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if self._is_refused():
            return None
        self.stub.asked.append(f"POST {path}")
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            if name in self.stub.repos:
                return self._answer(
                    409, {"error": "You already created this repo", "url": f"{self.stub.url}/datasets/{name}"}
                )
            self.stub.repos[name] = {}
            return self._answer(200, {"url": f"{self.stub.url}/datasets/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/datasets/(.+)/preupload/(.+)", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".parquet") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if found := re.fullmatch(r"/datasets/(.+)\.git/info/lfs/objects/batch", path):
            objects = []
            for one in json.loads(body)["objects"]:
                entry = {"oid": one["oid"], "size": one["size"]}
                if one["oid"] not in self.stub.blobs:
                    entry["actions"] = {"upload": {"href": f"{self.stub.url}/upload/{one['oid']}", "header": {}}}
                objects.append(entry)
            return self._answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/datasets/(.+)/commit/(.+)", path):
            files = dict(self.stub.repos[found[1]])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.stub.commits.append(line["value"]["summary"])
                elif line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
                elif line["key"] == "lfsFile":
                    files[line["value"]["path"]] = self.stub.blobs[line["value"]["oid"]]
            self.stub.repos[found[1]] = files
            commit = self.stub.commit_id(found[1])
            return self._answer(
                200,
                {
                    "success": True,
                    "commitOid": commit,
                    "commitUrl": f"{self.stub.url}/datasets/{found[1]}/commit/{commit}",
                },
            )
        if found := re.fullmatch(r"/api/datasets/(.+)/paths-info/(.+)", path):
            asked = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            paths = asked["paths"]
            entries = {
                entry["path"]: entry for path in paths for entry in self._tree(found[1], path.rpartition("/")[0])
            }
            return self._answer(200, [entries[one] for one in paths if one in entries])
        return self._answer(404, {"error": f"not known here: {path}"})

    def do_PUT(self) -> None:
        digest, body = self.path.rpartition("/")[2], self._body()
        if self.stub.fail_after is not None and self.stub.uploads >= self.stub.fail_after:
            return self._answer(403, {"error": "refused by the test"})
        assert hashlib.sha256(body).hexdigest() == digest
        self.stub.blobs[digest] = body
        self.stub.uploads += 1
        return self._answer(200)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self._is_refused():
            return None
        self.stub.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            if found[1] not in self.stub.repos:
                return self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            files = [{"rfilename": name} for name in self.stub.repos[found[1]]]
            return self._answer(
                200,
                {
                    "id": found[1],
                    "sha": self.stub.commit_id(found[1]),
                    "siblings": files,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                },
            )
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            entries = self._tree(found[1], found[3])
            if not entries and found[3]:
                return self._answer(404, {"error": "no such entry"}, X_Error_Code="EntryNotFound")
            return self._answer(200, entries)
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            data = self.stub.repos.get(found[1], {}).get(found[3])
            if data is None:
                return self._answer(404, {"error": "no such entry"}, X_Error_Code="EntryNotFound")
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": self.stub.commit_id(found[1])}
            if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                start, end = int(part[1]), int(part[2] or len(data) - 1)
                return self._answer(
                    206, data[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(data)}", **headers
                )
            return self._answer(200, data, **headers)
        return self._answer(404, {"error": f"not known here: {path}"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _tree(self, repo: str, folder: str) -> list[dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        prefix = f"{folder}/" if folder else ""
        for name, data in self.stub.repos.get(repo, {}).items():
            if not name.startswith(prefix):
                continue
            first, more, _ = name[len(prefix) :].partition("/")
            digest = hashlib.sha1(data).hexdigest()
            if more:
                entries[first] = {"type": "directory", "path": prefix + first, "size": 0, "oid": digest}
            else:
                entries[first] = {"type": "file", "path": name, "size": len(data), "oid": digest}
        return list(entries.values())
