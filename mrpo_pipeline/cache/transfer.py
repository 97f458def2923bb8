"""Copy a reference's cache to another place, or into another cache of the same fingerprint.

The checksum and rows of every file are verified before it is written, atomically and under its own name, so a killed copy resumes
with the files that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from mrpo_pipeline.cache.coverage import Coverage
from mrpo_pipeline.cache.locations import list_references
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.reference_cache import TRAVELS, ReferenceCache
from mrpo_pipeline.cache.schema import SHARD_SCHEMA, encode_shard
from mrpo_pipeline.cache.shards import SHARDS, read_checked, read_rows, shard_table
from mrpo_pipeline.cache.storage import Storage, sha256_hex
from mrpo_pipeline.cache.unscorable import UNFIT, read_records
from mrpo_pipeline.cache.verification_results import CHECKS, encode_check
from mrpo_pipeline.errors import UserError

# Fields of check results that describe the machine, and fields of a manifest's record that are published.
_OF_A_MACHINE = ("cache", "recomputed_by", "scored_by")
_RECORDED = ("engine", "versions", "machine", "created")


@dataclass
class Transfer:
    """What was copied of one reference: files, their bytes, and files that were there already."""

    reference: str
    files: int = 0
    size: int = 0
    present: int = 0


def find_caches(place: str, names: Sequence[str] = ()) -> list[ReferenceCache]:
    """The references of a cache, or the one that ``CACHE/NAME`` names.

    Raises:
        UserError: there are none, or not those of ``names``.
    """
    found = list_references(place)
    if not found:
        root, _, name = place.rstrip("/").rpartition("/")
        with suppress(UserError):  # the part before the name is not a cache location
            if name in list_references(root or "."):
                place, found = root or ".", [name]
    if not found:
        raise UserError(
            f"{place} holds no cached reference: expected the folder or URL that `cache:` names, or one reference in it. "
            "Correct the name, or score first (`mrpo score-refs`)."
        )
    for name in names:
        if name not in found:
            raise UserError(f"{place} holds no reference {name!r}: there are {', '.join(found)}. Correct the name.")
    return [ReferenceCache.open(place, name) for name in names or found]


def copy_cache(
    source: ReferenceCache,
    target: ReferenceCache,
    *,
    wanted: pl.DataFrame | None = None,
    without_ids: bool = False,
    advance: Callable[[int], object] = lambda files: None,
) -> Transfer:
    """Copy the shards, the records of unscorable completions, and the results of checks that the target lacks.

    Args:
        wanted: copy only shards that serve those of these completions that the target lacks (see ``ReferenceCache``).
        without_ids: write 0 in place of each token id; sums and byte ends stay. A cache without ids is always copied without.
        advance: called with the number of files done.

    Raises:
        UserError: there is no such cache, or the target holds numbers of another reference.
        DamagedError: a file of the source is not what was written; what was copied before it stays.
    """
    with source.disk_errors(), target.disk_errors():
        manifest = _begin(source, target, without_ids=without_ids)
        without_ids = manifest.ids_withheld
        done = Transfer(source.name)
        there = {name for folder, suffix in TRAVELS.items() for name in target.storage.list(folder, suffix)}

        def copy(name: str) -> int:
            """Copy a file; returns the bytes written, 0 if the target has it."""
            if name in there:
                return 0
            folder, suffix = name.partition("/")[0], TRAVELS[name.partition("/")[0]]
            data = _published(source.storage, name, manifest, without_ids=without_ids)
            if f"{folder}/{sha256_hex(data)}{suffix}" in there:
                return 0
            target.storage.put(folder, data, suffix=suffix)
            return memoryview(data).nbytes

        with ThreadPoolExecutor(max(source.storage.at_once, target.storage.at_once)) as pool:
            for size in pool.map(copy, _files(source, target, wanted, without_ids)):
                done.files, done.size, done.present = (
                    done.files + bool(size),
                    done.size + size,
                    done.present + (not size),
                )
                advance(1)
    return done


def _published(storage: Storage, name: str, manifest: Manifest, *, without_ids: bool) -> pa.Buffer | bytes:
    """A file's verified bytes as they are published.

    Raises:
        DamagedError: it is damaged, or was not computed by this reference.
    """
    data = read_checked(storage, name)
    if name.startswith(f"{UNFIT}/"):
        read_records(storage, name, data)
    elif name.startswith(f"{CHECKS}/"):
        # Folders and addresses of the machine that checked are left out.
        document = json.loads(data.to_pybytes())
        return encode_check({key: value for key, value in document.items() if key not in _OF_A_MACHINE})
    else:
        ids = [group.token_ids.any() for group in read_rows(storage, name, data, manifest)]
        if without_ids and any(ids):
            return _without_ids(data, manifest)
    return data


def _files(source: ReferenceCache, target: ReferenceCache, wanted: pl.DataFrame | None, without_ids: bool) -> list[str]:
    """Names of the source's files to copy."""
    shards = source.storage.list(SHARDS)
    if wanted is not None:
        serving = Coverage(source.storage, source.manifest).serving(
            target.unserved(wanted).select("completion_id", "cut"), shards
        )
        shards = serving["shard"].drop_nulls().unique().sort().to_list()
    # The results of a check contain example tokens.
    checks = [] if without_ids else source.storage.list(CHECKS, ".json")
    return [*shards, *source.storage.list(UNFIT), *checks]


