"""Detect broken checkpoints (load errors, missing tensors, NaN weights) and explain them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.files import read_config, weight_files
from mrpo_pipeline.terminal import one_line


@contextmanager
def told(what: str, expected: str) -> Iterator[None]:
    """Turn a library's error into a UserError: transformers, peft, tokenizers and safetensors raise errors of any type for
    invalid files. Running out of device memory is passed on.

    Args:
        what: start of the message, such as "The adapter A of base can't be loaded".
        expected: its end, with what to do.

    Raises:
        UserError: for any other library error.
    """
    import torch

    try:
        yield
    except (UserError, RunError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"{what} ({reason_of(error)}): {expected}") from error


def reason_of(error: BaseException) -> str:
    """A library's message on one line, at most 400 characters; the error's type where the message is empty."""
    return one_line(error, 400).rstrip(".") or type(error).__name__


def check_tensors(owner: str, folder: Path) -> None:
    """Refuse unreadable safetensors files, and a configuration without positions or with more layers than they have tensors.

    Raises:
        UserError: naming the file.
    """
    files = weight_files(owner, folder)
    config = read_config(owner, folder / "config.json") or {}
    names: set[str] = set()
    for path in files or ():
        with opened(owner, path) as tensors:
            names |= set(tensors.keys())
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions < 1:
        raise UserError(
            f"{folder / 'config.json'} of {owner} says max_position_embeddings {positions}: expected the context's length. Fetch the "
            "model again."
        )
    layers = config.get("num_hidden_layers")
    if files and isinstance(layers, int) and layers > len(names):
        raise UserError(
            f"{folder / 'config.json'} of {owner} says num_hidden_layers {layers:,}, and the weights beside it are {len(names):,} "
            "tensors: expected the configuration of these weights. Fetch the model again."
        )


@contextmanager
def opened(owner: str, path: Path) -> Iterator[Any]:
    """Open a safetensors file; the library checks its header.

    Raises:
        UserError: if it is not a valid one.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise UserError(f"{path} of {owner} is no file: expected safetensors weights. Fetch the model again.")
    try:
        tensors = safe_open(path, framework="pt")
    except Exception as error:
        raise UserError(
            f"{path} of {owner} is damaged ({reason_of(error)}): expected a safetensors file. Fetch the model again."
        ) from error
    with tensors as open_tensors:
        yield open_tensors


def check_numbers(owner: str, folder: Path) -> None:
    """Refuse weights that hold NaN or infinity. Reads all of them, so it is called only after a result was not finite.

    Raises:
        UserError: naming the first such tensor, and their number.
    """
    import torch

    broken: list[str] = []
    for path in weight_files(owner, folder) or ():
        with opened(owner, path) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                    broken.append(f"{name} in {path.name}")
    if broken:
        raise UserError(
            f"The weights in {folder} of {owner} hold NaN or infinite numbers in {len(broken):,} of their tensors (the first is "
            f"{broken[0]}): expected finite ones. Fetch the model again, or name another."
        )


def check_loaded(owner: str, model: str, loaded: Mapping[str, Any], kind: str) -> None:
    """Refuse a model with randomly initialized tensors, which its files lack.

    Args:
        loaded: the report of ``from_pretrained(output_loading_info=True)``.

    Raises:
        UserError: naming some.
    """
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise UserError(
            f"The weights of {model} of {owner} lack {len(missing):,} of the tensors that a {kind} has ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}): they would be drawn at random. Expected a whole checkpoint of a causal "
            "language model. Fetch it again, or name another."
        )
