"""Ray, started for one run on this machine or joined where it runs, and kept quiet."""

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

# Ray puts sockets under its folder, whose whole path may have some hundred characters.
_LONGEST_FOLDER = 40


def require_ray() -> None:
    """Refuse to go on without Ray, before anything else is done."""
    if find_spec("ray") is None:
        raise UserError(
            "Several workers (--workers, --runtime ray) need Ray, which is not installed: run pip install 'mrpo[ray]', on every "
            "machine that takes part, or score in one process (--runtime local --workers 1)."
        )


@contextmanager
def ray_session(where: Literal["local", "ray"], *, cores: int) -> Iterator[Any]:
    """The ``ray`` module, connected.

    A program that has connected to Ray itself keeps its connection. Else ``local`` starts Ray on this machine, for this
    machine alone, and ends it; ``ray`` joins the cluster that ``RAY_ADDRESS`` names, or the one that runs on this machine.

    Args:
        where: which of the two.
        cores: that a Ray started here hands out.

    Raises:
        UserError: where no cluster can be joined.
        RunError: where Ray does not start.
    """
    verbose = logging.getLogger().getEffectiveLevel() <= logging.INFO
    if not verbose:
        # What Ray prints of a dead worker goes to stdout, and would stand in the middle of a report; it is said by us.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    settings = {"log_to_driver": verbose, "logging_level": "INFO" if verbose else "ERROR"}
    with ExitStack() as session:
        folder = tempfile.mkdtemp(prefix="mrpo-ray-", dir=_short_folder())
        leave_no_folder = session.enter_context(ExitStack())
        leave_no_folder.callback(shutil.rmtree, folder, ignore_errors=True)
        # Ray puts the folder in which it starts first on its workers' module path: a module there would shadow the standard
        # library's.
        with _own_signals(), chdir(folder):
            if where == "ray":
                _join(ray, settings)
            else:
                for name, value in _token().items():
                    os.environ[name] = value
                    session.callback(os.environ.pop, name, None)
                try:
                    ray.init(address="local", num_cpus=cores, include_dashboard=False, _temp_dir=folder, **settings)
                except (OSError, RuntimeError, ValueError) as error:
                    leave_no_folder.pop_all()
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
            f"RAY_ADDRESS is {address}, an address of Ray Client, which does not carry what scoring needs: expected HOST:PORT of "
            "the cluster's head, given on a machine of the cluster. Run the command there, or hand it in with "
            "`ray job submit`."
        )
    try:
        if address not in ("auto", "local"):
            _require_listener(address)
        ray.init(address=address, **settings)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"runtime: ray could not join a Ray cluster at {address} ({_line(error)}): expected one that runs and that this "
            "machine is part of. Start it (`ray start --head` here, `ray start --address=HOST:PORT` on each further machine), or "
            "name an existing one's head in RAY_ADDRESS. Where the cluster asks for a token, set RAY_AUTH_MODE=token and put "
            "its token into ~/.ray/auth_token. One machine alone needs none of it (--runtime local --workers N)."
        ) from error


def _require_listener(address: str) -> None:
    """Where nobody listens ``ray.init`` would wait for ever, deaf to Ctrl-C."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("expected HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _token() -> dict[str, str]:
    """The token that Ray asks for by itself on a machine of its own: made for this run where the user has none, for Ray would
    leave one in the home folder."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or (Path.home() / ".ray" / "auth_token").exists():
        return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _own_signals() -> Iterator[None]:
    """``ray.init`` puts its own handler of SIGTERM in place of the program's."""
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
    """Where Ray's folder is made: the usual place for such, unless its path is too long for sockets."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
