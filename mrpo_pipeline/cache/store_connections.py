"""Supported object stores, their connections through fsspec, and their errors in plain words.

Credentials and endpoints come from each store's usual sources (environment variables, configuration files, the machine's role), never
from the recipe.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from mrpo_pipeline.cache.storage import StoreError
from mrpo_pipeline.errors import UserError

# URL scheme → its module, and the package to install. Only stores with atomic PUTs: over sftp or http a shard could be incomplete.
STORES: dict[str, tuple[str, str]] = {
    "s3": ("s3fs", "mrpo[s3]"),
    "s3a": ("s3fs", "mrpo[s3]"),
    "gs": ("gcsfs", "gcsfs"),
    "gcs": ("gcsfs", "gcsfs"),
    "az": ("adlfs", "adlfs"),
    "abfs": ("adlfs", "adlfs"),
    "abfss": ("adlfs", "adlfs"),
    "memory": ("fsspec", "fsspec"),
    "hf": ("huggingface_hub", "huggingface_hub"),
}

# Read in place; only `mrpo cache push` writes there, in one commit.
READ_ONLY = ("hf",)

# S3's limit of one PUT; s3fs splits files of twice its chunk size or more.
LARGEST_PUT = 5 * 2**30

# Codes of a bucket or data set that does not exist.
NO_PLACE = ("NoSuchBucket", "RepositoryNotFound")

_CREDENTIALS = ("Credential", "NoAuthToken", "TokenRetrieval", "SSO", "Login", "ProfileNotFound")
_UNREACHED = ("Connection", "Connect", "Timeout", "SSLError", "DNS", "Socket", "IncompleteRead", "ClientPayload")


def check_url(url: str, key: str = "cache") -> str:
    """The URL without a trailing slash.

    Args:
        key: the recipe's key or the option that names it, for messages.

    Raises:
        UserError: for an unsupported store, a URL with a password or query, or a missing package. The message never repeats a
            password.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    host = rest.split("/", 1)[0]
    if ":" in host.rpartition("@")[0]:
        raise UserError(
            f"{key}: {scheme}://…@{host.rpartition('@')[2]} contains a password: expected a URL without one. Provide "
            "credentials by the store's usual means (environment variables, its configuration files, the machine's role)."
        )
    if scheme not in STORES:
        raise UserError(
            f"{key}: {scheme}://{host} is not a supported store: expected a local folder or an object store "
            f"({', '.join(f'{name}://' for name in STORES if name != 'memory')})."
        )
    if re.search(r"[?#*\[\]]|::", rest):
        raise UserError(
            f"{key}: {scheme}://{re.split('[?#]', rest)[0]} contains or precedes a `?`, `#`, `*`, `[`, `]` or `::`: expected "
            f"{scheme}://BUCKET/FOLDER. Set options in the environment."
        )
    if scheme == "hf" and not re.fullmatch(r"datasets/[\w.-]+/[\w.-]+(@[\w.-]+)?(/[\w./-]*)?", rest):
        raise UserError(f"{key}: {url} names no data set: expected hf://datasets/ORGANISATION/NAME.")
    if not host.strip("/") and scheme != "memory":
        raise UserError(f"{key}: {url} has no bucket: expected {scheme}://BUCKET/FOLDER.")
    module, package = STORES[scheme]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{key}: {scheme}://{host} needs the Python package {module}: expected it installed ({error}). Run `pip install "
            f"'{package}'`, or use a local folder."
        ) from error
    return f"{scheme}://{rest.rstrip('/')}"


def connect(url: str) -> tuple[Any, str]:
    """The fsspec file system of a checked URL, and the path in it.

    fsspec keeps one connection per process. Listings are not cached, so that other writers' files are seen.
    """
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {"use_listings_cache": False}
    if STORES[urlsplit(url).scheme][0] == "s3fs":
        options |= _s3_options()
    filesystem, path = url_to_fs(url, **options)
    if STORES[urlsplit(url).scheme][0] == "s3fs":
        filesystem.retries = 2  # in addition to botocore's own: for interrupted responses
    return filesystem, path


