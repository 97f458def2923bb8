"""Several processes training one policy, as torchrun and accelerate launch start them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from mrpo_pipeline.errors import RunError, UserError

log = logging.getLogger("mrpo")

T = TypeVar("T")

# transformers' own: how long processes wait for each other before they give up.
TIMEOUT_SECONDS = 1800

# What the backends say of a peer that is gone; they have no exception of their own for it.
_LOST = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "socket", "heartbeat", "timed out")


def world_size() -> int:
    """How many processes the launcher started, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """This process among them; 0 is the one that writes results."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """This process among those of its machine; 0 is the one that reads pairs and caches."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def needs_cpu() -> bool:
    """Whether the processes have no accelerator. transformers has to be told: it would take each for a run of its own."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return world_size() > 1 and (accelerator is None or accelerator.type == "mps")


def join(training: Mapping[str, Any]) -> None:
    """Meet the other processes, before transformers would, for the pairs are read by one for all.

    Raises:
        UserError: for more processes than GPUs.
    """
    import torch
    from torch import distributed

    if world_size() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available() and not needs_cpu():
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"{os.environ.get('LOCAL_WORLD_SIZE', world_size())} processes were started on a machine with "
                f"{torch.cuda.device_count()} GPUs: expected one GPU for each. Start as many as there are "
                "(torchrun --nproc-per-node gpu)."
            )
        torch.cuda.set_device(local_rank())
        # Numbers in main memory go round as well: gathered weights, and the word that the pairs are read.
        backend: str | None = "cuda:nccl,cpu:gloo"
    else:
        backend = "gloo" if needs_cpu() else None
    seconds = float(training.get("ddp_timeout") or TIMEOUT_SECONDS)
    distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))


def leave() -> None:
    """Part from the other processes when the work is done; without it the backend warns at exit."""
    from torch import distributed

    if world_size() > 1 and distributed.is_initialized():
        distributed.destroy_process_group()


def refuse_several(command: str) -> None:
    """Stop a command that works in one process only.

    Raises:
        UserError: where the launcher started several.
    """
    if world_size() > 1:
        raise UserError(
            f"{command} was started in {world_size()} processes: expected one, for each would do the same work and write "
            "the same files. Start it without torchrun or accelerate launch; `mrpo train` is what runs in several."
        )


def speak_once() -> None:
    """Let the first process alone say what all would say; errors are said by whom they befall."""
    if rank():
        log.setLevel(logging.ERROR)


class _ToldToEnd(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Tell the user what it means when another process is gone.

    The loss shows in either of two ways, whichever is quicker: the backend's error, or the launcher's SIGTERM to all that
    are left.

    Raises:
        RunError: in place of the backend's error or the signal.
    """
    if world_size() == 1:
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.signal(signal.SIGTERM, _told_to_end)
    try:
        yield
    except (RuntimeError, KeyboardInterrupt) as error:
        text = str(error)
        if in_main_thread:
            # The launcher's signal may still come: this process ends anyway, and says why first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not isinstance(error, _ToldToEnd) and not any(word in text.lower() for word in _LOST):
            raise
        raise RunError(
            f"Process {rank()} of {world_size()} stops: another one ended or no longer answers "
            f"({text.strip().splitlines()[0][:200]}). Its own message, if it left one, stands beside this one; a process "
            "that was killed leaves none (out of memory is the usual cause). Checkpoints are kept: start the same command "
            "again with --resume."
        ) from error
    finally:
        if in_main_thread and signal.getsignal(signal.SIGTERM) is _told_to_end:
            signal.signal(signal.SIGTERM, before)


def _told_to_end(*_: object) -> None:
    raise _ToldToEnd("the launcher sent SIGTERM")


def read_once(read: Callable[[], T], share: Callable[[T, Path], None], open_shared: Callable[[Path], T]) -> T:
    """Read in one process of each machine; the others open what it wrote down for them.

    Args:
        read: what takes long, run by the first process of each machine.
        share: writes its result to a folder. open_shared: reads it from there, and must have opened every file when it
            returns: the folder goes then.

    Raises:
        SystemExit: in the others, where the first one ended.
    """
    if world_size() == 1:
        return read()
    from torch import distributed

    # However long one reads, the others wait for it, and learn at once when it ends.
    waiting = distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    folders: list[Any] = [None] * world_size()
    here: tuple[str, str | None] = (os.environ.get("GROUP_RANK", "0"), None)
    result: T | None = None
    try:
        if local_rank() == 0:
            result = read()
            folder = Path(tempfile.mkdtemp(prefix="mrpo-pairs-"))
            here = (here[0], str(folder))
            share(result, folder)
        try:
            distributed.all_gather_object(folders, here, group=waiting)
        except RuntimeError:
            # The one that read has said why it ended, or the launcher does.
            raise SystemExit(1) from None
        if result is None:
            folder = Path(next(place for machine, place in folders if machine == here[0] and place))
            result = open_shared(folder)
        with explain_lost_processes():
            distributed.barrier(group=waiting)
    finally:
        if here[1] is not None:
            shutil.rmtree(here[1], ignore_errors=True)
    return result
