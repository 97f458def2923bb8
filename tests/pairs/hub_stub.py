"""A stub of the Hugging Face Hub on loopback with the API endpoints that a data set download uses.

Stubbed: a repository's commit, the list of a commit's files, and the files over HTTP,
with the headers that `huggingface_hub` reads. Not stubbed: the client, its cache, and the readers of the files.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Hub:
    """Data sets by name and revision, gated and broken ones, and the requests received."""

    sets: dict[str, dict[str, Files]]
    gated: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""


def commit_of(revision: str, files: Files) -> str:
    return hashlib.sha1(revision.encode() + repr(sorted(files.items())).encode()).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        parts = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        name, rest = "/".join(parts[:2]), "/".join(parts[2:])
        if name in self.hub.broken:
            return self._send(500, b"{}", body)
        if name not in self.hub.sets:
            return self._send(
                401, b"{}", body, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        kind, _, rest = rest.partition("/")
        kept = self.hub.sets[name]
        known = [one for one in kept if rest == one or rest.startswith(f"{one}/")]
        by_commit = {commit_of(one, files): one for one, files in kept.items()}
        known += [by_commit[one] for one in by_commit if rest == one or rest.startswith(f"{one}/")]
        if kind and not known:
            return self._send(
                404, b"{}", body, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}
            )
        revision = known[0] if kind else "main"
        files = kept[revision]
        commit = commit_of(revision, files)
        if kind in ("", "revision"):
            return self._send(200, json.dumps({"id": name, "sha": commit, "siblings": []}).encode(), body)
        if kind == "tree":
            listed = [
                {"type": "file", "path": one, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for one, data in files.items()
            ]
            return self._send(200, json.dumps(listed).encode(), body)
        if name in self.hub.gated:
            return self._send(
                403, b"{}", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
            )
        file = rest.removeprefix(commit).removeprefix(revision).strip("/")
        if file not in files:
            return self._send(404, b"{}", body, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', "X-Repo-Commit": commit}
        return self._send(200, files[file], body, headers)

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)