def put_options(url: str) -> dict[str, Any]:
    """Options with which ``pipe_file`` writes a file by one PUT."""
    return {"chunksize": LARGEST_PUT} if STORES[urlsplit(url).scheme][0] == "s3fs" else {}


def _s3_options() -> dict[str, Any]:
    from fsspec.config import conf

    configured: dict[str, Any] = {}
    for protocol in ("s3", "s3a"):
        configured |= conf.get(protocol, {}).get("config_kwargs", {})
    config: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 15}
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        # Waits of up to 1, 2 and 4 seconds: enough for a busy store, and a quick failure if none answers.
        config["retries"] = {"mode": "standard", "total_max_attempts": 4}
    # One request per file: shards are small, and several are read at once.
    return {"max_concurrency": 1, "config_kwargs": config | configured}


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn any exception of the file system in the block into a ``StoreError``.

    ``FileNotFoundError`` and ``FileExistsError`` pass; a missing bucket or data set is a ``StoreError``.

    Args:
        url: for messages.
    """
    try:
        yield
    except FileExistsError:
        raise
    except StoreError:
        raise
    except FileNotFoundError as error:
        if error_code(error) not in NO_PLACE:
            raise
        raise _explained(url, error) from error
    except Exception as error:
        raise _explained(url, error) from error


def error_code(error: BaseException | None) -> str:
    """The store's error code, such as ``AccessDenied``, or the hub's HTTP status; empty if there is none."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            return str(response["Error"].get("Code", ""))
        if type(one).__name__ == "RepositoryNotFoundError":
            return "RepositoryNotFound"
        if isinstance(status := getattr(response, "status_code", None), int):
            return str(status)
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _explained(url: str, error: BaseException) -> StoreError:
    """The error in plain words, with what to do."""
    scheme = urlsplit(url).scheme
    kinds = [type(one).__name__ for one in _chain(error)]
    code = error_code(error)
    reason = _short_text(error)
    means = "environment variables, its configuration files, the machine's role"
    if code == "NoSuchBucket":
        return StoreError(
            f"{url}: there is no such bucket ({reason}). Create it, or correct the name: expected an existing bucket."
        )
    if scheme == "hf" and code in ("RepositoryNotFound", "401", "403"):
        return StoreError(
            f"{url}: there is no such data set, or the hub refuses access ({reason}): expected one that is public, or a token that may "
            "read it (to publish: write to it). Correct the name, or set HF_TOKEN or run `hf auth login`, and run the command again."
        )
    if any(word in kind for kind in kinds for word in _CREDENTIALS):
        return StoreError(
            f"{url} needs credentials, and no usable ones were found ({reason}): expected them by the usual means of {scheme}:// stores "
            f"({means}), not in the recipe. Set them and run the command again."
        )
    if isinstance(error, PermissionError) or code in ("403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return StoreError(
            f"{url}: access was denied ({reason}): expected credentials that may list, read and write (to train: list and read), by the "
            f"usual means ({means}). Check which are used and the bucket's permissions, and run the command again."
        )
    # An error code comes from a server that was reached, whatever the exception class is called.
    if not code and any(word in kind for kind in kinds for word in _UNREACHED):
        return StoreError(
            f"{url} cannot be reached ({reason}): expected a store that answers. Check the network, the bucket's name and a custom "
            "endpoint (AWS_ENDPOINT_URL for s3://), and run the command again."
        )
    return StoreError(
        f"{url} returned an error ({type(error).__name__}: {reason}): expected success. Check the store and run the command again."
    )


def _short_text(error: BaseException) -> str:
    """The message on one line, with addresses reduced to the host, because the rest may hold signatures or a password."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(https?://)(?:[^/\s\"]*@)?([^/\s\"?]+)[^\s\"]*", r"\1\2", text)[:300]
