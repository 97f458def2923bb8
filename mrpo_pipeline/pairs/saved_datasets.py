"""Folders that `datasets` saved (`save_to_disk`): which of their Arrow files hold the rows of a split."""

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
    """The Arrow files of a saved folder, in their order; None where `datasets` did not save it.

    Raises UserError: the split is not there, several could be meant, or a file is missing.
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
            f"{folder}: this folder holds one split ({own or 'without a name'}); expected {split!r}, as the recipe's split "
            "names. Name the folder of that split, or leave the split out."
        )
    return _files(folder)


def choose_split(name: str, splits: Sequence[str], wanted: str | None, held_out: bool) -> str:
    """The split of a data set to read: what is asked for, or what is plainly meant, which is reported. Raises UserError."""
    key = "pairs.eval_split (--eval-split)" if held_out else "pairs.split (--split)"
    listed = ", ".join(splits)
    if wanted is not None:
        if wanted not in splits:
            raise UserError(f"{name}: there is no split {wanted!r}; expected one of {listed}. Correct {key}.")
        return wanted
    meant = [one for one in splits if one in (_HELD_OUT if held_out else ("train",))]
    if len(splits) == 1:
        meant = list(splits)
    if len(meant) != 1:
        raise UserError(
            f"{name}: this data set has the splits {listed}, and which one is meant is not given. Name it by {key}."
        )
    report_once(f"{name}: reading the split {meant[0]} (of {listed}).")
    return meant[0]


@functools.cache
def report_once(text: str) -> None:
    """Log once: a command looks for its files several times."""
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
            f"{path}: this description of a saved data set cannot be read ({one_line(error)}). Save the data set again."
        ) from error


def _names(folder: str, name: str, key: str) -> list[str]:
    value = _described(folder, name).get(key)
    # A name from a file must not lead out of the folder.
    if not isinstance(value, list) or not value or any(_leads_out(one) for one in value):
        raise UserError(f"{os.path.join(folder, name)}: `{key}` must be a list of names. Save the data set again.")
    return value


def _leads_out(name: Any) -> bool:
    return not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", "..")


def _files(folder: str) -> list[str]:
    files = _described(folder, "state.json").get("_data_files")
    names: list[Any] = (
        [one.get("filename") for one in files if isinstance(one, dict)] if isinstance(files, list) else []
    )
    if not names or any(_leads_out(name) for name in names):
        raise UserError(f"{folder}: state.json names no Arrow files of this saved data set. Save the data set again.")
    paths = [os.path.join(folder, name) for name in names]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{missing[0]}: this file of a saved data set is missing, though state.json names it. Copy the whole folder."
        )
    return paths
