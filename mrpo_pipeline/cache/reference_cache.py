"""The cache of one reference: a folder of shards and the identity of their numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.active_writers import Others, at_work
from mrpo_pipeline.cache.coverage import Coverage, read_completions
from mrpo_pipeline.cache.locations import MANIFEST, open_storage
from mrpo_pipeline.cache.maintenance import (
    WRITTEN_TO,
    CacheStats,
    Pruned,
    ShardReport,
    cache_stats,
    prune_cache,
    verify_shards,
)
from mrpo_pipeline.cache.manifest import Manifest, fixed_fields
from mrpo_pipeline.cache.reference_names import check_reference_name
from mrpo_pipeline.cache.schema import SHARD_SCHEMA, Unfit
from mrpo_pipeline.cache.sequence_logps import build_sums, load_sums, shards_key, store_sums, wanted_key
from mrpo_pipeline.cache.shards import DAMAGED, SHARDS
from mrpo_pipeline.cache.storage import Storage, StoreError
from mrpo_pipeline.cache.unscorable import match_unfit, read_unfit, write_unfit
from mrpo_pipeline.cache.verify_records import read_checks, write_check
from mrpo_pipeline.cache.writer import ShardWriter
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.terminal import one_line


class ReferenceCache:
    """Scored completions of one reference, at ``CACHE/NAME``: in a folder, or in an object store.

    Any number of processes may read it and write to it at once. Frames called *wanted* have the columns ``completion_id``
    (string) and ``cut`` (int64, bytes of the completion that count; null for the whole completion and its end-of-turn
    token).
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.name = name
        self._storage = storage
        self._coverage = Coverage(storage, self._manifest)
        self._was_begun = False

    @classmethod
    def open(cls, root: str | Path, name: str) -> ReferenceCache:
        """The cache of the reference; nothing is made or read yet.

        Args:
            root: a folder, or a URL such as ``s3://bucket/folder``.
            name: the reference's name.

        Raises:
            UserError: for a name that could leave the cache folder, a file in the folder's place, or a URL that no cache
                can be kept at.
        """
        check_reference_name(name)
        return cls(open_storage(root, name), name)

    @property
    def location(self) -> str:
        """The reference's folder as the user writes it: a path or a URL."""
        return str(self._storage)

    # The numbers' identity.

    def manifest(self) -> Manifest | None:
        """What the numbers were computed from; None where nothing was scored yet.

        Raises:
            UserError: where it cannot be read, or shards lie there without one.
        """
        try:
            return self._manifest()
        except StoreError as error:
            raise UserError(str(error)) from error

    def fingerprint(self) -> Mapping[str, str]:
        """The manifest's fields of everything that changes the numbers; empty where nothing was scored yet."""
        manifest = self.manifest()
        return {} if manifest is None else manifest.fingerprint

    def _manifest(self) -> Manifest | None:
        try:
            data = self._storage.read(MANIFEST).to_pybytes()
        except FileNotFoundError:
            with self._telling():
                shards = self._storage.list(SHARDS)
            if shards:
                raise UserError(
                    f"{self._storage} holds shards and no {MANIFEST}: nothing tells what they were computed from. Restore "
                    "the manifest from a copy, or remove that folder and score again (`mrpo score-refs`)."
                ) from None
            return None
        except OSError as error:
            raise UserError(
                f"{self._storage}/{MANIFEST} cannot be read ({error.strerror or error}): give read access to the cache, and "
                "look at the disk or mount that it lies on."
            ) from error
        return Manifest.from_bytes(data, f"{self._storage}/{MANIFEST}")

    def check(self, expected: Mapping[str, str | None]) -> None:
        """Refuse a cache whose numbers are not those of this fingerprint; a reference not yet scored passes.

        Fields that are None in ``expected`` (cannot be told here, or left to the cache) are not compared.

        Raises:
            UserError: naming each field that differs, both values and what mends it.
        """
        manifest = self.manifest()
        if manifest is None:
            return
        differences = manifest.differences(expected)
        if not differences:
            return
        # A manifest may come from anywhere: its values are cut.
        told = "; ".join(
            f"`{field}` is {one_line(recorded, 200) or '(empty)'} in the cache and {one_line(value, 200) or '(empty)'} in this run"
            for field, recorded, value in differences
        )
        raise UserError(
            f"The cache of reference {self.name} at {self._storage} was not computed by the reference that this run names: "
            f"{told}. Its numbers are neither used nor touched. Set the reference back to what the cache has, or give it "
            f"another name under `references:`, or {self._removal()}."
        )

    def create_or_check(
        self, fingerprint: Mapping[str, str | None], recorded: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Begin the cache with this fingerprint, or refuse it where it was begun with another.

        Of several processes at once one begins it, and the others check against it.

        Args:
            fingerprint: field → value, of everything that changes the numbers.
            recorded: engine, versions, machine, time: kept beside it, compared with nothing.

        Returns:
            the manifest on disk.

        Raises:
            UserError: where the fingerprint differs (see ``check``), or the folder cannot be written to.
        """
        if self.manifest() is None:
            recorded = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **(recorded or {})}
            made = Manifest(self.name, fixed_fields(fingerprint), recorded)
            try:
                self._storage.make_root()
                self._storage.clear_leftovers()
                self._storage.create(MANIFEST, made.to_bytes())
            except StoreError as error:
                raise UserError(f"The cache of reference {self.name} cannot be begun. {error}") from error
            except OSError as error:
                raise UserError(
                    f"The cache of reference {self.name} cannot be begun at {self._storage} ({error.strerror or error}): "
                    "expected a folder that can be written to. Make room, give write access, or name another under `cache:`."
                ) from error
        self.check(fingerprint)
        self._was_begun = True
        return self._begun()

    # What it can serve.

    def missing(self, wanted: pl.DataFrame, *, context: int | None = None) -> pl.DataFrame:
        """The rows of ``wanted`` that are still to be scored: not served by the cache, nor known not to fit.

        Args:
            wanted: see the class; other columns are kept.
            context: the reference's context length now, where it is known: what did not fit a shorter one is tried again.
        """
        with self._telling():
            unserved = self._unserved(wanted)
            known = match_unfit(read_unfit(self._storage), unserved, context).select("completion_id", "cut").unique()
        return unserved.join(known, on=["completion_id", "cut"], how="anti", nulls_equal=True, maintain_order="left")

    def unserved(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """The rows of ``wanted`` that the cache does not serve now, those known not to fit among them."""
        with self._telling():
            return self._unserved(wanted)

    def unfit(self, wanted: pl.DataFrame, *, context: int | None = None) -> pl.DataFrame:
        """The rows of ``wanted`` that do not fit the reference's context and that no row serves: with ``tokens`` (that
        scoring it takes) and ``context`` (length), both in the reference's tokens."""
        with self._telling():
            records = read_unfit(self._storage)
            asked = wanted.with_columns(_keys(wanted)["cut"])
            if records.is_empty():
                asked = asked.clear()
            matched = match_unfit(records, asked, context)
            # To tell what is served takes a look into every shard: not where nothing is unfit, as in most runs.
            return self._unserved(matched) if matched.height else matched

    def sums(self, wanted: pl.DataFrame, *, on_missing: Literal["error", "null"] = "error") -> pl.DataFrame:
        """Sums of the log-probs that count, in ``wanted``'s order.

        Without a cut all tokens count; with one, those that end at or before it, and never the end-of-turn token. Read
        from a derived file where a sound one of exactly these shards and cuts is there, else added up from verified
        shards and kept.

        Args:
            on_missing: what to do where the cache serves a row of ``wanted`` not: ``error``, or ``null`` sums.

        Returns:
            ``completion_id``, ``cut``, ``logps`` (float64, nats), ``tokens`` (int32).

        Raises:
            UserError: for completions that are not scored (those that do not fit among them: see ``unfit``).
            RunError: for a shard that is damaged, or of another reference.
        """
        keys = _keys(wanted)
        distinct = keys if _ascending(keys) else keys.unique().sort("completion_id", "cut", nulls_last=True)
        with self._telling():
            shards = self._storage.list(SHARDS)
            prefix = f"{shards_key(shards, self._manifest())}-{wanted_key(distinct)}-"
            sums = load_sums(self._storage, prefix)
            if sums is None:
                sums = build_sums(self._storage, self._coverage.serving(distinct, shards))
                lacking = sums.filter(pl.col("logps").is_null())
                if lacking.height:
                    if on_missing == "error":
                        self._refuse_missing(lacking, distinct.height)
                else:
                    store_sums(self._storage, prefix, sums)
        if distinct is keys:
            return sums
        return keys.join(sums, on=["completion_id", "cut"], how="left", nulls_equal=True, maintain_order="left")

    def rows(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """The whole rows (columns of the shard schema) that serve ``wanted``, each once, from verified shards; rows that
        nothing serves are absent.

        Raises:
            RunError: for a shard that is damaged.
        """
        with self._telling():
            serving = self._coverage.serving(_keys(wanted)).filter(pl.col("shard").is_not_null())
            tables = [SHARD_SCHEMA.empty_table(), *read_completions(self._storage, serving.unique("completion_id"))]
        return cast(pl.DataFrame, pl.from_arrow(pa.concat_tables(tables)))

    # Adding to it.

    def writer(self, *, rows_per_shard: int = 10_000, seconds: float = 300.0) -> ShardWriter:
        """A context manager that takes rows (``add``) and writes shards; ``create_or_check`` comes first.

        Args:
            rows_per_shard: at most so many rows in a shard.
            seconds: a row that has waited so long takes a shard with it, however small.
        """
        opened = self._begun()

        def still_ours() -> None:
            manifest = self._manifest()
            if manifest is None or manifest.fingerprint_hash != opened.fingerprint_hash:
                raise RunError(
                    f"The cache of reference {self.name} at {self._storage} was removed or begun anew while this run was "
                    "scoring into it: the rows in hand were not written. Run `mrpo score-refs` again."
                )

        return ShardWriter(
            self._storage,
            rows_per_shard=rows_per_shard,
            seconds=seconds,
            fingerprint=opened.fingerprint,
            still_ours=still_ours,
        )

    def at_work(self) -> AbstractContextManager[Others]:
        """Be seen by other runs that score into this cache meanwhile; gives what names them (see ``at_work``)."""
        return at_work(self._storage)

    def require_writable(self) -> None:
        """Refuse, before an engine starts, a folder that may not be written to; a full one shows only when it is written to.

        Raises:
            UserError: for a read-only file system, or without permission.
        """
        if not self._storage.can_write():
            raise UserError(
                f"The cache of reference {self.name} at {self._storage} cannot be written to (Read-only file system, or no "
                "permission), and completions are still to be scored into it: nothing was started. Give write access, or name "
                "another folder under `cache:`."
            )

    def mark_unfit(self, records: Sequence[Unfit]) -> None:
        """Record completions that do not fit the reference's context, in one file."""
        self._begun()
        write_unfit(self._storage, records)

    # Looking after it.

    def verify(self) -> Iterator[ShardReport]:
        """Each shard against its checksum, the manifest and what its rows must be, one report a shard.

        Raises:
            UserError: for a manifest that is not what was written: what the numbers are is then not known.
        """
        with self._telling():
            yield from verify_shards(self._storage, self._manifest())

    def clear_leftovers(self) -> None:
        """Remove what processes that died have left half written, where it can be removed."""
        for folder in WRITTEN_TO:
            with suppress(OSError, StoreError):
                self._storage.clear_leftovers(folder)

    def set_aside(self, names: Sequence[str]) -> list[str]:
        """Move damaged files to the folder ``damaged`` of the reference, where nothing reads them; their new names.

        What they held is missing from then on, and is scored by whoever scores next.

        Args:
            names: as ``verify`` reports them.

        Raises:
            RunError: for a file that cannot be moved.
        """
        try:
            return [self._storage.move(name, DAMAGED) for name in names]
        except OSError as error:
            raise RunError(
                f"A damaged file of reference {self.name} at {self._storage} could not be set aside ({error}): nothing was "
                "scored again. Give write access there, and run the command again."
            ) from error

    def record_check(self, result: Mapping[str, Any]) -> None:
        """Keep the result of computing numbers again beside the manifest (see ``checks.write_check``)."""
        write_check(self._storage, result)

    def checks(self) -> list[dict[str, Any]]:
        """The results kept so, the newest first."""
        return read_checks(self._storage)

    def stats(self) -> CacheStats:
        """Rows, completions, tokens, bytes, nats per token."""
        with self._telling():
            return cache_stats(self._storage, self._coverage, read_unfit(self._storage)["completion_id"].n_unique())

    def prune(self) -> Pruned:
        """Remove what serves nothing: leftovers of dead processes, stale sums, shards whose every row stands elsewhere."""
        with self._telling():
            return prune_cache(self._storage, self._coverage, self._manifest())

    def remove(self) -> None:
        """Delete the reference's folder with all its numbers, the manifest last: while any shard is left, what they were
        computed from is too."""
        try:
            self._storage.delete_all(last=MANIFEST)
        except OSError as error:
            raise RunError(
                f"The cache of reference {self.name} at {self._storage} could not be removed whole ({error}). What is left "
                "of it is sound. End the processes that write to it, or give write access, and remove it again."
            ) from error

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What a disk refuses meanwhile becomes one sentence; what a store refuses is one already."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"The cache of reference {self.name} at {self._storage} could not be read or written "
                f"({error.strerror or error}): {error.filename or 'a file of it'}. None of its numbers was used or lost by this. "
                "Look at the disk or mount that it lies on, give access to it, and run the same command again."
            ) from error

    def _begun(self) -> Manifest:
        manifest = self.manifest()
        if manifest is None and self._was_begun:
            raise RunError(
                f"The cache of reference {self.name} at {self._storage} was removed while this run was at work on it: nothing more "
                "was written. Run `mrpo score-refs` again."
            )
        if manifest is None:
            raise RuntimeError(f"the cache of {self.name} has no manifest: call create_or_check before writing to it")
        return manifest

    def _unserved(self, wanted: pl.DataFrame) -> pl.DataFrame:
        served = self._coverage.serving(_keys(wanted))["shard"].is_not_null()
        return wanted.with_columns(_keys(wanted)["cut"]).filter(~served)

    def _refuse_missing(self, lacking: pl.DataFrame, count: int) -> None:
        unfit = match_unfit(read_unfit(self._storage), lacking.select("completion_id", "cut"), None).height
        also = f", {unfit:,} of which do not fit its context" if unfit else ""
        first = lacking["completion_id"][0]
        raise UserError(
            f"Reference {self.name} at {self._storage} lacks {lacking.height:,} of {count:,} completions{also} (the first is "
            f"{first}): expected all of them scored, up to the lengths that this run counts. Run `mrpo score-refs` with this "
            "recipe: it scores what is missing, and only that."
        )

    def _removal(self) -> str:
        root = shlex.quote(self.location.removesuffix(self.name).rstrip("/\\"))
        return (
            f"delete these numbers (`mrpo cache prune --cache {root} --reference {self.name} --all`) and score again "
            "(`mrpo score-refs`)"
        )


def _keys(wanted: pl.DataFrame) -> pl.DataFrame:
    """``completion_id`` and ``cut`` of what is wanted, with their types."""
    keys = wanted.select(pl.col("completion_id").cast(pl.String), pl.col("cut").cast(pl.Int64))
    if keys["completion_id"].null_count() or (keys["cut"] < 0).any():
        raise ValueError("wanted holds a completion id that is null, or a negative cut")
    return keys


def _ascending(keys: pl.DataFrame) -> bool:
    """Whether each row stands after the one before it, by completion id and then by cut, null last: distinct and sorted."""
    ids, cuts = keys["completion_id"], keys["cut"].fill_null(np.iinfo(np.int64).max)
    before, after = slice(None, -1), slice(1, None)
    later = (ids[after] > ids[before]) | ((ids[after] == ids[before]) & (cuts[after] > cuts[before]))
    return bool(later.all())
