"""Files of pairs dealt out to several processes, in parts of about the same size."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from mrpo_pipeline.pairs.sources import PairFile

_SMALLEST = 32 << 20  # bytes; reading less is over before another process has started


def in_parts(files: Sequence[PairFile], count: int) -> list[list[PairFile]]:
    """At most `count` lists that hold the files between them, big local `.jsonl` and Parquet files in parts.

    What has to be read from its beginning (lists, packed files, URLs) stays whole. One list where it is not worth more.
    """
    sizes = [0 if file.remote else os.path.getsize(file.name) for file in files]
    lists = max(1, min(count, sum(sizes) // _SMALLEST))
    if lists == 1:
        return [list(files)]
    pieces: list[tuple[float, PairFile]] = []
    for file, size in zip(files, sizes, strict=True):
        parts = _parts(file, size, lists) if size >= _SMALLEST else [file]
        pieces += [(size / len(parts), part) for part in parts]
    dealt: list[list[PairFile]] = [[] for _ in range(lists)]
    loads = [0.0] * lists
    for weight, piece in sorted(pieces, key=lambda one: -one[0]):
        least = loads.index(min(loads))
        loads[least] += weight
        dealt[least].append(piece)
    return [one for one in dealt if one]


def _parts(file: PairFile, size: int, count: int) -> list[PairFile]:
    if file.suffix in (".jsonl", ".ndjson"):
        whole = size
    elif file.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            whole = pq.read_metadata(file.name).num_row_groups
        except (OSError, ValueError):  # reading it will say what is wrong with it
            return [file]
    else:
        return [file]
    edges = [whole * step // count for step in range(count + 1)]
    return [replace(file, part=(a, b)) for a, b in pairwise(edges) if a < b] or [file]
