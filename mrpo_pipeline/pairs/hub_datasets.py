"""Data sets of the Hugging Face hub: their files at one commit, by way of the Hugging Face cache.

`huggingface_hub` keeps the list of a commit's files beside what it downloaded, so a second run needs no network. No loader script
of a data set is run, and none is downloaded.
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
    """A data set of the hub, or a part of it: `org/name[@revision][/path]`."""

    repository: str
    revision: str | None
    path: str

    def at(self, commit: str, path: str = "") -> str:
        """Its URL at a commit, as `hf://` file systems write it."""
        return f"{PREFIX}{self.repository}@{commit}" + (f"/{path}" if path else "")


@dataclass(frozen=True)
class Repository:
    """A data set at one commit: its files' names, and the folder of the cache that holds those that were downloaded."""

    hub: HubName
    commit: str
    folder: str
    names: tuple[str, ...]
    listed: bool
    """Whether `names` is the list that the hub gave; without the hub it may be what the cache happens to hold."""

    def card(self, path: str = "") -> bytes | None:
        """The bytes of README.md in a folder of the data set, where it has one."""
        name = f"{path}/README.md" if path else "README.md"
        return read_card(os.path.dirname(self.download([name])[0])) if name in self.names else None

    def download(self, names: Sequence[str]) -> list[str]:
        """The paths of some of its files on this machine, downloaded where the cache lacks them. Raises UserError."""
        paths = [os.path.join(self.folder, name) for name in names]
        if not all(map(os.path.isfile, paths)):
            with _refusals(self.hub.at(self.commit)):
                _snapshot(self.hub, self.commit, [glob.escape(name) for name in names])
        missing = [name for name, path in zip(names, paths, strict=True) if not os.path.isfile(path)]
        if missing:
            raise UserError(
                f"{self.hub.at(self.commit, missing[0])}: this file could not be downloaded. Run the command again."
            )
        return paths


def hub_name(name: str) -> HubName | None:
    """The parts of a name that can be one of the hub's, with or without `hf://datasets/`; None for any other."""
    plain = unquote(name.removeprefix(PREFIX)).strip("/").replace("@~parquet", f"@{_CONVERTED}")
    match = _NAME.fullmatch(plain)
    if match is None or ".." in plain:
        return None
    if not name.startswith(PREFIX) and match["path"]:
        return None
    return HubName(match["repository"], match["revision"], (match["path"] or "").strip("/"))


def repository(hub: HubName, named: str) -> Repository:
    """The data set that a name of the hub names. One process asks for it once, so that all of it reads one commit.

    Raises UserError: it is not there, may not be read, or neither hub nor cache can be reached.
    """
    with _refusals(named):
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
        names, listed = names_below(folder), False
    report_once(f"{hub.repository}: a data set of the hub, read at revision {commit}.")
    return Repository(hub, commit, folder, tuple(sorted(names)), listed)


def converted(found: Repository, named: str) -> Repository:
    """The hub's own conversion to Parquet of a data set that has a loader script in place of files. Raises UserError."""
    refusal = (
        f"{named}: this data set has no files of pairs but a loader script, and scripts are never run. Name files of it, or take another "
        "data set."
    )
    if found.hub.revision is not None:
        raise UserError(refusal)
    try:
        other = repository(HubName(found.hub.repository, _CONVERTED, found.hub.path), named)
    except UserError as error:
        raise UserError(f"{refusal} Its conversion to Parquet by the hub was not found either: {error}") from error
    report_once(
        f"{named}: it has a loader script, which is never run; reading the hub's conversion to Parquet ({_CONVERTED})."
    )
    return other


def read_card(folder: str) -> bytes | None:
    """The bytes of a folder's README.md, where it has one."""
    try:
        with open(os.path.join(folder, "README.md"), "rb") as stream:
            return stream.read(MAX_METADATA_BYTES)
    except OSError:
        return None


def names_below(folder: str) -> list[str]:
    """The files in a folder and its folders, with `/` between the parts."""
    return [
        os.path.relpath(os.path.join(above, name), folder).replace(os.sep, "/")
        for above, _, names in os.walk(folder)
        for name in names
    ]


def _snapshot(hub: HubName, revision: str | None, patterns: list[str]) -> str:
    """The folder of a commit in the cache, with the files that are asked for. Raises what `huggingface_hub` does."""
    from huggingface_hub import snapshot_download

    with _quiet():
        return str(
            snapshot_download(
                hub.repository, repo_type="dataset", revision=revision, allow_patterns=patterns, max_workers=4
            )
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars but on a terminal, and no warnings of the library: what fails is reported once, here."""
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
def _refusals(name: str) -> Iterator[None]:
    from huggingface_hub import errors

    here = "" if name.startswith(PREFIX) else "there is no file or folder of this name here, and "
    plain = name.removeprefix(PREFIX).partition("@")[0]
    plain = "/".join(plain.split("/")[:2])
    local = (
        f"Or download it elsewhere (hf download {plain} --repo-type dataset --local-dir FOLDER) and name its folder."
    )
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name}: this data set of the hub is gated, and this machine may not read it. Accept its conditions on its page, and log in "
            "(hf auth login, or HF_TOKEN)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: {here}the hub has no data set of this name that may be read from here. "
            "Correct the name or path; for a private data set, log in (hf auth login, or HF_TOKEN)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{name}: this data set of the hub has no such revision. Correct what follows the @."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name}: {here}the Hugging Face cache does not hold (all of) a data set of the hub of this name, "
            f"and the hub cannot be reached ({_cause(error)}). Connect (HF_HUB_OFFLINE unset), or correct the path. {local}"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{name}: this is no name of a data set of the hub ({one_line(error)}). Correct it.") from error
    except UserError:
        raise
    except Exception as error:  # the HTTP client, the disk and the library each raise their own kinds
        raise UserError(
            f"{name}: this data set of the hub could not be downloaded ({type(error).__name__}: {one_line(error)}). Try again. {local}"
        ) from error


def _cause(error: BaseException) -> str:
    cause: Any = error.__cause__ or error
    if type(cause).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set"
    return f"{type(cause).__name__}: {one_line(cause)}"
