"""Write scored completions as shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType

from mrpo_pipeline.cache.schema import CompletionRow, check_row, encode_shard, rows_to_table
from mrpo_pipeline.cache.shards import SHARDS
from mrpo_pipeline.cache.storage import Storage, StoreError
from mrpo_pipeline.errors import RunError, UserError

log = logging.getLogger("mrpo")


class ShardWriter:
    """Collects rows and writes them as shards; a context manager.

    A shard is written at ``rows_per_shard`` rows, when a row comes ``seconds`` or more after the first unwritten one, and at the end of
    the block, also after an exception. A killed process loses only the rows since the last shard. Several processes may write to one
    cache at once.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        rows_per_shard: int,
        seconds: float,
        fingerprint: Mapping[str, str],
        still_ours: Callable[[], None],
    ) -> None:
        """
        Args:
            storage: the reference's folder.
            rows_per_shard: maximum rows of a shard.
            seconds: maximum age of an unwritten row.
            fingerprint: the manifest's, for the metadata of every shard.
            still_ours: called before each shard; raises where the cache on disk was replaced.
        """
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is {rows_per_shard}: expected at least 1")
        self._storage = storage
        self._rows_per_shard = rows_per_shard
        self._seconds = seconds
        self._fingerprint = fingerprint
        self._still_ours = still_ours
        self._rows: list[CompletionRow] = []
        self._since = 0.0
        self._open = False
        self.shards: list[str] = []

    def __enter__(self) -> ShardWriter:
        self._open = True
        with suppress(OSError, StoreError):  # cleared later
            self._storage.clear_leftovers(SHARDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        try:
            self.flush()
        except (RunError, UserError) as failure:
            if error is None:
                raise
            # This error is usually a consequence of the first.
            if str(failure) != str(error):
                error.add_note(str(failure))
                log.error("%s", failure)

    def add(self, row: CompletionRow) -> None:
        """Add one scored completion. Raises RunError for an invalid row (see ``check_row``), or a shard that can't be written."""
        if not self._open:
            raise RuntimeError("the writer is closed: add rows inside its `with` block")
        check_row(row)
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append(row)
        if len(self._rows) >= self._rows_per_shard or time.monotonic() - self._since >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows as a shard. Raises RunError where it can't be written; the rows stay in the writer."""
        if not self._rows:
            return
        try:
            self._still_ours()
            name = self._storage.put(SHARDS, encode_shard(rows_to_table(self._rows), self._fingerprint))
        except StoreError as error:
            raise RunError(
                f"A shard of {len(self._rows):,} completions could not be written. {error} Earlier shards are complete: `mrpo score-refs` "
                "resumes from them."
            ) from error
        except OSError as error:
            raise RunError(
                f"A shard of {len(self._rows):,} completions could not be written to {self._storage}/{SHARDS} "
                f"({error.strerror or error}). Earlier shards are complete. Free space or give write access, and run `mrpo score-refs` "
                "again: it resumes from them."
            ) from error
        self._rows = []
        self.shards.append(name)
