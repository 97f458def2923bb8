"""Training in several processes, as torchrun and accelerate launch start them."""

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

# The default of transformers' ddp_timeout.
TIMEOUT_SECONDS = 1800

# Words in the backends' errors for a lost peer; they have no exception type for it.
_LOST = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "socket", "heartbeat", "timed out")


def world_size() -> int:
    """Number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Rank of this process; rank 0 writes the results."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Rank of this process on its machine; local rank 0 reads pairs and caches."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def needs_cpu() -> bool:
    """Whether several processes have no accelerator: transformers needs ``use_cpu`` then, or treats each as a separate run."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return world_size() > 1 and (accelerator is None or accelerator.type == "mps")


def join_process_group(training: Mapping[str, Any]) -> None:
    """Create the process group before transformers does, because one process reads the pairs for all.

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
        # Tensors in main memory are exchanged too: gathered weights, and the barrier after reading the pairs.
        backend: str | None = "cuda:nccl,cpu:gloo"
    else:
        backend = "gloo" if needs_cpu() else None
    seconds = float(training.get("ddp_timeout") or TIMEOUT_SECONDS)
    distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))


def leave_process_group() -> None:
    """Destroy the process group; without this the backend warns at exit."""
    from torch import distributed

    if world_size() > 1 and distributed.is_initialized():
        distributed.destroy_process_group()


def require_one_process(command: str) -> None:
    """Stop a command that runs in one process only.

    Raises:
        UserError: if the launcher started several.
    """
    if world_size() > 1:
        raise UserError(
            f"{command} was started in {world_size()} processes: expected one, for each would do the same work and write "
            "the same files. Start it without torchrun or accelerate launch; `mrpo train` is what runs in several."
        )


def log_on_rank_zero() -> None:
    """Log on rank 0 only; other ranks log errors."""
    if rank():
        log.setLevel(logging.ERROR)


class _Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Explain that another process was lost.

    The loss shows as the backend's error or as the launcher's SIGTERM to the remaining processes, whichever comes first.

    Raises:
        RunError: in place of the backend's error or the signal.
    """
    if world_size() == 1:
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    except (RuntimeError, KeyboardInterrupt) as error:
        text = str(error)
        if in_main_thread:
            # The launcher's signal may still come: this process ends anyway, and reports why first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not isinstance(error, _Terminated) and not any(word in text.lower() for word in _LOST):
            raise
        raise RunError(
            f"Process {rank()} of {world_size()} stops: another process ended or no longer responds "
            f"({text.strip().splitlines()[0][:200]}). Look for its message beside this one; a killed process leaves none "
            "(the usual cause is out of memory). Checkpoints are kept: start the same command again with --resume."
        ) from error
    finally:
        if in_main_thread and signal.getsignal(signal.SIGTERM) is _raise_terminated:
            signal.signal(signal.SIGTERM, before)


def _raise_terminated(*_: object) -> None:
    raise _Terminated("the launcher sent SIGTERM")


def read_once(read: Callable[[], T], share: Callable[[T, Path], None], open_shared: Callable[[Path], T]) -> T:
    """Read in one process of each machine; the others open the files that it writes.

    Args:
        read: called on local rank 0 only.
        share: writes its result to a folder. open_shared: reads the result there. It must have opened every file when it
            returns: the folder is deleted afterwards.

    Raises:
        SystemExit: in the other processes, if the reading process ended.
    """
    if world_size() == 1:
        return read()
    from torch import distributed

    # The others wait however long the reading takes, and notice at once if that process ends.
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
            # The reading process has logged why it ended, or the launcher does.
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
