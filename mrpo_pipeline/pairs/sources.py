"""Resolve a source to files: a file, folder, glob, URL, data set on the Hub, or a list of those."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.dataset_splits import SplitRequest, folder_files, has_subsets, matching, split_files
from mrpo_pipeline.pairs.hub_datasets import (
    PREFIX,
    HubName,
    Repository,
    list_files,
    open_repository,
    parquet_conversion,
    parse_hub_name,
    read_readme,
)
from mrpo_pipeline.pairs.saved_datasets import report_once, saved_files
from mrpo_pipeline.terminal import one_line

TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSED = ("", ".gz", ".zst")
SUFFIXES = (*(kind + packing for kind in TEXT for packing in COMPRESSED), ".parquet", ".arrow")
_EXPECTED = f"{', '.join(TEXT)}, each with .gz or .zst or without, .parquet or .arrow"

# Files that describe a data set and hold no pairs.
METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_REPOSITORY_METADATA = METADATA | {"config.json", "package.json", "tsconfig.json"}


@dataclass(frozen=True, slots=True)
class PairFile:
    """One file."""

    name: str
    """Path or URL, as in the `file` column."""
    suffix: str
    """One of `SUFFIXES`."""
    remote: bool
    origin: str = ""
    """URL at a commit, for a downloaded file of the Hub."""

    @property
    def format(self) -> str:
        """Suffix without compression."""
        return self.suffix.removesuffix(".gz").removesuffix(".zst")


def find_files(
    source: str | Sequence[str], split: str | None = None, subset: str | None = None, *, held_out: bool = False
) -> list[PairFile]:
    """Files of a source, in the order of the list; files of a folder or glob are sorted by name.

    `split`: split of a data set; None: the training split, or the evaluation split with `held_out`, if it is unambiguous (logged).
    `subset`: subset of a data set on the Hub or a copy of one.

    In a folder, only the files directly in it with one of `SUFFIXES` are read, except hidden ones (`.` or `_` first).
    Raises UserError: there is no file, its type is unknown, or a file is named twice.
    """
    names = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not names:
        raise UserError("pairs: the list is empty: expected a file, folder, glob or URL. Name one.")
    files = [
        file
        for name in names
        for file in _expand(SplitRequest(os.path.expanduser(os.fspath(name)), subset, split, held_out))
    ]
    seen: dict[str, str] = {}
    for file in files:
        place = file.origin or (file.name if file.remote else os.path.realpath(file.name))
        if place in seen:
            raise UserError(
                f"{file.name}: this file is listed twice (also as {seen[place]}), so its rows would count twice: "
                "expected each file once. Name it once."
            )
        seen[place] = file.name
    return files


def require_local_files(
    source: str | Sequence[str], split: str | None = None, subset: str | None = None, *, held_out: bool = False
) -> None:
    """Raise UserError for local paths that `find_files` cannot resolve. URLs and Hub names are not checked.

    For commands that load libraries for seconds before they read files.
    """
    for name in [source] if isinstance(source, str | os.PathLike) else source:
        path = os.path.expanduser(os.fspath(name))
        of_hub = not os.path.exists(path) and parse_hub_name(path) is not None and not path.lower().endswith(SUFFIXES)
        if "://" not in path and not of_hub:
            _expand(SplitRequest(path, subset, split, held_out))


def _expand(request: SplitRequest) -> list[PairFile]:
    name = request.name
    if name.startswith(PREFIX):
        return _expand_hub(request)
    if "://" in name:
        _refuse_split(request)
        return _expand_url(name)
    if os.path.isdir(name):
        hub = parse_hub_name(name)
        if hub is not None and hub.revision is None:
            report_once(
                f"{name}: reading the local folder of this name; for the data set on the Hub use {PREFIX}{name}."
            )
        return _expand_folder(request)
    if hub_dataset(name) is not None:
        return _expand_hub(request)
    _refuse_split(request)
    # An existing file whose name contains `[` or `*` is not a glob.
    if not os.path.exists(name) and glob.has_magic(name):
        files = _known_files(sorted(glob.glob(name, recursive=True)))
        if not files:
            raise UserError(f"{name}: no file matches this glob (expected {_EXPECTED}). Correct it.")
        return files
    if not os.path.exists(name):
        folder = os.path.dirname(name) or "."
        where = "" if os.path.isdir(folder) else f", nor its folder {folder}"
        raise UserError(
            f"{name}: there is no such file of preference pairs{where}: expected {_EXPECTED}. Check the path in `pairs`."
        )
    file = PairFile(name, _suffix(name), remote=False)
    if not os.path.isfile(name):  # a pipe may block forever, /dev/zero never ends
        raise UserError(f"{name}: this is a pipe or a device; expected a regular file. Write its content to a file.")
    return [file]


def hub_dataset(name: str) -> HubName | None:
    """Data set on the Hub that a source names; None for a file, folder, glob or other URL."""
    if name.startswith(PREFIX):
        return parse_hub_name(name)
    local = "://" in name or os.path.exists(name) or name.lower().endswith(SUFFIXES)
    return None if local else parse_hub_name(name)


def _refuse_split(request: SplitRequest) -> None:
    for what, given, key in (
        ("split", request.split, request.split_key),
        ("subset", request.subset, request.subset_key),
    ):
        if given is not None:
            raise UserError(
                f"{request.name}: the {what} {given!r} is requested, but this source has no {what}s; expected a data set on the Hub, a "
                f"copy of one, or a folder of datasets' save_to_disk. Name the files of that {what}, and remove {key}."
            )


def _expand_folder(request: SplitRequest) -> list[PairFile]:
    folder = request.name
    saved = saved_files(folder, request.split, request.held_out)
    if saved is not None:
        _refuse_split(replace(request, split=None))
        return [PairFile(path, ".arrow", remote=False) for path in saved]
    direct = [entry for entry in sorted(os.listdir(folder)) if not entry.startswith((".", "_"))]
    direct = [os.path.basename(file.name) for file in _known_files([os.path.join(folder, entry) for entry in direct])]
    card = read_readme(folder)
    if has_subsets(folder, card) or (not direct and (card is not None or os.path.isdir(os.path.join(folder, "data")))):
        names = [name for name in list_files(folder) if _holds_pairs(name)]
        if names:
            return _known_files([os.path.join(folder, *name.split("/")) for name in split_files(request, names, card)])
    if not direct:
        raise UserError(
            f"{folder}: this folder directly contains no data file (expected {_EXPECTED}). Name the files, or use a glob such as "
            f"{os.path.join(folder, '**', '*.jsonl')}."
        )
    _refuse_split(replace(request, split=None))
    return _known_files([os.path.join(folder, name) for name in folder_files(request, direct)])


def _expand_hub(request: SplitRequest) -> list[PairFile]:
    hub = parse_hub_name(request.name)
    if hub is None:
        raise UserError(
            f"{request.name}: this is not a valid data set name; expected {PREFIX}ORGANISATION/NAME[@REVISION][/PATH]. Correct it."
        )
    found = open_repository(hub, request.name)
    names = _names_in(request, found)
    if not names and any(name.endswith(".py") for name in found.names):
        found = parquet_conversion(found, request.name)
        names = _names_in(request, found)
    if not names:
        raise _without_files(request.name, found)
    if hub.path in found.names or glob.has_magic(hub.path):
        _refuse_split(request)
        taken = names
    else:
        base = f"{hub.path}/" if hub.path else ""
        inside = [name.removeprefix(base) for name in names]
        taken = [base + name for name in split_files(request, inside, found.card(hub.path), complete=found.listed)]
    paths = found.download(taken)
    return [
        PairFile(path, _suffix(name), remote=False, origin=hub.url_at(found.commit, name))
        for name, path in zip(taken, paths, strict=True)
    ]


def _names_in(request: SplitRequest, found: Repository) -> list[str]:
    path = found.hub.path
    if path in found.names:
        return [path]
    names = [name for name in found.names if _holds_pairs(name)]
    if glob.has_magic(path):
        return matching(names, path)
    return [name for name in names if name.startswith(f"{path}/")] if path else names


def _without_files(name: str, found: Repository) -> UserError:
    others = [one for one in found.names if not one.startswith(".") and one != "README.md"]
    listed = ", ".join(others[:10]) + (", …" if len(others) > 10 else "")
    what = "no file or folder of this name" if found.hub.path else "no data file"
    source = "this data set has" if found.listed else "the cached part of this data set has"
    return UserError(f"{name}: {source} {what} (expected {_EXPECTED}; found {listed or 'no files'}). Name other files.")


def _holds_pairs(name: str) -> bool:
    *above, last = name.split("/")
    hidden = any(part.startswith(("__", ".")) for part in above) or last.startswith(".")
    return not hidden and last.lower().endswith(SUFFIXES) and last not in _REPOSITORY_METADATA


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
    raise UserError(f"{name}: unsupported file type ({kind}); expected {_EXPECTED}. Convert the file, or use another.")


def looks_right(file: PairFile) -> bool:
    """Cheap check of a local file's magic bytes. Raises OSError: it cannot be read."""
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
    suffix = _suffix(path if path.strip("/") else url)
    if suffix == ".arrow":
        raise UserError(f"{url}: Arrow files are read from local disks only. Download it, and use the local path.")
    if not glob.has_magic(path):
        return [PairFile(url, suffix, remote=True)]
    try:
        system, inner = filesystem(url)
        found = sorted(str(system.unstrip_protocol(match)) for match in system.glob(inner))
    except Exception as error:  # each filesystem raises its own types
        raise unreachable(url, error) from error
    if not found:
        raise UserError(f"{url}: no file matches this URL. Correct it.")
    return [PairFile(match, suffix, remote=True) for match in found]


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec filesystem of a URL, and the path in it. Raises the errors of that filesystem."""
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    return system, path


def unreachable(url: str, error: BaseException) -> UserError:
    """Error for a URL that could not be opened or read."""
    if isinstance(error, ImportError):
        return UserError(f"{url}: this protocol needs a package that is not installed: {one_line(error)}. Install it.")
    return UserError(
        f"{url}: this URL could not be read ({type(error).__name__}: {one_line(error)}). Expected a readable "
        "file. Correct the URL, or download the file and use the local path."
    )