def _begin(source: ReferenceCache, target: ReferenceCache, *, without_ids: bool) -> Manifest:
    """Create the target with the source's fingerprint, or check it; returns its manifest. Raises UserError: see ``copy_cache``."""
    manifest = source.manifest()
    if manifest is None:
        raise UserError(
            f"{source.location} holds no cached reference: expected a folder with manifest.json. Correct the name, or score "
            "the reference first (`mrpo score-refs`)."
        )
    if manifest.edited:
        raise UserError(
            f"{source.location}/manifest.json was changed since it was written. Nothing was copied. Restore it from a backup."
        )
    withheld = without_ids or manifest.ids_withheld
    card = {**manifest.card, **({"token_ids": "withheld"} if withheld else {})}
    theirs = target.manifest()
    if theirs is not None:
        differences = manifest.differences(theirs.fingerprint) + theirs.differences(manifest.fingerprint)
        if differences:
            fields = ", ".join(dict.fromkeys(f"`{field}`" for field, _, _ in differences))
            raise UserError(
                f"{target.location} holds numbers of another reference than {source.location}: {fields} of their fingerprints "
                "differ. Nothing was copied. Name another target."
            )
    made = target.create_or_check(manifest.fingerprint, published(manifest.recorded), card)
    if made.ids_withheld != withheld:
        raise UserError(
            f"One of {source.location} and {target.location} holds token ids, and the other was written without them: "
            "expected both alike. Nothing was copied. Name another target."
        )
    return made


def published(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The published part of a manifest's record: no options, which may hold folders and secrets, and no folder of a served model."""
    kept = {key: recorded[key] for key in _RECORDED if key in recorded}
    if isinstance(kept.get("versions"), Mapping):
        kept["versions"] = {key: value for key, value in kept["versions"].items() if "/" not in str(value)}
    return kept


def _without_ids(data: pa.Buffer, manifest: Manifest) -> pa.Buffer:
    """The shard with 0 in place of each token id."""
    table = shard_table(data).combine_chunks()
    ids = table.column("token_ids").chunk(0)
    zeros = pa.ListArray.from_arrays(ids.offsets, pc.multiply(ids.values, 0).cast(pa.int32()))
    at = table.column_names.index("token_ids")
    return encode_shard(table.set_column(at, SHARD_SCHEMA.field("token_ids"), zeros), manifest.fingerprint)
