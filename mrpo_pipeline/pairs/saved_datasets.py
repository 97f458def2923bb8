"""Folders written by `datasets.save_to_disk`: the Arrow files of a split."""

import functools
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import MAX_METADATA_BYTES
from mrpo_pipeline.terminal import one_line

log = logging.getLogger("mrpo")

_HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")


def saved_files(folder: str, split: str | None, held_out: bool) -> list[str] | None:
    """Arrow files of a saved data set in order; None if the folder is not one.

    Raises UserError: the split does not exist or is ambiguous, or a file is missing.
    """
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        splits = _names(folder, "dataset_dict.json", "splits")
        taken = choose_split(folder, splits, split, held_out)
        return _files(os.path.join(folder, taken))
    if not os.path.isfile(os.path.join(folder, "state.json")):
        return None
    own = _described(folder, "state.json").get("_split")
    if split is not None and split != own:
        raise UserError(
            f"{folder}: this folder holds {f'the split {own}' if own else 'one unnamed split'}; expected {split!r}. Use the folder of "
            "that split, or remove the split from the recipe."
        )
    return _files(folder)


def choose_split(name: str, splits: Sequence[str], requested: str | None, held_out: bool) -> str:
    """The requested split, or the only plausible one, which is logged. Raises UserError."""
    key = "pairs.eval_split (--eval-split)" if held_out else "pairs.split (--split)"
    listed = ", ".join(splits)
    if requested is not None:
        if requested not in splits:
            raise UserError(f"{name}: the split {requested!r} does not exist; expected one of {listed}. Correct {key}.")
        return requested
    candidates = [one for one in splits if one in (_HELD_OUT if held_out else ("train",))]
    if len(splits) == 1:
        candidates = list(splits)
    if len(candidates) != 1:
        raise UserError(f"{name}: this data set has the splits {listed}. Choose one with {key}.")
    report_once(f"{name}: reading the split {candidates[0]} (of {listed}).")
    return candidates[0]


@functools.cache
def report_once(text: str) -> None:
    """Log once per process: a command resolves its files several times."""
    log.info("%s", text)


def _described(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as stream:
            value = json.loads(stream.read(MAX_METADATA_BYTES))
        if not isinstance(value, dict):
            raise ValueError("an object is expected")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: this file of a saved data set cannot be read ({one_line(error)}). Save the data set again."
        ) from error


def _names(folder: str, name: str, key: str) -> list[str]:
    value = _described(folder, name).get(key)
    # A name from a file must not escape the folder.
    if not isinstance(value, list) or not value or any(_is_unsafe_name(one) for one in value):
        raise UserError(f"{os.path.join(folder, name)}: `{key}` must be a list of names. Save the data set again.")
    return value


def _is_unsafe_name(name: Any) -> bool:
    return not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", "..")


def _files(folder: str) -> list[str]:
    files = _described(folder, "state.json").get("_data_files")
    names: list[Any] = (
        [one.get("filename") for one in files if isinstance(one, dict)] if isinstance(files, list) else []
    )
    if not names or any(_is_unsafe_name(name) for name in names):
        raise UserError(f"{folder}: state.json lists no Arrow files. Save the data set again.")
    paths = [os.path.join(folder, name) for name in names]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{missing[0]}: this file of a saved data set is missing (state.json lists it). Copy the complete folder."
        )
    return paths
