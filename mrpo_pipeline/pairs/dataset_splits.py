"""Which files of a data set's repository make which subset and split, by the rules of the Hugging Face hub.

The rules are those of `datasets`: what the YAML of README.md names under `configs`, or else the names of files and folders. Only
names are looked at here; no loader script is run, and no file of pairs is opened.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import MAX_CARD_BYTES
from mrpo_pipeline.pairs.saved_datasets import choose_split, report_once
from mrpo_pipeline.pairs.split_names import Splits, by_keyword, refuse_shared, shards, splits_by_name
from mrpo_pipeline.terminal import one_line

_PART = re.compile(r"(?P<stem>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})(?:-[^./]*)?(?P<kind>\.[^/]*)")
_CONVERTED = re.compile(r"(?P<subset>[^/]+)/(?P<split>[^/]+)/\d+\.parquet")


@dataclass(frozen=True)
class Wanted:
    """What is asked for of a data set, and under which name it is reported."""

    name: str
    subset: str | None
    split: str | None
    held_out: bool

    @property
    def subset_key(self) -> str:
        """The setting that names the subset, as messages give it."""
        return "pairs.eval_subset (--eval-subset)" if self.held_out else "pairs.subset (--subset)"

    @property
    def split_key(self) -> str:
        """The setting that names the split, likewise."""
        return "pairs.eval_split (--eval-split)" if self.held_out else "pairs.split (--split)"


def split_files(wanted: Wanted, names: Sequence[str], card: bytes | None, *, complete: bool = True) -> list[str]:
    """The names of the files of one split, sorted.

    `names`: of the repository's files that can hold pairs, with `/` between folders. `card`: its README.md. `complete`: these are all
    its files; otherwise the split that is meant must be plain without the others.
    Raises UserError: the subset or split is not there, several could be meant, or the files cannot be told apart.
    """
    subsets = _subsets(wanted.name, card)
    if subsets:
        taken = _named_files(wanted, names, subsets[_choose_subset(wanted, subsets)], complete)
    else:
        splits = _subset_of_folders(wanted, names)
        taken = splits[_chosen(wanted, splits, complete)]
    _refuse_mixture(wanted.name, taken)
    _refuse_missing_parts(wanted.name, names, taken)
    return sorted(taken)


def folder_files(wanted: Wanted, names: Sequence[str]) -> list[str]:
    """The files of a plain folder to read: all, but where their names are those of several splits."""
    splits = shards(names) or by_keyword(names, folders=False)
    labelled = {one for files in splits.values() for one in files}
    rest = [one for one in names if one not in labelled]
    if wanted.split is None and set(splits) <= {"train"}:
        return list(names)
    if not splits:
        raise UserError(
            f"{wanted.name}: no file in this folder has a split in its name, so the split {wanted.split!r} cannot be taken of it. Name the "
            f"files of that split, and leave {wanted.split_key} out."
        )
    refuse_shared(wanted.name, splits)
    if rest and wanted.split is None:
        split, files = next((split, files) for split, files in splits.items() if split != "train")
        raise UserError(
            f"{wanted.name}: {files[0]} has the split {split} in its name, and {rest[0]} none; whether they belong together is not plain, "
            "as training and held-out pairs are apart. Name the files, or a glob, in `pairs`."
        )
    return splits[choose_split(wanted.name, list(splits), wanted.split, wanted.held_out)]


def _chosen(wanted: Wanted, splits: Splits, complete: bool) -> str:
    taken = choose_split(wanted.name, list(splits), wanted.split, wanted.held_out)
    if not complete and wanted.split is None and len(splits) == 1 and (taken == "train") == wanted.held_out:
        raise UserError(
            f"{wanted.name}: the Hugging Face cache holds the split {taken} of this data set alone, and the list of its splits is not "
            f"there. Connect to the hub (HF_HUB_OFFLINE unset), or name the split by {wanted.split_key}."
        )
    return taken


def names_subsets(name: str, card: bytes | None) -> bool:
    """Whether README.md names subsets. Raises UserError: its YAML cannot be read."""
    return bool(_subsets(name, card))


def _subsets(name: str, card: bytes | None) -> dict[str, dict[str, Any]]:
    lines = (card or b"").lstrip(b"\xef\xbb\xbf").splitlines()
    if not lines or lines[0].rstrip() != b"---":
        return {}
    ends = [number for number, line in enumerate(lines[1:], 1) if line.rstrip() == b"---"]
    if not ends:
        return {}
    configs = _yaml(name, b"\n".join(lines[1 : ends[0]])).get("configs") or []
    if not isinstance(configs, list) or not all(
        isinstance(one, dict) and isinstance(one.get("config_name"), str | int) for one in configs
    ):
        raise UserError(
            f"{name}: `configs` in the YAML of its README.md is not a list of subsets with a config_name each. Name the files of "
            "the data set in `pairs`."
        )
    return {str(one["config_name"]): one for one in configs}


def _yaml(name: str, text: bytes) -> dict[str, Any]:
    import yaml

    try:
        if len(text) > MAX_CARD_BYTES:
            raise ValueError(f"it has {len(text):,} bytes; expected {MAX_CARD_BYTES:,} at most")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: the YAML of its README.md, which names the files of each split, cannot be read ({one_line(error)}). Name the "
            "files of the data set in `pairs`."
        ) from error
    return value if isinstance(value, dict) else {}


def _choose_subset(wanted: Wanted, subsets: dict[str, dict[str, Any]]) -> str:
    listed = ", ".join(subsets)
    if wanted.subset is not None:
        if wanted.subset not in subsets:
            raise UserError(
                f"{wanted.name}: there is no subset {wanted.subset!r}; expected one of {listed}. Correct {wanted.subset_key}."
            )
        return wanted.subset
    marked = [one for one, given in subsets.items() if one == "default" or given.get("default") is True]
    meant = list(subsets) if len(subsets) == 1 else marked
    if len(meant) != 1:
        raise UserError(
            f"{wanted.name}: this data set has the subsets {listed}, and which one is meant is not given. Name it by {wanted.subset_key}."
        )
    if len(subsets) > 1:
        report_once(
            f"{wanted.name}: reading the subset {meant[0]} (of {listed}), which its README.md marks as default."
        )
    return meant[0]


def _named_files(wanted: Wanted, names: Sequence[str], given: dict[str, Any], complete: bool) -> list[str]:
    """The files of a subset's split, as README.md names them."""
    base = given.get("data_dir") or ""
    if not isinstance(base, str):
        raise _unknown_form(wanted.name)
    prefix = base.strip("/") + "/" if base.strip("/.") else ""
    inside = [one.removeprefix(prefix) for one in names if one.startswith(prefix)]
    if not given.get("data_files"):
        splits = splits_by_name(wanted.name, inside)
        return [prefix + one for one in splits[_chosen(wanted, splits, complete)]]
    patterns = _patterns(wanted.name, given["data_files"])
    splits = {
        split: sorted({one for pattern in some for one in matching(inside, pattern.removeprefix("./"))})
        for split, some in patterns.items()
    }
    refuse_shared(wanted.name, splits)
    chosen = choose_split(wanted.name, list(splits), wanted.split, wanted.held_out)
    lacking = [one for one in patterns[chosen] if not matching(inside, one.removeprefix("./"))]
    if lacking and not (splits[chosen] and has_magic(lacking[0])):
        raise UserError(
            f"{wanted.name}: README.md names {prefix}{lacking[0]} as files of the split {chosen}, and there is no such file of a kind that "
            "holds pairs. Download the data set again, or name the files of the data set in `pairs`."
        )
    return [prefix + one for one in splits[chosen]]


