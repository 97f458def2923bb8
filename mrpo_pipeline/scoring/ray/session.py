"""Start Ray on this machine for one run, or join a running cluster, and silence its output."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mrpo_pipeline.errors import RunError, UserError

# Characters. Ray creates sockets below its folder, and a socket's path is limited to about a hundred characters.
_LONGEST_FOLDER = 40


def require_ray() -> None:
    """Raise UserError if Ray is not installed."""
    if find_spec("ray") is None:
        raise UserError(
            "Several workers (--workers, --runtime ray) need Ray, which is not installed: run pip install 'mrpo[ray]', on every "
            "machine that takes part, or score in one process (--runtime local --workers 1)."
        )


@contextmanager
def ray_session(where: Literal["local", "ray"], *, cores: int) -> Iterator[Any]:
    """The ``ray`` module, connected.

    A connection that the program already has is used, and kept. Otherwise ``local`` starts Ray on this machine alone and stops it
    at the end; ``ray`` joins the cluster of ``RAY_ADDRESS``, or the one that this machine is part of.

    Args:
        cores: number of CPUs that a local Ray offers.

    Raises:
        UserError: if no cluster can be joined.
        RunError: if Ray does not start.
    """
    verbose = logging.getLogger().getEffectiveLevel() <= logging.INFO
    if not verbose:
        # Ray prints errors of dead workers to stdout, which may carry a report; the scheduler logs them.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    settings = {"log_to_driver": verbose, "logging_level": "INFO" if verbose else "ERROR"}
    with ExitStack() as session:
        folder = tempfile.mkdtemp(prefix="mrpo-ray-", dir=_short_folder())
        folder_removal = session.enter_context(ExitStack())
        folder_removal.callback(shutil.rmtree, folder, ignore_errors=True)
        # Ray puts its working directory first on its workers' sys.path, where a module could shadow the standard library's.
        with _keep_sigterm_handler(), chdir(folder):
            if where == "ray":
                _join(ray, settings)
            else:
                for name, value in _auth_token().items():
                    os.environ[name] = value
                    session.callback(os.environ.pop, name, None)
                try:
                    ray.init(address="local", num_cpus=cores, include_dashboard=False, _temp_dir=folder, **settings)
                except (OSError, RuntimeError, ValueError) as error:
                    folder_removal.pop_all()
                    raise RunError(
                        f"Ray did not start on this machine ({_line(error)}). Its logs are kept in {folder}. Nothing was "
                        "scored; one process needs no Ray (--workers 1)."
                    ) from error
        session.callback(ray.shutdown)
        yield ray


def _join(ray: Any, settings: Mapping[str, Any]) -> None:
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS is {address}, an address of Ray Client, which scoring does not support: expected HOST:PORT of the "
            "cluster's head, on a machine of the cluster. Run the command there, or submit it with `ray job submit`."
        )
    try:
        if address not in ("auto", "local"):
            _require_listener(address)
        ray.init(address=address, **settings)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"runtime: ray could not join a Ray cluster at {address} ({_line(error)}): expected a running cluster that this "
            "machine is part of. Start it (`ray start --head` here, `ray start --address=HOST:PORT` on each further machine), or "
            "name an existing one's head in RAY_ADDRESS. If the cluster requires a token, set RAY_AUTH_MODE=token and put "
            "its token into ~/.ray/auth_token. Workers on this machine alone need no cluster (--runtime local --workers N)."
        ) from error


def _require_listener(address: str) -> None:
    """Raise OSError if nothing listens at the address: ``ray.init`` would wait forever and ignore Ctrl-C."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("expected HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _auth_token() -> dict[str, str]:
    """The environment variable with an auth token for a local Ray. Empty if the user has a token; otherwise a new one, since Ray would
    write its own to the home folder."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or (Path.home() / ".ray" / "auth_token").exists():
        return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Restore the program's SIGTERM handler, which ``ray.init`` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _short_folder() -> str | None:
    """The parent of Ray's folder: the system's temporary folder, unless its path is too long for sockets."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
