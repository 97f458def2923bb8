"""The object stores that a cache may be kept in: how each is reached, and what its errors mean to the user.

They are reached through fsspec, by the file systems of that ecosystem. Credentials and endpoints are found by their usual
means alone (environment variables, configuration files, the machine's role): never in the recipe.
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

# URL scheme → the module that reaches it, and what installs that. Only stores where a PUT is whole or not at all: over
# sftp or http, say, half a file could stand under a shard's name.
STORES: dict[str, tuple[str, str]] = {
    "s3": ("s3fs", "mrpo[s3]"),
    "s3a": ("s3fs", "mrpo[s3]"),
    "gs": ("gcsfs", "gcsfs"),
    "gcs": ("gcsfs", "gcsfs"),
    "az": ("adlfs", "adlfs"),
    "abfs": ("adlfs", "adlfs"),
    "abfss": ("adlfs", "adlfs"),
    "memory": ("fsspec", "fsspec"),
}

# S3 takes up to this much in one PUT; s3fs sends what is twice its chunk size or more in parts.
LARGEST_PUT = 5 * 2**30

_CREDENTIALS = ("Credential", "NoAuthToken", "TokenRetrieval", "SSO", "Login", "ProfileNotFound")
_UNREACHED = ("Connection", "Connect", "Timeout", "SSLError", "DNS", "Socket", "IncompleteRead", "ClientPayload")


def check_url(url: str) -> str:
    """The URL without a slash at its end, where a cache may be kept there and the file system for it is installed.

    Raises:
        UserError: for a store that is not known, a URL with a password or a query in it, or a missing package. The message
            never repeats a password.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    host = rest.split("/", 1)[0]
    if ":" in host.rpartition("@")[0]:
        raise UserError(
            f"cache: {scheme}://…@{host.rpartition('@')[2]} holds a password: expected a URL without one. Give credentials "
            "by the store's usual means (environment variables, its configuration files, the machine's role), and remove "
            "them from the recipe."
        )
    if scheme not in STORES:
        raise UserError(
            f"cache: {scheme}://{host} is of a kind that a cache cannot be kept in: expected a local folder, or an object "
            f"store ({', '.join(f'{name}://' for name in STORES if name != 'memory')}). Correct `cache:`."
        )
    if re.search(r"[?#*\[\]]|::", rest):
        raise UserError(
            f"cache: {scheme}://{re.split('[?#]', rest)[0]} holds, or is followed by, a `?`, `#`, `*`, `[`, `]` or `::`: "
            f"expected {scheme}://BUCKET/FOLDER, with options given by the environment. Correct `cache:`."
        )
    if not host.strip("/") and scheme != "memory":
        raise UserError(f"cache: {url} names no bucket: expected {scheme}://BUCKET/FOLDER. Correct `cache:`.")
    module, package = STORES[scheme]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"cache: {scheme}://{host} needs the Python package {module}, which cannot be imported ({error}): "
            f"expected it installed. Run `pip install '{package}'`, or give `cache:` a local folder."
        ) from error
    return f"{scheme}://{rest.rstrip('/')}"


def connect(url: str) -> tuple[Any, str]:
    """The fsspec file system of a checked URL, and the URL's path in it.

    Cheap after the first time in a process: fsspec keeps the connection, one for each process. Listings are never taken
    from memory, so that what other writers did is seen.
    """
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {"use_listings_cache": False}
    if STORES[urlsplit(url).scheme][0] == "s3fs":
        options |= _s3_options()
    filesystem, path = url_to_fs(url, **options)
    if STORES[urlsplit(url).scheme][0] == "s3fs":
        filesystem.retries = 2  # on top of botocore's own: an answer that broke off is asked for once more
    return filesystem, path


def put_options(url: str) -> dict[str, Any]:
    """What ``pipe_file`` has to be told so that a file is one PUT."""
    return {"chunksize": LARGEST_PUT} if STORES[urlsplit(url).scheme][0] == "s3fs" else {}


def _s3_options() -> dict[str, Any]:
    from fsspec.config import conf

    configured: dict[str, Any] = {}
    for protocol in ("s3", "s3a"):
        configured |= conf.get(protocol, {}).get("config_kwargs", {})
    config: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 15}
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        # Waits of up to 1, 2 and 4 seconds: what a busy store asks for, and an end within seconds where nobody answers.
        config["retries"] = {"mode": "standard", "total_max_attempts": 4}
    # One request a file: shards are small, and several are read at once.
    return {"max_concurrency": 1, "config_kwargs": config | configured}


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Whatever the file system raises inside the block becomes one ``StoreError``.

    ``FileNotFoundError`` and ``FileExistsError`` pass, as answers of their own; a bucket that is not there does not.

    Args:
        url: what is asked for, for messages.
    """
    try:
        yield
    except FileExistsError:
        raise
    except StoreError:
        raise
    except FileNotFoundError as error:
        if error_code(error) != "NoSuchBucket":
            raise
        raise _explained(url, error) from error
    except Exception as error:
        raise _explained(url, error) from error


def error_code(error: BaseException | None) -> str:
    """The store's own name for the error (``AccessDenied``, say); empty where it gave none."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            return str(response["Error"].get("Code", ""))
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _explained(url: str, error: BaseException) -> StoreError:
    """What went wrong, in one sentence each for what was found, what was expected and what to do."""
    scheme = urlsplit(url).scheme
    kinds = [type(one).__name__ for one in _chain(error)]
    code = error_code(error)
    reason = _in_one_line(error)
    means = "environment variables, its configuration files, the machine's role"
    if code == "NoSuchBucket":
        return StoreError(
            f"{url}: there is no such bucket ({reason}): expected one that exists. Make it, or correct `cache:`."
        )
    if any(word in kind for kind in kinds for word in _CREDENTIALS):
        return StoreError(
            f"{url} needs credentials, and none that can be used were found ({reason}): expected them by the usual means of "
            f"{scheme}:// stores ({means}), never in the recipe. Set them, then run the same command again."
        )
    if isinstance(error, PermissionError) or code in ("403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return StoreError(
            f"{url}: access was denied ({reason}): expected credentials that may list, read and write there (to train from "
            f"a cache, list and read), found by the usual means ({means}). Look at whose they are and what the bucket "
            "allows them, then run the same command again."
        )
    # A reason that came from the server is an answer, whatever the classes that carry it are called.
    if not code and any(word in kind for kind in kinds for word in _UNREACHED):
        return StoreError(
            f"{url} cannot be reached ({reason}): expected a store that answers. Look at the network, at the bucket's name, "
            "and at the endpoint where it is not the cloud's own (AWS_ENDPOINT_URL for s3://), then run the same command "
            "again."
        )
    return StoreError(
        f"{url} answered with an error ({type(error).__name__}: {reason}): expected the request to be done. Look at the store, then "
        "run the same command again."
    )


def _in_one_line(error: BaseException) -> str:
    """What the error says; of an address only the host, for the rest may hold names, signatures or a password."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(https?://)(?:[^/\s\"]*@)?([^/\s\"?]+)[^\s\"]*", r"\1\2", text)[:300]