def _patterns(name: str, given: Any) -> dict[str, list[str]]:
    if isinstance(given, str):
        return {"train": [given]}
    if isinstance(given, list) and all(isinstance(one, str) for one in given):
        return {"train": given}
    if isinstance(given, dict):
        given = [{"split": split, "path": path} for split, path in given.items()]
    patterns: dict[str, list[str]] = {}
    for one in given if isinstance(given, list) else [None]:
        path = one.get("path") if isinstance(one, dict) else None
        paths = [path] if isinstance(path, str) else path
        split = str(one.get("split")) if isinstance(one, dict) else ""
        if not isinstance(paths, list) or not all(isinstance(each, str) for each in paths) or split in patterns:
            raise _unknown_form(name)
        patterns[split] = paths
    return patterns


def _unknown_form(name: str) -> UserError:
    return UserError(
        f"{name}: the YAML of its README.md names files in a form that is not known; expected `data_files` as patterns, or a list of "
        "`split` and `path`. Name the files of the data set in `pairs`."
    )


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a glob matches: `*` inside one folder, `**` through all."""
    from fsspec.utils import glob_translate

    if pattern in names:
        return [pattern]
    match = re.compile(glob_translate(pattern)).match
    return [one for one in names if match(one)]


def _subset_of_folders(wanted: Wanted, names: Sequence[str]) -> Splits:
    """Where README.md names none: the hub's own conversion to Parquet has `subset/split/0000.parquet`."""
    converted = [match for match in map(_CONVERTED.fullmatch, names) if match]
    if converted and len(converted) == len(names):
        subsets: dict[str, Splits] = {}
        for match in converted:
            subsets.setdefault(match["subset"], {}).setdefault(match["split"], []).append(match[0])
        return subsets[_choose_subset(wanted, {name: {} for name in subsets})]
    if wanted.subset is not None:
        raise UserError(
            f"{wanted.name}: this data set names no subsets, so {wanted.subset!r} cannot be taken of it. Leave {wanted.subset_key} out, or "
            "name the folder or files that are meant."
        )
    return splits_by_name(wanted.name, names)


def _refuse_mixture(name: str, files: Sequence[str]) -> None:
    """The same rows in two formats side by side would count twice."""
    kinds: dict[str, str] = {}
    for file in files:
        kinds.setdefault(re.sub(r"\.(gz|zst)$", "", file.lower()).rsplit(".", 1)[-1], file)
    if len(kinds) > 1:
        raise UserError(
            f"{name}: this split has files of several formats ({', '.join(kinds.values())}), which may hold the same rows twice. Name the "
            "files that are meant in `pairs`."
        )


def _refuse_missing_parts(name: str, names: Sequence[str], taken: Sequence[str]) -> None:
    parts: dict[tuple[str, str, str], set[int]] = {}
    for match in filter(None, map(_PART.fullmatch, names)):
        parts.setdefault((match["stem"], match["count"], match["kind"]), set()).add(int(match["index"]))
    for stem, count, kind in {(m["stem"], m["count"], m["kind"]) for m in map(_PART.fullmatch, taken) if m}:
        found = parts[stem, count, kind]
        lacking = next((index for index in range(int(count)) if index not in found), None)
        if lacking is not None:
            raise UserError(
                f"{name}: {stem}-{lacking:05d}-of-{count}{kind} is missing ({len(found)} of {int(count)} parts are there). Download the "
                "data set again, or name the files in `pairs`."
            )
