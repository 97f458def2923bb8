"""Splits by the names of files and folders alone, as `datasets` finds them where README.md names none."""

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
    """Files by split: `data/SPLIT-00000-of-00001.parquet`, a folder or a file with a split in its name, or else all as train.

    What the names leave out beside splits is reported. Raises UserError: a file fits two splits.
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
            f"{name}: {len(rest):,} file{'s' * (len(rest) > 1)} without the name of a split (such as {rest[0]}) left out, as datasets does."
        )
    return {split: found[split] for split in order}


def shards(names: Sequence[str]) -> Splits:
    """Files named `SPLIT-00000-of-00001`, by split."""
    splits: Splits = {}
    for one in names:
        match = _SHARD.fullmatch(one.rsplit("/", 1)[-1])
        if match:
            splits.setdefault(match["split"], []).append(one)
    return splits


def by_keyword(names: Sequence[str], *, folders: bool) -> Splits:
    """Files with the word of a split in their own names, or those of their folders; a file may be in several."""
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
            f"{name}: {file} lies in a folder of the split {split}, and its own name says {own[0]}; which of them it is for is not "
            "plain. Name the files in `pairs`."
        )


def refuse_shared(name: str, splits: Splits) -> None:
    """Raises UserError: a file is in two splits."""
    places: dict[str, str] = {}
    for split, files in splits.items():
        for file in files:
            if file in places:
                raise UserError(
                    f"{name}: {file} is in the splits {places[file]} and {split}; expected each file in one, as training and held-out "
                    "pairs are apart. Name the files in `pairs`."
                )
            places[file] = split
