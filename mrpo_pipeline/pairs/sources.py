"""Which files a source names: a file, a folder, a glob, a URL, or a list of those."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.saved_datasets import saved_files
from mrpo_pipeline.terminal import one_line

TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PACKED = ("", ".gz", ".zst")
SUFFIXES = (*(kind + packing for kind in TEXT for packing in PACKED), ".parquet", ".arrow")
_EXPECTED = f"{', '.join(TEXT)}, each with .gz or .zst or without, .parquet or .arrow"

# What describes a data set in its folder, and holds no pairs.
METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


@dataclass(frozen=True, slots=True)
class PairFile:
    """One file (or, for Parquet by URL, one glob of them that polars opens)."""

    name: str
    """The path or URL as the user would name it; stands in the `file` column."""
    suffix: str
    """One of `SUFFIXES`."""
    remote: bool
    part: tuple[int, int] | None = None
    """From and to, where only a part of the file is meant: bytes of a `.jsonl` file (the lines that begin there), row
    groups of a Parquet file."""

    @property
    def format(self) -> str:
        """Its suffix without what it is packed with."""
        return self.suffix.removesuffix(".gz").removesuffix(".zst")


def find_files(source: str | Sequence[str], split: str | None = None, *, held_out: bool = False) -> list[PairFile]:
    """The files that a source names, in the order of the list, those of a folder or glob sorted by name.

    `split`: of a folder that `datasets` saved with several; None for the one that is plainly meant, which is reported: the
    training split, or, with `held_out`, the one for evaluation.

    A folder stands for the files directly in it that have one of `SUFFIXES`, hidden ones (`.` or `_` first) left out.
    Raises UserError: nothing there, an unknown kind of file, one file named twice (its rows would be counted twice).
    """
    names = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not names:
        raise UserError(
            "No file of preference pairs was named: the list is empty. Give a file, a folder, a glob or a URL."
        )
    files = [file for name in names for file in _expand(os.path.expanduser(os.fspath(name)), split, held_out)]
    seen: dict[str, str] = {}
    for file in files:
        place = file.name if file.remote else os.path.realpath(file.name)
        if place in seen:
            raise UserError(
                f"{file.name}: this file of pairs is named twice (the other time as {seen[place]}), so each of its rows "
                "would count twice; expected each file once. Name it once."
            )
        seen[place] = file.name
    return files


def _expand(name: str, split: str | None, held_out: bool) -> list[PairFile]:
    if "://" in name:
        return _expand_url(name)
    if os.path.isdir(name):
        saved = saved_files(name, split, held_out)
        if saved is not None:
            return [PairFile(path, ".arrow", remote=False) for path in saved]
    if split is not None:
        key = "pairs.eval_split (--eval-split)" if held_out else "pairs.split (--split)"
        raise UserError(
            f"{name}: no data set with splits was saved here, so the split {split!r} cannot be taken of it; expected a folder of "
            f"datasets' save_to_disk. Name the files of that split, and leave {key} out."
        )
    if os.path.isdir(name):
        found = [os.path.join(name, entry) for entry in sorted(os.listdir(name)) if not entry.startswith((".", "_"))]
        files = _known_files(found)
        if not files:
            raise UserError(
                f"{name}: this folder holds no file of pairs directly in it (expected {_EXPECTED}). Name the "
                f"files, or give a glob such as {os.path.join(name, '**', '*.jsonl')}."
            )
        return files
    # A file whose own name holds `[` or `*` is that file, not a glob.
    if not os.path.exists(name) and glob.has_magic(name):
        files = _known_files(sorted(glob.glob(name, recursive=True)))
        if not files:
            raise UserError(f"{name}: no file of pairs matches this glob (expected {_EXPECTED}). Correct it.")
        return files
    if not os.path.exists(name):
        refuse_hub_name(name)
        folder = os.path.dirname(name) or "."
        where = "" if os.path.isdir(folder) else f"; its folder {folder} is not there either"
        raise UserError(f"{name}: there is no such file of preference pairs{where}. Check the path in `pairs`.")
    file = PairFile(name, _suffix(name), remote=False)
    if not os.path.isfile(name):  # a pipe would wait for ever, /dev/zero never ends
        raise UserError(
            f"{name}: this is a pipe or a device, no file of preference pairs; expected one that can be read more than once. Write "
            "what it gives into a file, and name that."
        )
    return [file]


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)


def refuse_hub_name(name: str) -> None:
    """Refuse a data set of the hub that is named without a file. Raises UserError."""
    if _HUB_NAME.fullmatch(name) and not name.lower().endswith(SUFFIXES):
        raise UserError(
            f"{name}: there is no file or folder of this name here, and a data set of the hub is read by its files. Expected those "
            f"of one split: hf://datasets/{name}/data/train-*.parquet, say (its page lists them); or download the data set "
            f"(hf download {name} --repo-type dataset --local-dir {name}) and name the files."
        )


def _known_files(paths: Sequence[str]) -> list[PairFile]:
    return [
        PairFile(path, _suffix(path), remote=False)
        for path in paths
        if os.path.isfile(path) and path.lower().endswith(SUFFIXES) and os.path.basename(path) not in METADATA
    ]


def _suffix(name: str) -> str:
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return suffix
    kind = PurePosixPath(name).suffix or "no suffix"
    raise UserError(
        f"{name}: a file of pairs of this kind ({kind}) cannot be read; expected {_EXPECTED}. Convert it, "
        "or name another."
    )


def looks_right(file: PairFile) -> bool:
    """Whether a local file begins, and Parquet ends, as its kind does: little enough, but what is broken is so mostly there.

    Raises OSError: it cannot be read.
    """
    with open(file.name, "rb") as stream:
        head = stream.read(4096)
        if file.suffix == ".parquet":
            stream.seek(max(os.path.getsize(file.name) - 4, 0))
            return head[:4] == stream.read(4) == b"PAR1"
    if file.suffix == ".arrow":
        return True
    begin = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}.get(file.suffix.removeprefix(file.format))
    return head.startswith(begin) if begin else b"\0" not in head


def _expand_url(url: str) -> list[PairFile]:
    path = urlsplit(url).path
    if url.startswith("hf://datasets/"):
        refuse_hub_name(url.removeprefix("hf://datasets/").strip("/"))
    suffix = _suffix(path if path.strip("/") else url)
    if suffix == ".arrow":
        raise UserError(f"{url}: an Arrow file is read from a disk of this machine only. Download it, and name that.")
    if suffix == ".parquet" or "*" not in path:
        # Parquet globs are left to polars, which opens hf:// and s3:// by itself.
        return [PairFile(url, suffix, remote=True)]
    try:
        system, inner = filesystem(url)
        found = sorted(str(system.unstrip_protocol(match)) for match in system.glob(inner))
    except Exception as error:  # every filesystem raises its own kinds
        raise unreachable(url, error) from error
    if not found:
        raise UserError(f"{url}: no file of pairs matches this URL; expected one at least. Correct it.")
    return [PairFile(match, suffix, remote=True) for match in found]


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem behind a URL, and the path in it. Raises what that filesystem raises."""
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    return system, path


def unreachable(url: str, error: BaseException) -> UserError:
    """The refusal for a URL that could not be opened or read, whatever the filesystem behind it raised."""
    if isinstance(error, ImportError):
        return UserError(
            f"{url}: opening this kind of URL needs a package that is not installed: {one_line(error)}. Install it."
        )
    return UserError(
        f"{url}: pairs could not be read from this URL ({type(error).__name__}: {one_line(error)}); expected "
        "one that polars or fsspec opens. Correct it, or download the file and name that."
    )
