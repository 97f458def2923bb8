"""Prepared pairs kept on disk, so that a million pairs are cut and tokenized once and not by every command.

Kept in ``mrpo_home()/pairs``, a folder for each content: its name is a digest of everything that decides what is in it, the
bytes of the pairs files among it, so that what is found is never stale. The tables are mapped from their files, not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from mrpo_pipeline.files.atomic import temporary_name
from mrpo_pipeline.files.hashing import mrpo_home, sha256_of_files

log = logging.getLogger("mrpo")

# Raise it when the same pairs, limits and tokenizer would be prepared in another way.
RULES = "3"

UNUSED_DAYS = 30


@dataclass(frozen=True)
class KeptPairs:
    """What one preparation made."""

    tables: Mapping[str, pl.DataFrame]
    """By split; those that were kept before are mapped from their files."""
    counts: Mapping[str, Mapping[str, Any]]
    """By split, plain data."""
    said: Sequence[tuple[int, str]]
    """What was said when they were made, each with its level."""


def key_of(files: Sequence[str], settings: Mapping[str, object]) -> str:
    """Digest of the files' names, order and content, and of the settings, 32 hex digits.

    Raises:
        OSError: where a file cannot be read.
    """
    named = list(zip(files, sha256_of_files([Path(file) for file in files]), strict=True))
    text = json.dumps([RULES, named, settings], sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def find(key: str) -> KeptPairs | None:
    """What is kept under the key; None where nothing is, or not what was written."""
    folder = _home() / key
    try:
        about = json.loads((folder / "about.json").read_bytes())
        digests = sha256_of_files([folder / f"{split}.arrow" for split in about["digests"]])
        if digests != list(about["digests"].values()):
            raise ValueError("a file is not what was written")
        tables = {}
        for split in about["digests"]:
            mapped = pa.ipc.open_file(pa.memory_map(str(folder / f"{split}.arrow"))).read_all()
            tables[split] = cast(pl.DataFrame, pl.from_arrow(mapped, rechunk=False))
        with suppress(OSError):
            os.utime(folder)
        return KeptPairs(tables, about["counts"], [(level, text) for level, text in about["said"]])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        if not folder.exists():
            return None
        log.info("The pairs kept in %s are not used and are prepared again: %s.", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep(key: str, made: KeptPairs) -> KeptPairs | None:
    """Keep what was made for the next command, and give it back mapped from its files.

    None where there is no room: the next command prepares the pairs again.
    """
    home = _home()
    temporary = home / f"{key}.{temporary_name()}"
    try:
        temporary.mkdir(parents=True, mode=0o700)
        _remove_unused(home)
        for split, table in made.tables.items():
            arrow = table.rechunk().to_arrow()
            with pa.OSFile(str(temporary / f"{split}.arrow"), "wb") as file, pa.ipc.new_file(file, arrow.schema) as out:
                out.write_table(arrow)
        digests = sha256_of_files([temporary / f"{split}.arrow" for split in made.tables])
        about = {
            "digests": dict(zip(made.tables, digests, strict=True)),
            "counts": dict(made.counts),
            "said": list(made.said),
        }
        (temporary / "about.json").write_text(json.dumps(about, ensure_ascii=True), encoding="utf-8")
        os.replace(temporary, home / key)
    except (OSError, pa.ArrowException) as error:
        # Another process that kept the same first is no loss, and no news.
        if not (home / key).is_dir():
            log.info("The prepared pairs could not be kept in %s: each command prepares them again (%s).", home, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return find(key)


@contextmanager
def remembering() -> Iterator[list[tuple[int, str]]]:
    """Collect what ``mrpo`` says meanwhile, with its level."""
    said: list[tuple[int, str]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.levelno, record.getMessage()))

    listener = Listener()
    log.addHandler(listener)
    try:
        yield said
    finally:
        log.removeHandler(listener)


def _home() -> Path:
    return mrpo_home() / "pairs"


def _remove_unused(home: Path) -> None:
    """What was not used for a month, and what a process that died left half written."""
    oldest = time.time() - UNUSED_DAYS * 86_400
    for folder in home.iterdir():
        with suppress(OSError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
