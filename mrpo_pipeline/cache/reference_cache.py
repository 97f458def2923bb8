"""The cache of one reference: shards and their manifest."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.active_writers import Others, register_run
from mrpo_pipeline.cache.compact import Compacted, compact_cache
from mrpo_pipeline.cache.coverage import Coverage, read_completions
from mrpo_pipeline.cache.locations import MANIFEST, open_storage
from mrpo_pipeline.cache.manifest import Manifest, fixed_fields
from mrpo_pipeline.cache.reference_names import check_reference_name
from mrpo_pipeline.cache.schema import SHARD_SCHEMA, Unfit
from mrpo_pipeline.cache.sequence_logps import build_sums, load_sums, shards_key, store_sums, wanted_key
from mrpo_pipeline.cache.shards import DAMAGED, SHARDS
from mrpo_pipeline.cache.span_logps import (
    CountedTokens,
    build_spans,
    counted_tokens,
    load_spans,
    spans_key,
    store_spans,
)
from mrpo_pipeline.cache.statistics import CacheStats, cache_stats
from mrpo_pipeline.cache.storage import Storage, StoreError
from mrpo_pipeline.cache.unscorable import UNFIT, match_unfit, read_unfit, write_unfit
from mrpo_pipeline.cache.verification_results import CHECKS, read_checks, write_check
from mrpo_pipeline.cache.verify_and_prune import (
    TEMPORARY_FOLDERS,
    Pruned,
    ShardReport,
    prune_cache,
    verify_shards,
)
from mrpo_pipeline.cache.writer import ShardWriter
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.targets.spans import Spans
from mrpo_pipeline.terminal import one_line

# Folders that are copied with a cache, and the suffix of their files; derived files are rebuilt.
TRAVELS = {SHARDS: ".parquet", UNFIT: ".parquet", CHECKS: ".json"}


class ReferenceCache:
    """Scored completions of one reference, at ``CACHE/NAME``: in a folder, or in an object store.

    Any number of processes may read and write it at once. Frames called *wanted* have the columns ``completion_id`` (string) and ``cut``
    (int64, bytes of the completion that count; null for all of it with its end-of-turn token).
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.name = name
        self.storage = storage
        self._coverage = Coverage(storage, self._manifest)
        self._created = False

    @classmethod
    def open(cls, root: str | Path, name: str) -> ReferenceCache:
        """The cache of a reference; creates and reads nothing.

        Args:
            root: a folder, or a URL such as ``s3://bucket/folder``.
            name: the reference's name.

        Raises:
            UserError: for a name that could leave the cache folder, a file in place of the folder, or an unsupported URL.
        """
        check_reference_name(name)
        return cls(open_storage(root, name), name)

    @property
    def location(self) -> str:
        """The reference's folder as a path or URL."""
        return str(self.storage)

    def files(self) -> int:
        """The number of files that are copied with the cache (see ``transfer``)."""
        return sum(len(self.storage.list(folder, suffix)) for folder, suffix in TRAVELS.items())

    # Manifest.

    def manifest(self) -> Manifest | None:
        """The manifest; None where nothing is scored yet. Raises UserError where it can't be read, or is missing beside shards."""
        try:
            return self._manifest()
        except StoreError as error:
            raise UserError(str(error)) from error

    def fingerprint(self) -> Mapping[str, str]:
        """The manifest's fingerprint; empty where nothing is scored yet."""
        manifest = self.manifest()
        return {} if manifest is None else manifest.fingerprint

    def _manifest(self) -> Manifest | None:
        try:
            data = self.storage.read(MANIFEST).to_pybytes()
        except FileNotFoundError:
            with self.disk_errors():
                shards = self.storage.list(SHARDS)
            if shards:
                raise UserError(
                    f"{self.storage} holds shards but no {MANIFEST}, so their origin is unknown. Restore the manifest from a backup, or "
                    "remove the folder and score again (`mrpo score-refs`)."
                ) from None
            return None
        except OSError as error:
            raise UserError(
                f"{self.storage}/{MANIFEST} cannot be read ({error.strerror or error}): give read access to the cache, or "
                "check its disk or mount."
            ) from error
        return Manifest.from_bytes(data, f"{self.storage}/{MANIFEST}")

    def check(self, expected: Mapping[str, str | None]) -> None:
        """Compare the manifest's fingerprint with ``expected``; passes if nothing is scored yet.

        Fields that are None in ``expected`` (unknown, or left to the cache) are not compared.

        Raises:
            UserError: with each field that differs, both values and the fix.
        """
        manifest = self.manifest()
        if manifest is None:
            return
        differences = manifest.differences(expected)
        if not differences:
            return
        # A manifest may be untrusted: values are shortened.
        text = "; ".join(
            f"`{field}` is {one_line(recorded, 200) or '(empty)'} in the cache and {one_line(value, 200) or '(empty)'} in this run"
            for field, recorded, value in differences
        )
        raise UserError(
            f"The cache of reference {self.name} at {self.storage} was not computed by the reference that this run names: "
            f"{text}. The cache was not used or changed. Set the reference to what the cache has, or give it "
            f"another name under `references:`, or {self._removal()}."
        )

    def create_or_check(
        self,
        fingerprint: Mapping[str, str | None],
        recorded: Mapping[str, Any] | None = None,
        card: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Create the cache with this fingerprint, or check it against an existing one.

        Of several processes one creates it, and the others check.

        Args:
            fingerprint: field → value, of everything that changes the log-probs.
            recorded: engine, versions, machine, time; informative, not compared.
            card: see ``Manifest``.

        Returns:
            the manifest on disk.

        Raises:
            UserError: for another fingerprint (see ``check``), or a folder that can't be written to.
        """
        if self.manifest() is None:
            recorded = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **(recorded or {})}
            made = Manifest(self.name, fixed_fields(fingerprint), recorded, card or {})
            try:
                self.storage.make_root()
                self.storage.clear_leftovers()
                self.storage.create(MANIFEST, made.to_bytes())
            except StoreError as error:
                raise UserError(f"The cache of reference {self.name} cannot be created. {error}") from error
            except OSError as error:
                raise UserError(
                    f"The cache of reference {self.name} cannot be created at {self.storage} ({error.strerror or error}). Free space, "
                    "give write access, or set another folder in `cache:`."
                ) from error
        self.check(fingerprint)
        self._created = True
        return self._existing_manifest()

    # Reading.

    def missing(self, wanted: pl.DataFrame, *, context: int | None = None) -> pl.DataFrame:
        """The rows of ``wanted`` that are still to be scored: neither cached nor known to be unscorable.

        Args:
            wanted: see the class; other columns are kept.
            context: the reference's current context length, if known: what exceeded a shorter one is tried again.
        """
        with self.disk_errors():
            unserved = self._unserved(wanted)
            known = match_unfit(read_unfit(self.storage), unserved, context).select("completion_id", "cut").unique()
        return unserved.join(known, on=["completion_id", "cut"], how="anti", nulls_equal=True, maintain_order="left")

    def unserved(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """The rows of ``wanted`` that are not cached, unscorable ones included."""
        with self.disk_errors():
            return self._unserved(wanted)

    def unfit(self, wanted: pl.DataFrame, *, context: int | None = None) -> pl.DataFrame:
        """The unscorable rows of ``wanted``, with ``tokens`` (of prompt and completion) and ``context`` (length) in the reference's
        tokens."""
        with self.disk_errors():
            records = read_unfit(self.storage)
            asked = wanted.with_columns(_keys(wanted)["cut"])
            if records.is_empty():
                asked = asked.clear()
            matched = match_unfit(records, asked, context)
            # Coverage reads every shard: skip it where nothing is unscorable, the usual case.
            return self._unserved(matched) if matched.height else matched

    def sums(self, wanted: pl.DataFrame, *, on_missing: Literal["error", "null"] = "error") -> pl.DataFrame:
        """Sums of the log-probs that count, in the order of ``wanted``.

        Without a cut all tokens count; with one, those that end at or before it, without the end-of-turn token. Read from a derived
        file of exactly these shards and cuts, else summed from verified shards and stored.

        Args:
            on_missing: for rows that are not cached: ``error``, or ``null`` sums.

        Returns:
            ``completion_id``, ``cut``, ``logps`` (float64, nats), ``tokens`` (int32).

        Raises:
            UserError: for completions that are not scored, unscorable ones included (see ``unfit``).
            RunError: for a damaged shard, or one of another reference.
        """
        keys = _keys(wanted)
        distinct = keys if _ascending(keys) else keys.unique().sort("completion_id", "cut", nulls_last=True)
        with self.disk_errors():
            shards = self.storage.list(SHARDS)
            prefix = f"{shards_key(shards, self._manifest())}-{wanted_key(distinct)}-"
            sums = load_sums(self.storage, prefix)
            if sums is None:
                sums = build_sums(self.storage, self._coverage.serving(distinct, shards))
                lacking = sums.filter(pl.col("logps").is_null())
                if lacking.height:
                    if on_missing == "error":
                        self._refuse_missing(lacking, distinct.height)
                else:
                    store_sums(self.storage, prefix, sums)
        if distinct is keys:
            return sums
        return keys.join(sums, on=["completion_id", "cut"], how="left", nulls_equal=True, maintain_order="left")

    def spans(self, others: Sequence[ReferenceCache], wanted: pl.DataFrame) -> Spans:
        """The log-probs of this reference and others per span, between the token ends that all share; stored like this reference's sums.

        Args:
            wanted: distinct and sorted by completion id and then by cut, null last.

        Raises:
            UserError, RunError: as :meth:`sums`, for each reference.
        """
        every, keys = [self, *others], _keys(wanted)
        if not _ascending(keys):
            raise ValueError("wanted is not distinct and sorted by completion id and cut")
        shards = [cache._shards_key() for cache in every]
        prefix = f"{shards[0]}-{spans_key(shards, wanted_key(keys))}-"
        with self.disk_errors():
            spans = load_spans(self.storage, prefix, len(every), keys.height)
        if spans is None:
            spans = build_spans([cache._counted_tokens(keys) for cache in every])
            with self.disk_errors():
                store_spans(self.storage, prefix, spans)
        return spans

    def _shards_key(self) -> str:
        with self.disk_errors():
            return shards_key(self.storage.list(SHARDS), self._manifest())

    def _counted_tokens(self, keys: pl.DataFrame) -> CountedTokens:
        with self.disk_errors():
            serving = self._coverage.serving(keys)
            lacking = serving.filter(pl.col("shard").is_null())
            if lacking.height:
                self._refuse_missing(lacking, keys.height)
            return counted_tokens(self.storage, serving)

    def rows(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """The distinct rows (columns of the shard schema) that serve ``wanted``, from verified shards. Raises RunError."""
        with self.disk_errors():
            serving = self._coverage.serving(_keys(wanted)).filter(pl.col("shard").is_not_null())
            tables = [SHARD_SCHEMA.empty_table(), *read_completions(self.storage, serving.unique("completion_id"))]
        return cast(pl.DataFrame, pl.from_arrow(pa.concat_tables(tables)))

    # Writing.

    def writer(
        self,
        *,
        rows_per_shard: int = 10_000,
        seconds: float = 300.0,
        confirm: Callable[[], None] | None = None,
    ) -> ShardWriter:
        """A context manager that takes rows (``add``) and writes shards; call ``create_or_check`` before.

        Args:
            rows_per_shard: maximum rows of a shard.
            seconds: maximum age of an unwritten row.
            confirm: called before each shard is written; raises if its rows may come from another model.
        """
        opened = self._existing_manifest()

        def still_ours() -> None:
            if confirm is not None:
                confirm()
            manifest = self._manifest()
            if manifest is None or manifest.fingerprint_hash != opened.fingerprint_hash:
                raise RunError(
                    f"The cache of reference {self.name} at {self.storage} was removed or replaced while this run was "
                    "scoring into it. The last rows were not written. Run `mrpo score-refs` again."
                )

        return ShardWriter(
            self.storage,
            rows_per_shard=rows_per_shard,
            seconds=seconds,
            fingerprint=opened.fingerprint,
            still_ours=still_ours,
        )

    def register_run(self) -> AbstractContextManager[Others]:
        """Register this run with others that score into this cache (see ``active_writers.register_run``)."""
        return register_run(self.storage)

    def require_writable(self) -> None:
        """Raise UserError, before an engine starts, for a read-only folder. A full disk shows only on writing."""
        if not self.storage.can_write():
            raise UserError(
                f"The cache of reference {self.name} at {self.storage} cannot be written to (Read-only file system, or no "
                "permission), and completions are still to be scored. Give write access, or set another folder in `cache:`."
            )

    def mark_unfit(self, records: Sequence[Unfit]) -> None:
        """Record unscorable completions in one file."""
        self._existing_manifest()
        write_unfit(self.storage, records)

    # Maintenance.

    def verify(self) -> Iterator[ShardReport]:
        """Verify each shard: checksum, origin and rows. Raises UserError for a damaged manifest."""
        with self.disk_errors():
            yield from verify_shards(self.storage, self._manifest())

    def clear_leftovers(self) -> None:
        """Remove temporary files of dead processes, where possible."""
        for folder in TEMPORARY_FOLDERS:
            with suppress(OSError, StoreError):
                self.storage.clear_leftovers(folder)

    def set_aside(self, names: Sequence[str]) -> list[str]:
        """Move damaged files to the reference's folder ``damaged``; returns their new names. Their completions count as missing.

        Args:
            names: of ``verify``'s reports.

        Raises:
            RunError: for a file that can't be moved.
        """
        try:
            return [self.storage.move(name, DAMAGED) for name in names]
        except OSError as error:
            raise RunError(
                f"A damaged file of reference {self.name} at {self.storage} could not be moved aside ({error}). Nothing was "
                "scored again. Give write access and run the command again."
            ) from error

    def record_check(self, result: Mapping[str, Any]) -> None:
        """Store the result of a check beside the manifest (see ``verification_results.write_check``)."""
        write_check(self.storage, result)

    def checks(self) -> list[dict[str, Any]]:
        """The stored results of checks, newest first."""
        return read_checks(self.storage)

    def stats(self) -> CacheStats:
        """Rows, completions, tokens, bytes, nats per token."""
        with self.disk_errors():
            return cache_stats(self.storage, self._manifest(), read_unfit(self.storage)["completion_id"].n_unique())

    def prune(self) -> Pruned:
        """Remove leftovers of dead processes, outdated derived files and superseded shards."""
        with self.disk_errors():
            return prune_cache(self.storage, self._coverage, self._manifest())

    def compact(self, rows_per_shard: int = 10_000) -> Compacted:
        """Join small shards into shards of ``rows_per_shard`` rows; what the cache serves stays the same."""
        with self.disk_errors():
            return compact_cache(self.storage, self._existing_manifest(), rows_per_shard)

    def remove(self) -> None:
        """Delete the reference's folder, the manifest last, so that remaining shards keep their origin."""
        try:
            self.storage.delete_all(last=MANIFEST)
        except OSError as error:
            raise RunError(
                f"The cache of reference {self.name} at {self.storage} could not be removed completely ({error}). What is "
                "left is sound. End the processes that write to it, or give write access, and remove it again."
            ) from error

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn a disk error in the block into a RunError; errors of a store pass."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"The cache of reference {self.name} at {self.storage} could not be read or written "
                f"({error.strerror or error}): {error.filename or 'one of its files'}. Nothing was lost. Check the disk or "
                "mount, give access, and run the command again."
            ) from error

    def _existing_manifest(self) -> Manifest:
        manifest = self.manifest()
        if manifest is None and self._created:
            raise RunError(
                f"The cache of reference {self.name} at {self.storage} was removed during this run. Nothing more was written. Run "
                "`mrpo score-refs` again."
            )
        if manifest is None:
            raise RuntimeError(f"the cache of {self.name} has no manifest: call create_or_check before writing to it")
        return manifest

    def _unserved(self, wanted: pl.DataFrame) -> pl.DataFrame:
        served = self._coverage.serving(_keys(wanted))["shard"].is_not_null()
        return wanted.with_columns(_keys(wanted)["cut"]).filter(~served)

    def _refuse_missing(self, lacking: pl.DataFrame, count: int) -> None:
        unfit = match_unfit(read_unfit(self.storage), lacking.select("completion_id", "cut"), None).height
        also = f", {unfit:,} of which do not fit its context" if unfit else ""
        first = lacking["completion_id"][0]
        raise UserError(
            f"Reference {self.name} at {self.storage} lacks {lacking.height:,} of {count:,} completions{also} (first: {first}): expected "
            "all of them, up to the lengths of this run. Run `mrpo score-refs` with this recipe: it scores only what is missing."
        )

    def _removal(self) -> str:
        root = shlex.quote(self.location.removesuffix(self.name).rstrip("/\\"))
        return (
            f"delete these numbers (`mrpo cache prune --cache {root} --reference {self.name} --all`) and score again "
            "(`mrpo score-refs`)"
        )


def _keys(wanted: pl.DataFrame) -> pl.DataFrame:
    """``completion_id`` and ``cut`` of ``wanted``, with their types."""
    keys = wanted.select(pl.col("completion_id").cast(pl.String), pl.col("cut").cast(pl.Int64))
    if keys["completion_id"].null_count() or (keys["cut"] < 0).any():
        raise ValueError("wanted has a null completion id or a negative cut")
    return keys


def _ascending(keys: pl.DataFrame) -> bool:
    """Whether rows are strictly ascending by completion id and cut (null last): distinct and sorted."""
    ids, cuts = keys["completion_id"], keys["cut"].fill_null(np.iinfo(np.int64).max)
    before, after = slice(None, -1), slice(1, None)
    later = (ids[after] > ids[before]) | ((ids[after] == ids[before]) & (cuts[after] > cuts[before]))
    return bool(later.all())
