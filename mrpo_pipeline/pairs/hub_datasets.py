"""Data sets on the Hugging Face Hub: their files at one commit, through the Hugging Face cache.

`huggingface_hub` caches the file list of a commit, so a second run needs no network. Loader scripts are neither downloaded nor run.
"""

import functools
import glob
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import MAX_METADATA_BYTES
from mrpo_pipeline.pairs.saved_datasets import report_once
from mrpo_pipeline.terminal import one_line

PREFIX = "hf://datasets/"
_CONVERTED = "refs/convert/parquet"
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(
    rf"(?P<repository>{_PART}/{_PART})(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/@]+))?(?:/(?P<path>.*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubName:
    """A data set on the Hub, or a part of it: `org/name[@revision][/path]`."""

    repository: str
    revision: str | None
    path: str

    def url_at(self, commit: str, path: str = "") -> str:
        """`hf://` URL at a commit."""
        return f"{PREFIX}{self.repository}@{commit}" + (f"/{path}" if path else "")


@dataclass(frozen=True)
class Repository:
    """A data set at one commit: its file names, and the cache folder of downloaded files."""

    hub: HubName
    commit: str
    folder: str
    names: tuple[str, ...]
    listed: bool
    """Whether `names` is the complete list from the Hub; offline, it may be the cached files only."""

    def card(self, path: str = "") -> bytes | None:
        """Bytes of README.md in a folder of the data set, or None."""
        name = f"{path}/README.md" if path else "README.md"
        return read_readme(os.path.dirname(self.download([name])[0])) if name in self.names else None

    def download(self, names: Sequence[str]) -> list[str]:
        """Local paths of files, downloaded if they are not cached. Raises UserError."""
        paths = [os.path.join(self.folder, name) for name in names]
        if not all(map(os.path.isfile, paths)):
            with _hub_errors(self.hub.url_at(self.commit)):
                _snapshot(self.hub, self.commit, [glob.escape(name) for name in names])
        missing = [name for name, path in zip(names, paths, strict=True) if not os.path.isfile(path)]
        if missing:
            raise UserError(
                f"{self.hub.url_at(self.commit, missing[0])}: this file could not be downloaded. Run the command again."
            )
        return paths


def parse_hub_name(name: str) -> HubName | None:
    """Parse `org/name`, with or without `hf://datasets/`; None if the name cannot be a data set on the Hub."""
    plain = unquote(name.removeprefix(PREFIX)).strip("/").replace("@~parquet", f"@{_CONVERTED}")
    match = _NAME.fullmatch(plain)
    if match is None or ".." in plain:
        return None
    if not name.startswith(PREFIX) and match["path"]:
        return None
    return HubName(match["repository"], match["revision"], (match["path"] or "").strip("/"))


def open_repository(hub: HubName, named: str) -> Repository:
    """Resolve a data set, once per process, so that all of it is read at one commit.

    Raises UserError: it does not exist, is not accessible, or is neither cached nor reachable.
    """
    with _hub_errors(named):
        return replace(_repository(hub.repository, hub.revision), hub=hub)


@functools.cache
def _repository(name: str, revision: str | None) -> Repository:
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    hub = HubName(name, revision, "")
    folder = _snapshot(hub, revision, ["README.md"])
    commit = os.path.basename(folder)
    try:
        names = [file.path for file in get_cached_repo_tree(hub.repository, repo_type="dataset", revision=commit)]
        listed = True
    except CachedRepoTreeNotFoundError:
        names, listed = list_files(folder), False
    report_once(f"{hub.repository}: reading this data set from the Hub at revision {commit}.")
    return Repository(hub, commit, folder, tuple(sorted(names)), listed)


def parquet_conversion(found: Repository, named: str) -> Repository:
    """The Hub's Parquet conversion of a data set that has a loader script and no data files. Raises UserError."""
    refusal = (
        f"{named}: this data set has a loader script and no data files, and scripts are never run. Name files of it, or use another "
        "data set."
    )
    if found.hub.revision is not None:
        raise UserError(refusal)
    try:
        other = open_repository(HubName(found.hub.repository, _CONVERTED, found.hub.path), named)
    except UserError as error:
        raise UserError(f"{refusal} The Hub's Parquet conversion was not found either: {error}") from error
    report_once(f"{named}: reading the Hub's Parquet conversion ({_CONVERTED}), because loader scripts are never run.")
    return other


def read_readme(folder: str) -> bytes | None:
    """Bytes of a folder's README.md, or None."""
    try:
        with open(os.path.join(folder, "README.md"), "rb") as stream:
            return stream.read(MAX_METADATA_BYTES)
    except OSError:
        return None


def list_files(folder: str) -> list[str]:
    """Relative paths of all files below a folder, separated by `/`."""
    return [
        os.path.relpath(os.path.join(above, name), folder).replace(os.sep, "/")
        for above, _, names in os.walk(folder)
        for name in names
    ]


def _snapshot(hub: HubName, revision: str | None, patterns: list[str]) -> str:
    """Cache folder of a commit with the files that match. Raises the errors of `huggingface_hub`."""
    from huggingface_hub import snapshot_download

    with _quiet_hub():
        return str(
            snapshot_download(
                hub.repository, repo_type="dataset", revision=revision, allow_patterns=patterns, max_workers=4
            )
        )


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Progress bars on terminals only, and no warnings of the library: errors are reported here."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    level, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    from huggingface_hub import errors

    here = "" if name.startswith(PREFIX) else "no such file or folder exists here, and "
    plain = name.removeprefix(PREFIX).partition("@")[0]
    plain = "/".join(plain.split("/")[:2])
    local = (
        f"Or download it elsewhere (hf download {plain} --repo-type dataset --local-dir FOLDER) and use that folder."
    )
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name}: this data set is gated. Accept its conditions on its page, and log in (hf auth login, or HF_TOKEN)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: {here}the Hub has no data set of this name, or it is private. Correct the name or path, or log in (hf auth "
            "login, or HF_TOKEN)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: this revision of the data set does not exist. Correct the part after @.") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name}: {here}a data set of this name is not (completely) in the Hugging Face cache, and the Hub cannot be reached "
            f"({_cause(error)}). Go online (unset HF_HUB_OFFLINE), or correct the path. {local}"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{name}: this is not a valid data set name ({one_line(error)}). Correct it.") from error
    except UserError:
        raise
    except Exception as error:  # the HTTP client, the disk and the library raise different types
        raise UserError(
            f"{name}: this data set could not be downloaded ({type(error).__name__}: {one_line(error)}). Try again. {local}"
        ) from error


def _cause(error: BaseException) -> str:
    cause: Any = error.__cause__ or error
    if type(cause).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set"
    return f"{type(cause).__name__}: {one_line(cause)}"
