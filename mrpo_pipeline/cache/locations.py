"""What ``cache:`` may be, a folder or the URL of an object store; what references are called there, and which lie there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mrpo_pipeline.cache.fsspec_backend import STORES, check_url
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.cache.object_storage import ObjectStorage, folders_holding
from mrpo_pipeline.cache.storage import Storage, StoreError
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.terminal import one_line

MANIFEST = "manifest.json"


def check_location(root: str | Path) -> str | Path:
    """Where a cache is kept: a folder's path, or a URL that can be opened. Nothing is asked of a store.

    Raises:
        UserError: where it is neither; a password in a URL is not repeated.
    """
    text = str(root)
    scheme, separator, _ = text.partition(":")
    if "://" not in text:
        if separator and scheme.lower() in STORES:
            raise UserError(f"cache: {text} is no URL: expected {scheme}://BUCKET/FOLDER. Correct `cache:`.")
        try:
            return Path(root).expanduser()
        except RuntimeError:
            raise UserError(
                f"cache: {text} names the home of nobody here: expected a folder. Correct `cache:`."
            ) from None
    if scheme.lower() == "file":
        return Path(url2pathname(urlsplit(text).path))
    return check_url(text)


def open_storage(root: str | Path, name: str) -> Storage:
    """The files of the reference of that name; nothing is made or read yet.

    Raises:
        UserError: where a cache cannot be kept there.
    """
    location = check_location(root)
    if isinstance(location, str):
        return ObjectStorage(f"{location}/{name}")
    refuse_files("cache", [location, location / name])
    return LocalStorage(location / name)


def refuse_files(key: str, folders: Iterable[Path]) -> None:
    """Refuse places for folders where a file stands, or where there can be none.

    Args:
        key: the recipe's, with its option where it has one: what the message begins with.

    Raises:
        UserError: naming the first such place.
    """
    for folder in folders:
        try:
            in_the_way = folder.exists() and not folder.is_dir()
        except OSError as error:  # a name that is too long, a link to itself
            raise UserError(
                f"{key}: {one_line(folder)} can't be a folder ({error.strerror}): expected a place for one. Name another one."
            ) from error
        if in_the_way:
            raise UserError(f"{key}: {folder} is a file: expected a folder, or a name that is free. Name another one.")


def list_references(root: str | Path) -> list[str]:
    """Names of the references that the cache holds, sorted; none where there is no such folder.

    Raises:
        UserError: where it cannot be read or reached.
    """
    location = check_location(root)
    try:
        if isinstance(location, str):
            return folders_holding(location, MANIFEST)
        return sorted(path.parent.name for path in location.glob(f"*/{MANIFEST}"))
    except StoreError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(
            f"The cache folder {root} cannot be read ({error.strerror}): give read access to it."
        ) from error
