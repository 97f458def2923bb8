"""An S3 server (moto) on loopback in its own process, and a TCP forwarder to it that can be cut.

moto keeps its objects in memory, so a restarted server has lost them. A server that goes down and comes back is simulated
by the forwarder instead: it resets open connections, refuses new ones, and later answers on the same port. moto checks
whether an object exists and then writes it, without a lock. So this server handles one request at a time, which makes each
atomic, as in S3.

Buckets with some names behave like stores other than AWS, or without write access; see ``Stores``.

Run as a script, it serves: ``loopback_s3.py LOG`` prints its port and appends a line of JSON for each request to LOG.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

OWNER = "owner"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "loopback",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class Stores:
    """WSGI middleware: one request at a time, written to a log, and answered as the bucket's name says.

    ``read-only…``: writes are denied, but for the tests' own client. ``unconditional…``: conditional PUTs are answered
    501. ``deaf…``: the condition is ignored. ``busy…``: each object's first conditional PUT is answered 409, as S3 does
    when two collide. ``terse…``: a failed condition is reported by its status code only.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]], log: Path) -> None:
        self._application = application
        self._log = log
        self._lock = threading.Lock()
        self._met: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            told: list[str] = []

            def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                told.append(status)
                return start_response(status, headers, *rest)

            body = b"".join(self._answer(environ, answer))
            record = {
                "method": environ["REQUEST_METHOD"],
                "path": environ["PATH_INFO"],
                "query": environ.get("QUERY_STRING", ""),
                "range": environ.get("HTTP_RANGE", ""),
                "status": int(told[0].split()[0]),
                "sent": len(body) if environ["REQUEST_METHOD"] != "HEAD" else 0,
            }
            with open(self._log, "a") as file:
                file.write(json.dumps(record) + "\n")
            return [body]

    def _answer(self, environ: dict[str, Any], answer: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        bucket, _, key = path.strip("/").partition("/")
        conditional = "HTTP_IF_NONE_MATCH" in environ and method == "PUT"
        ours = f"Credential={OWNER}/" in environ.get("HTTP_AUTHORIZATION", "")
        if bucket.startswith("read-only") and not ours and method in ("PUT", "POST", "DELETE") and key:
            return self._refuse(answer, "403 Forbidden", "AccessDenied", "Access Denied")
        if bucket.startswith("unconditional") and conditional:
            return self._refuse(answer, "501 Not Implemented", "NotImplemented", "A header implies functionality…")
        if bucket.startswith("busy") and conditional and path not in self._met:
            self._met.add(path)
            return self._refuse(answer, "409 Conflict", "ConditionalRequestConflict", "A conflicting operation")
        if bucket.startswith("deaf"):
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if bucket.startswith("terse") and conditional:
            told: list[Any] = []
            body = list(self._application(environ, lambda *given: told.append(given)))
            if told[0][0].startswith("412"):
                return self._refuse(answer, "412 Precondition Failed", "PreconditionFailed", "It did not hold")
            answer(*told[0])
            return body
        return self._application(environ, answer)

    @staticmethod
    def _refuse(answer: Callable[..., Any], status: str, code: str, message: str) -> Iterable[bytes]:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        answer(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


def serve(log: Path) -> None:
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Stores(DomainDispatcherApplication(create_backend_app), log)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    print(server.server_port, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # ends when the parent process does


class Line:
    """A TCP forwarder on its own port, in threads.

    Attributes:
        port: where it listens.
        cut_after: client bytes still forwarded before everything is cut; None for no limit.
        lose_answers: this many answers are not forwarded: the connection is closed instead.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._pairs: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.cut_after: int | None = None
        self.lose_answers = 0
        self.port = 0
        self._listener: socket.socket | None = None
        self.restore()

    def restore(self) -> None:
        """Answer on the port (again)."""
        self.cut_after = None
        listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """Reset open connections, and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            open_now, self._pairs = self._pairs, set()
        for one in open_now:
            _reset(one)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                if self._listener is not listener:
                    _reset(client)
                    _reset(server)
                    return
                self._pairs |= {client, server}
            for pump in (self._up, self._down):
                threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if self.cut_after is not None:
                    data = data[: self.cut_after]
                    self.cut_after -= len(data)
                server.sendall(data)
                if self.cut_after == 0:
                    self.cut()
        self._drop(client, server)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                # "100 Continue" only requests the body: nothing is written yet.
                if self.lose_answers and not data.startswith(b"HTTP/1.1 100"):
                    self.lose_answers -= 1
                    break
                client.sendall(data)
        self._drop(client, server)

    def _drop(self, *ends: socket.socket) -> None:
        with self._lock:
            self._pairs -= set(ends)
        for one in ends:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _reset(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


class LoopbackS3:
    """The server, the forwarder to it, and what an independent client (boto3) sees there."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "requests.jsonl"
        self._log.touch()
        command = [sys.executable, __file__, str(self._log)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self.line = Line(port)
        # The tests' own client does not use the forwarder: it sees the store while the forwarder is cut.
        self.client = self._client(port)
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.line.port}"}

    def _client(self, port: int) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id=OWNER,
            aws_secret_access_key="not-a-secret",
            region_name="us-east-1",
        )

    def close(self) -> None:
        self.line.cut()
        self._process.kill()
        self._process.wait()

    def requests(self) -> list[dict[str, Any]]:
        """All requests answered so far, in order."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def bucket(self, name: str) -> str:
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def stop(self) -> None:
        """Pause the server: it accepts connections and never answers."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def keys(self, url: str) -> dict[str, int]:
        """Name → size of every object under the URL, relative to it."""
        bucket, prefix = _split(url)
        found: dict[str, int] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            found |= {one["Key"][len(prefix) :]: one["Size"] for one in page.get("Contents", [])}
        return found

    def get(self, url: str, name: str) -> bytes:
        bucket, prefix = _split(url)
        return bytes(self.client.get_object(Bucket=bucket, Key=prefix + name)["Body"].read())

    def put(self, url: str, name: str, data: bytes) -> None:
        bucket, prefix = _split(url)
        self.client.put_object(Bucket=bucket, Key=prefix + name, Body=data)

    def delete(self, url: str, name: str) -> None:
        bucket, prefix = _split(url)
        self.client.delete_object(Bucket=bucket, Key=prefix + name)


def _split(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, f"{prefix}/" if prefix else ""


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
