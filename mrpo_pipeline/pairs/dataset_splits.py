"""Files of each subset and split of a data set repository, by the rules of the Hugging Face Hub.

As in `datasets`: `configs` in the YAML of README.md, or else the names of files and folders. Only names are used; no loader script is
run and no data file is opened.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import has_magic
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import MAX_CARD_BYTES
from mrpo_pipeline.pairs.filename_splits import Splits, by_keyword, refuse_shared, shards, splits_by_name
from mrpo_pipeline.pairs.saved_datasets import choose_split, report_once
from mrpo_pipeline.terminal import one_line

_PART = re.compile(r"(?P<stem>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})(?:-[^./]*)?(?P<kind>\.[^/]*)")
_CONVERTED = re.compile(r"(?P<subset>[^/]+)/(?P<split>[^/]+)/\d+\.parquet")


@dataclass(frozen=True)
class SplitRequest:
    """Requested subset and split of a data set, and its name for messages."""

    name: str
    subset: str | None
    split: str | None
    held_out: bool

    @property
    def subset_key(self) -> str:
        """Setting of the subset, for messages."""
        return "pairs.eval_subset (--eval-subset)" if self.held_out else "pairs.subset (--subset)"

    @property
    def split_key(self) -> str:
        """Setting of the split, for messages."""
        return "pairs.eval_split (--eval-split)" if self.held_out else "pairs.split (--split)"


def split_files(request: SplitRequest, names: Sequence[str], card: bytes | None, *, complete: bool = True) -> list[str]:
    """Files of one split, sorted.

    `names`: data files of the repository, separated by `/`. `card`: its README.md. `complete`: whether `names` are all its files;
    otherwise the split must be unambiguous without the others.
    Raises UserError: the subset or split does not exist or is ambiguous, or files belong to several splits.
    """
    subsets = _subsets(request.name, card)
    if subsets:
        taken = _named_files(request, names, subsets[_choose_subset(request, subsets)], complete)
    else:
        splits = _subset_of_folders(request, names)
        taken = splits[_chosen(request, splits, complete)]
    _refuse_mixture(request.name, taken)
    _refuse_missing_parts(request.name, names, taken)
    return sorted(taken)


def folder_files(request: SplitRequest, names: Sequence[str]) -> list[str]:
    """Files of a plain folder: all, unless their names belong to several splits."""
    splits = shards(names) or by_keyword(names, folders=False)
    labelled = {one for files in splits.values() for one in files}
    rest = [one for one in names if one not in labelled]
    if request.split is None and set(splits) <= {"train"}:
        return list(names)
    if not splits:
        raise UserError(
            f"{request.name}: no file in this folder has a split in its name, so the split {request.split!r} cannot be found. Name its "
            f"files, and remove {request.split_key}."
        )
    refuse_shared(request.name, splits)
    if rest and request.split is None:
        split, files = next((split, files) for split, files in splits.items() if split != "train")
        raise UserError(
            f"{request.name}: {files[0]} has the split {split} in its name, but {rest[0]} has none, so its split is unclear. Name the "
            "files, or a glob, in `pairs`."
        )
    return splits[choose_split(request.name, list(splits), request.split, request.held_out)]


def _chosen(request: SplitRequest, splits: Splits, complete: bool) -> str:
    taken = choose_split(request.name, list(splits), request.split, request.held_out)
    if not complete and request.split is None and len(splits) == 1 and (taken == "train") == request.held_out:
        raise UserError(
            f"{request.name}: only the split {taken} of this data set is in the Hugging Face cache, without the list of its splits. Go "
            f"online (unset HF_HUB_OFFLINE), or choose the split with {request.split_key}."
        )
    return taken


def has_subsets(name: str, card: bytes | None) -> bool:
    """Whether README.md defines subsets. Raises UserError: its YAML is invalid."""
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
            f"{name}: `configs` in the YAML of README.md is not a list of subsets with a config_name each. Name the data files in "
            "`pairs`."
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
            f"{name}: the YAML of README.md, which defines the splits, cannot be read ({one_line(error)}). Name the data files in "
            "`pairs`."
        ) from error
    return value if isinstance(value, dict) else {}


def _choose_subset(request: SplitRequest, subsets: dict[str, dict[str, Any]]) -> str:
    listed = ", ".join(subsets)
    if request.subset is not None:
        if request.subset not in subsets:
            raise UserError(
                f"{request.name}: the subset {request.subset!r} does not exist; expected one of {listed}. Correct {request.subset_key}."
            )
        return request.subset
    marked = [one for one, given in subsets.items() if one == "default" or given.get("default") is True]
    candidates = list(subsets) if len(subsets) == 1 else marked
    if len(candidates) != 1:
        raise UserError(
            f"{request.name}: this data set has the subsets {listed}. Choose one with {request.subset_key}."
        )
    if len(subsets) > 1:
        report_once(f"{request.name}: reading the subset {candidates[0]} (of {listed}), the default in README.md.")
    return candidates[0]


def _named_files(request: SplitRequest, names: Sequence[str], given: dict[str, Any], complete: bool) -> list[str]:
    """Files of a split of a subset that README.md defines."""
    base = given.get("data_dir") or ""
    if not isinstance(base, str):
        raise _unknown_form(request.name)
    prefix = base.strip("/") + "/" if base.strip("/.") else ""
    inside = [one.removeprefix(prefix) for one in names if one.startswith(prefix)]
    if not given.get("data_files"):
        splits = splits_by_name(request.name, inside)
        return [prefix + one for one in splits[_chosen(request, splits, complete)]]
    patterns = _patterns(request.name, given["data_files"])
    splits = {
        split: sorted({one for pattern in some for one in matching(inside, pattern.removeprefix("./"))})
        for split, some in patterns.items()
    }
    refuse_shared(request.name, splits)
    chosen = choose_split(request.name, list(splits), request.split, request.held_out)
    lacking = [one for one in patterns[chosen] if not matching(inside, one.removeprefix("./"))]
    if lacking and not (splits[chosen] and has_magic(lacking[0])):
        raise UserError(
            f"{request.name}: README.md lists {prefix}{lacking[0]} for the split {chosen}, but no data file matches. Download the data "
            "set again, or name the data files in `pairs`."
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
        f"{name}: `data_files` in the YAML of README.md has an unknown format; expected patterns, or a list of `split` and `path`. "
        "Name the data files in `pairs`."
    )


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """Names that a glob matches: `*` within a folder, `**` across folders."""
    from fsspec.utils import glob_translate

    if pattern in names:
        return [pattern]
    match = re.compile(glob_translate(pattern)).match
    return [one for one in names if match(one)]


def _subset_of_folders(request: SplitRequest, names: Sequence[str]) -> Splits:
    """Splits of a data set without subsets in README.md. The Hub's Parquet conversion has `subset/split/0000.parquet`."""
    converted = [match for match in map(_CONVERTED.fullmatch, names) if match]
    if converted and len(converted) == len(names):
        subsets: dict[str, Splits] = {}
        for match in converted:
            subsets.setdefault(match["subset"], {}).setdefault(match["split"], []).append(match[0])
        return subsets[_choose_subset(request, {name: {} for name in subsets})]
    if request.subset is not None:
        raise UserError(
            f"{request.name}: this data set has no subsets, but {request.subset!r} is requested. Remove {request.subset_key}, or name "
            "the folder or files."
        )
    return splits_by_name(request.name, names)


def _refuse_mixture(name: str, files: Sequence[str]) -> None:
    """Raise UserError for files of several formats: the same rows might be counted twice."""
    kinds: dict[str, str] = {}
    for file in files:
        kinds.setdefault(re.sub(r"\.(gz|zst)$", "", file.lower()).rsplit(".", 1)[-1], file)
    if len(kinds) > 1:
        raise UserError(
            f"{name}: this split has files of several formats ({', '.join(kinds.values())}), which may hold the same rows. Name one set "
            "of files in `pairs`."
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
                f"{name}: {stem}-{lacking:05d}-of-{count}{kind} is missing ({len(found)} of {int(count)} parts found). Download the "
                "data set again, or name the files in `pairs`."
            )
