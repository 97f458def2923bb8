"""Scored completions into shards: what was flushed stays, whatever happens next."""

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
    """Gathers rows and writes them as shards; a context manager.

    A shard is written when ``rows_per_shard`` rows are there, when a row comes ``seconds`` or more after the first that is
    still unwritten, and when the block is left, also by an exception: what was scored is kept. A process that is killed
    loses the rows since the last shard and nothing else. Several processes may write into one cache at once.
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
            rows_per_shard: at most so many rows in a shard.
            seconds: age of the oldest unwritten row at which a shard is written all the same.
            fingerprint: the manifest's, which every shard says of itself.
            still_ours: called before each shard; raises where the cache on disk is no longer the one that was opened.
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
        with suppress(OSError, StoreError):  # no obstacle: they are cleared another time
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
            # The first error is what the reader has to know; this one is usually its consequence.
            if str(failure) != str(error):
                error.add_note(str(failure))
                log.error("%s", failure)

    def add(self, row: CompletionRow) -> None:
        """Take one scored completion.

        Raises:
            RunError: for a row that may not enter the cache (see ``check_row``), or when a shard cannot be written.
        """
        if not self._open:
            raise RuntimeError("the writer is closed: add rows inside its `with` block")
        check_row(row)
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append(row)
        if len(self._rows) >= self._rows_per_shard or time.monotonic() - self._since >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered as one shard, now.

        Raises:
            RunError: when it cannot be written; the rows stay with the writer, and the cache as it was.
        """
        if not self._rows:
            return
        try:
            self._still_ours()
            name = self._storage.put(SHARDS, encode_shard(rows_to_table(self._rows), self._fingerprint))
        except StoreError as error:
            raise RunError(
                f"A shard of {len(self._rows):,} completions could not be written. {error} The shards written before it are "
                "whole and stay: `mrpo score-refs` goes on from them."
            ) from error
        except OSError as error:
            raise RunError(
                f"A shard of {len(self._rows)} completions could not be written to {self._storage}/{SHARDS} "
                f"({error.strerror or error}). The shards written before it are whole and stay. Make room or give write "
                "access there, then run `mrpo score-refs` again: it goes on from them."
            ) from error
        self._rows = []
        self.shards.append(name)
