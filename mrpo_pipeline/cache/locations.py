"""Cache locations: a folder or the URL of an object store, and the references in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.cache.object_storage import ObjectStorage, folders_holding
from mrpo_pipeline.cache.storage import Storage, StoreError
from mrpo_pipeline.cache.store_connections import STORES, check_url
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.terminal import one_line

MANIFEST = "manifest.json"


def check_location(root: str | Path, key: str = "cache") -> str | Path:
    """A folder's path, or a supported URL; makes no request. Raises UserError for others, without repeating a password.

    Args:
        key: the recipe's key or the option that names it, for messages.
    """
    text = str(root)
    scheme, separator, _ = text.partition(":")
    if "://" not in text:
        if separator and scheme.lower() in STORES:
            raise UserError(f"{key}: {text} is not a URL: expected {scheme}://BUCKET/FOLDER.")
        try:
            return Path(root).expanduser()
        except RuntimeError:
            raise UserError(f"{key}: {text} names the home of an unknown user: expected a folder.") from None
    if scheme.lower() == "file":
        return Path(url2pathname(urlsplit(text).path))
    return check_url(text, key)


def open_storage(root: str | Path, name: str) -> Storage:
    """The storage of a reference; creates and reads nothing. Raises UserError for an unsupported location."""
    location = check_location(root)
    if isinstance(location, str):
        return ObjectStorage(f"{location}/{name}")
    refuse_files("cache", [location, location / name])
    return LocalStorage(location / name)


def refuse_files(key: str, folders: Iterable[Path]) -> None:
    """Raise UserError where a folder's path is a file, or can't be a folder.

    Args:
        key: the recipe's key, with its option, for the message.
    """
    for folder in folders:
        try:
            in_the_way = folder.exists() and not folder.is_dir()
        except OSError as error:  # a name that is too long, a link to itself
            raise UserError(
                f"{key}: {one_line(folder)} can't be a folder ({error.strerror}). Use another path."
            ) from error
        if in_the_way:
            raise UserError(f"{key}: {folder} is a file: expected a folder or a new path.")


def list_references(root: str | Path) -> list[str]:
    """Sorted names of the references in the cache; none for a missing folder. Raises UserError where it can't be read."""
    location = check_location(root)
    try:
        if isinstance(location, str):
            return folders_holding(location, MANIFEST)
        return sorted(path.parent.name for path in location.glob(f"*/{MANIFEST}"))
    except StoreError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"The cache folder {root} can't be read ({error.strerror}): give read access.") from error
