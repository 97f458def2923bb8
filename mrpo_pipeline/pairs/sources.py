"""Which files a source names: a file, a folder, a glob, a URL, or a list of those."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.dataset_splits import Wanted, folder_files, matching, names_subsets, split_files
from mrpo_pipeline.pairs.hub_datasets import (
    PREFIX,
    HubName,
    Repository,
    converted,
    hub_name,
    names_below,
    read_card,
    repository,
)
from mrpo_pipeline.pairs.saved_datasets import report_once, saved_files
from mrpo_pipeline.terminal import one_line

TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PACKED = ("", ".gz", ".zst")
SUFFIXES = (*(kind + packing for kind in TEXT for packing in PACKED), ".parquet", ".arrow")
_EXPECTED = f"{', '.join(TEXT)}, each with .gz or .zst or without, .parquet or .arrow"

# What describes a data set in its folder, and holds no pairs.
METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_OF_A_REPOSITORY = METADATA | {"config.json", "package.json", "tsconfig.json"}


@dataclass(frozen=True, slots=True)
class PairFile:
    """One file."""

    name: str
    """The path or URL as the user would name it; stands in the `file` column."""
    suffix: str
    """One of `SUFFIXES`."""
    remote: bool
    origin: str = ""
    """Its URL at a commit, where it is a copy of a file of the hub."""

    @property
    def format(self) -> str:
        """Its suffix without what it is packed with."""
        return self.suffix.removesuffix(".gz").removesuffix(".zst")


def find_files(
    source: str | Sequence[str], split: str | None = None, subset: str | None = None, *, held_out: bool = False
) -> list[PairFile]:
    """The files that a source names, in the order of the list, those of a folder or glob sorted by name.

    `split`: of a data set (of the hub, or a folder) with several; None for the one that is plainly meant, which is reported: the
    training split, or, with `held_out`, the one for evaluation. `subset`: of a data set of the hub, or a copy of one, with several.

    A folder stands for the files directly in it that have one of `SUFFIXES`, hidden ones (`.` or `_` first) left out.
    Raises UserError: nothing there, an unknown kind of file, one file named twice (its rows would be counted twice).
    """
    names = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not names:
        raise UserError(
            "No file of preference pairs was named: the list is empty. Give a file, a folder, a glob or a URL."
        )
    files = [
        file for name in names for file in _expand(Wanted(os.path.expanduser(os.fspath(name)), subset, split, held_out))
    ]
    seen: dict[str, str] = {}
    for file in files:
        place = file.origin or (file.name if file.remote else os.path.realpath(file.name))
        if place in seen:
            raise UserError(
                f"{file.name}: this file of pairs is named twice (the other time as {seen[place]}), so each of its rows "
                "would count twice; expected each file once. Name it once."
            )
        seen[place] = file.name
    return files


def require_local_files(
    source: str | Sequence[str], split: str | None = None, subset: str | None = None, *, held_out: bool = False
) -> None:
    """Refuse what is not on this machine, as `find_files` does. Nothing of a URL or of the hub is asked for.

    For commands that would load libraries for seconds before they find a misspelt path.
    """
    for name in [source] if isinstance(source, str | os.PathLike) else source:
        path = os.path.expanduser(os.fspath(name))
        of_hub = not os.path.exists(path) and hub_name(path) is not None and not path.lower().endswith(SUFFIXES)
        if "://" not in path and not of_hub:
            _expand(Wanted(path, subset, split, held_out))


def _expand(wanted: Wanted) -> list[PairFile]:
    name = wanted.name
    if name.startswith(PREFIX):
        return _of_hub(wanted)
    if "://" in name:
        _refuse_split(wanted)
        return _expand_url(name)
    if os.path.isdir(name):
        hub = hub_name(name)
        if hub is not None and hub.revision is None:
            report_once(f"{name}: reading the folder of this name here; a data set of the hub is named {PREFIX}{name}.")
        return _of_folder(wanted)
    if hub_dataset(name) is not None:
        return _of_hub(wanted)
    _refuse_split(wanted)
    # A file whose own name holds `[` or `*` is that file, not a glob.
    if not os.path.exists(name) and glob.has_magic(name):
        files = _known_files(sorted(glob.glob(name, recursive=True)))
        if not files:
            raise UserError(f"{name}: no file of pairs matches this glob (expected {_EXPECTED}). Correct it.")
        return files
    if not os.path.exists(name):
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


def hub_dataset(name: str) -> HubName | None:
    """The data set of the hub that a source names; None where it is a file, a folder, a glob or another URL."""
    if name.startswith(PREFIX):
        return hub_name(name)
    local = "://" in name or os.path.exists(name) or name.lower().endswith(SUFFIXES)
    return None if local else hub_name(name)


def _refuse_split(wanted: Wanted) -> None:
    for what, given, key in (("split", wanted.split, wanted.split_key), ("subset", wanted.subset, wanted.subset_key)):
        if given is not None:
            raise UserError(
                f"{wanted.name}: this is no data set with {what}s, so the {what} {given!r} cannot be taken of it; expected a data set of "
                f"the hub, a copy of one, or a folder of datasets' save_to_disk. Name the files of that {what}, and leave {key} out."
            )


def _of_folder(wanted: Wanted) -> list[PairFile]:
    folder = wanted.name
    saved = saved_files(folder, wanted.split, wanted.held_out)
    if saved is not None:
        _refuse_split(replace(wanted, split=None))
        return [PairFile(path, ".arrow", remote=False) for path in saved]
    direct = [entry for entry in sorted(os.listdir(folder)) if not entry.startswith((".", "_"))]
    direct = [os.path.basename(file.name) for file in _known_files([os.path.join(folder, entry) for entry in direct])]
    card = read_card(folder)
    if names_subsets(folder, card) or (
        not direct and (card is not None or os.path.isdir(os.path.join(folder, "data")))
    ):
        names = [name for name in names_below(folder) if _holds_pairs(name)]
        if names:
            return _known_files([os.path.join(folder, *name.split("/")) for name in split_files(wanted, names, card)])
    if not direct:
        raise UserError(
            f"{folder}: this folder holds no file of pairs directly in it (expected {_EXPECTED}). Name the "
            f"files, or give a glob such as {os.path.join(folder, '**', '*.jsonl')}."
        )
    _refuse_split(replace(wanted, split=None))
    return _known_files([os.path.join(folder, name) for name in folder_files(wanted, direct)])


def _of_hub(wanted: Wanted) -> list[PairFile]:
    hub = hub_name(wanted.name)
    if hub is None:
        raise UserError(
            f"{wanted.name}: this is no name of a data set of the hub; expected {PREFIX}ORGANISATION/NAME, with @REVISION behind it or "
            "without, and a file or folder of it or none. Correct it."
        )
    found = repository(hub, wanted.name)
    names = _names_in(wanted, found)
    if not names and any(name.endswith(".py") for name in found.names):
        found = converted(found, wanted.name)
        names = _names_in(wanted, found)
    if not names:
        raise _without_files(wanted.name, found)
    if hub.path in found.names or glob.has_magic(hub.path):
        _refuse_split(wanted)
        taken = names
    else:
        base = f"{hub.path}/" if hub.path else ""
        inside = [name.removeprefix(base) for name in names]
        taken = [base + name for name in split_files(wanted, inside, found.card(hub.path), complete=found.listed)]
    paths = found.download(taken)
    return [
        PairFile(path, _suffix(name), remote=False, origin=hub.at(found.commit, name))
        for name, path in zip(taken, paths, strict=True)
    ]


def _names_in(wanted: Wanted, found: Repository) -> list[str]:
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
    what = "no file or folder of this name" if found.hub.path else "no file of pairs"
    source = "this data set has" if found.listed else "the Hugging Face cache has of this data set"
    return UserError(
        f"{name}: {source} {what} (expected {_EXPECTED}; found {listed or 'no files'}). Name other files of it."
    )


def _holds_pairs(name: str) -> bool:
    *above, last = name.split("/")
    hidden = any(part.startswith(("__", ".")) for part in above) or last.startswith(".")
    return not hidden and last.lower().endswith(SUFFIXES) and last not in _OF_A_REPOSITORY


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
    suffix = _suffix(path if path.strip("/") else url)
    if suffix == ".arrow":
        raise UserError(f"{url}: an Arrow file is read from a disk of this machine only. Download it, and name that.")
    if not glob.has_magic(path):
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
        "one that fsspec opens. Correct it, or download the file and name that."
    )
