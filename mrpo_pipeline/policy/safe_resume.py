"""Read a checkpoint's pickles as data only: transformers and torch keep optimizer, schedule and random states in them.

A pickle can call any function when it is loaded, and a checkpoint folder may come from someone else. So ``--resume`` accepts
only tensors, numbers and their containers.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, EnumType
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError

# Makes torch.load use weights_only=True even where the caller passes False, as torch's reader of FSDP checkpoints does.
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORBIDDEN = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

# The index of a sharded checkpoint, which torch reads with the standard unpickler.
INDEX = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_NAMES = {
    _METADATA: {
        "Metadata",
        "MetadataIndex",
        "ChunkStorageMetadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "collections": {"OrderedDict", "defaultdict"},
}


class _IndexReader(pickle.Unpickler):
    """An unpickler that builds only the types of an index."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in _NAMES.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _enum_member(cls: Any, name: str) -> Enum:
    """The ``getattr`` by which some releases of Python (3.11.2) pickle a member of an enum; for nothing else."""
    if isinstance(cls, EnumType) and name in cls.__members__:
        member: Enum = cls[name]
        return member
    raise pickle.UnpicklingError("it names builtins.getattr")


def check_indexes(checkpoint: Path) -> None:
    """Read the index of every sharded part of a checkpoint before torch does.

    Raises:
        UserError: for a file that is not an index, or contains other types.
    """
    for path in sorted(checkpoint.rglob(INDEX)):
        try:
            with path.open("rb") as file:
                _IndexReader(file).load()
        except Exception as error:  # a damaged pickle may raise anything
            raise _refusal(checkpoint, f"{path.relative_to(checkpoint)}: {error}") from None


@contextmanager
def data_only(checkpoint: Path | None) -> Iterator[None]:
    """Inside this context, torch loads no pickle that could run code.

    Args:
        checkpoint: the one to resume from, if any.

    Raises:
        UserError: if a file of the checkpoint holds more than data; names it if torch does.
    """
    if checkpoint is not None:
        check_indexes(checkpoint)
    before = {name: os.environ.pop(name, None) for name in (_FORCED, _FORBIDDEN)}
    os.environ[_FORCED] = "1"
    try:
        yield
    except BaseException as error:  # torch's reader of sharded checkpoints wraps the cause in a BaseException
        cause = _unpickling(error)
        if checkpoint is None or cause is None:
            raise
        raise _refusal(checkpoint, _reason(cause)) from None
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _unpickling(error: BaseException) -> BaseException | None:
    """The UnpicklingError that an error is, or that it collects from several processes."""
    if isinstance(error, pickle.UnpicklingError):
        return error
    gathered = getattr(error, "failures", None)
    failures = [found[0] for found in gathered.values()] if isinstance(gathered, dict) else []
    return next((found for found in failures if isinstance(found, pickle.UnpicklingError)), None)


def _reason(error: BaseException) -> str:
    """The finding in torch's long message."""
    named = re.search(r"(?:unsupported )?(GLOBAL \S+|operand \d+)", str(error), re.IGNORECASE)
    return f"a pickle of {named[1]}" if named else "a pickle of more than tensors"


def _refusal(checkpoint: Path, found: str) -> UserError:
    return UserError(
        f"--resume found {checkpoint}, a file of which is not what training wrote ({found}): expected tensors and numbers only, and "
        "nothing else was loaded, because a pickle can run code. Delete that checkpoint to resume from the one before, or train "
        "from the start."
    )
