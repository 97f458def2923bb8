"""Cache of prepared pairs on disk, so that a million pairs are cut and tokenized once and not by every command.

It is in ``mrpo_home()/pairs``, in a folder for each content. The folder's name is a digest of all inputs, including the bytes
of the pairs files, so an entry is never stale. Tables are memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from mrpo_pipeline.dataset.truncate import Prepared
from mrpo_pipeline.files.atomic import temporary_name
from mrpo_pipeline.files.hashing import mrpo_home, sha256_of_files
from mrpo_pipeline.files.unused import remove_unused
from mrpo_pipeline.pairs.counts import Counts

log = logging.getLogger("mrpo")

# Increase it if the same pairs, limits and tokenizer would be prepared differently.
RULES = "5"

Message = tuple[int, str]  # level and text of a log line


def key_of(files: Sequence[str], settings: Mapping[str, object]) -> str:
    """Digest of the files' names, order and content, and of the settings, 32 hex digits.

    Raises:
        OSError: if a file can't be read.
    """
    named = list(zip(files, sha256_of_files([Path(file) for file in files]), strict=True))
    text = json.dumps([RULES, named, settings], sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(key: str) -> tuple[dict[str, Prepared], list[Message]] | None:
    """The cached pairs of a key by split, memory-mapped, and the log lines of their preparation; None if there is no entry or it
    is damaged."""
    folder = _home() / key
    try:
        about = json.loads((folder / "about.json").read_bytes())
        digests = sha256_of_files([folder / f"{split}.arrow" for split in about["digests"]])
        if digests != list(about["digests"].values()):
            raise ValueError("a file is damaged")
        prepared = {}
        for split in about["digests"]:
            mapped = pa.ipc.open_file(pa.memory_map(str(folder / f"{split}.arrow"))).read_all()
            table = cast(pl.DataFrame, pl.from_arrow(mapped, rechunk=False))
            counts = Counts(**about["counts"][split]).checked(f"the cached {split} pairs")
            if counts.used != table.height:
                raise ValueError("a table and its counts differ")
            prepared[split] = Prepared(table, counts)
        with suppress(OSError):
            os.utime(folder)
        return prepared, [(level, text) for level, text in about["messages"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        if not folder.exists():
            return None
        log.info("The cached pairs in %s are not used and are prepared again: %s.", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def save(key: str, prepared: Mapping[str, Prepared], messages: Sequence[Message]) -> dict[str, Prepared] | None:
    """Save prepared pairs and log lines for the next command; returns the same pairs memory-mapped.

    None if there is no room: the next command prepares the pairs again.
    """
    home = _home()
    temporary = home / f"{key}.{temporary_name()}"
    try:
        temporary.mkdir(parents=True, mode=0o700)
        remove_unused(home)  # and incomplete entries of killed processes
        for split, part in prepared.items():
            arrow = part.frame.rechunk().to_arrow()
            with pa.OSFile(str(temporary / f"{split}.arrow"), "wb") as file, pa.ipc.new_file(file, arrow.schema) as out:
                out.write_table(arrow)
        digests = sha256_of_files([temporary / f"{split}.arrow" for split in prepared])
        about = {
            "digests": dict(zip(prepared, digests, strict=True)),
            "counts": {split: part.counts.as_dict() for split, part in prepared.items()},
            "messages": list(messages),
        }
        (temporary / "about.json").write_text(json.dumps(about, ensure_ascii=True), encoding="utf-8")
        os.replace(temporary, home / key)
    except (OSError, pa.ArrowException) as error:
        # Another process may have saved the same entry first.
        if not (home / key).is_dir():
            log.info(
                "The prepared pairs could not be cached in %s: each command prepares them again (%s).", home, error
            )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    found = load(key)
    return None if found is None else found[0]


@contextmanager
def recorded_log() -> Iterator[list[Message]]:
    """Collect the log lines of ``mrpo``."""
    messages: list[Message] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append((record.levelno, record.getMessage()))

    recorder = Recorder()
    log.addHandler(recorder)
    try:
        yield messages
    finally:
        log.removeHandler(recorder)


def _home() -> Path:
    return mrpo_home() / "pairs"
