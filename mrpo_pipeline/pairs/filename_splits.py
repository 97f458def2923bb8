"""Splits from the names of files and folders, as `datasets` infers them without a README.md."""

import re
from collections.abc import Sequence

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.saved_datasets import report_once

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARD = re.compile(r"(?P<split>[^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]*")

Splits = dict[str, list[str]]


def splits_by_name(name: str, names: Sequence[str]) -> Splits:
    """Files by split: `data/SPLIT-00000-of-00001.parquet`, else folders or files with a split in their names, else all are train.

    Files without a split are logged and dropped if others have one. Raises UserError: a file matches two splits.
    """
    in_data = [one for one in names if one.startswith("data/") and one.count("/") == 1]
    found = shards(in_data) or by_keyword(names, folders=True) or by_keyword(names, folders=False)
    if not found:
        return {"train": list(names)} if names else {}
    refuse_shared(name, found)
    order = [split for split in _KEYWORDS if split in found] + sorted(set(found) - set(_KEYWORDS))
    within = {one: split for split, files in found.items() for one in files}
    for one in names:
        _refuse_other_split(name, one, within.get(one))
    if len(within) < len(names):
        rest = [one for one in names if one not in within]
        report_once(
            f"{name}: ignoring {len(rest):,} file{'s' * (len(rest) > 1)} without a split in the name (such as {rest[0]}), as datasets does."
        )
    return {split: found[split] for split in order}


def shards(names: Sequence[str]) -> Splits:
    """Files named `SPLIT-00000-of-00001` by split."""
    splits: Splits = {}
    for one in names:
        match = _SHARD.fullmatch(one.rsplit("/", 1)[-1])
        if match:
            splits.setdefault(match["split"], []).append(one)
    return splits


def by_keyword(names: Sequence[str], *, folders: bool) -> Splits:
    """Files with a split keyword in their own name or in the names of their folders; a file may match several."""
    found: Splits = {}
    for one in names:
        *above, last = one.split("/")
        for split in _splits_in(above if folders else [last]):
            found.setdefault(split, []).append(one)
    return found


def _splits_in(parts: Sequence[str]) -> list[str]:
    return [
        split
        for split, words in _KEYWORDS.items()
        if any(re.search(rf"(^|[-._ 0-9])({'|'.join(words)})($|[-._ 0-9])", part) for part in parts)
    ]


def _refuse_other_split(name: str, file: str, split: str | None) -> None:
    own = _splits_in([file.rsplit("/", 1)[-1]])
    if split in _KEYWORDS and own and split not in own:
        raise UserError(
            f"{name}: {file} is in a folder of the split {split}, but its name contains {own[0]}. Name the files of each split in "
            "`pairs`."
        )


def refuse_shared(name: str, splits: Splits) -> None:
    """Raises UserError: a file is in two splits."""
    places: dict[str, str] = {}
    for split, files in splits.items():
        for file in files:
            if file in places:
                raise UserError(
                    f"{name}: {file} is in the splits {places[file]} and {split}; training and held-out pairs must be disjoint. "
                    "Name the files of each split in `pairs`."
                )
            places[file] = split
