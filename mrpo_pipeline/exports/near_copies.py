"""Items whose texts are nearly those of an earlier one, by MinHash over three-word shingles."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

THRESHOLD = 0.8
"""Estimated share of common shingles (Jaccard) from which two texts count as near copies."""

_BANDS, _ROWS = 32, 2
_PRIME = np.uint64(2**31 - 1)
_RANDOM = np.random.default_rng(0)
_FACTORS, _OFFSETS = _RANDOM.integers(1, 2**31 - 1, (2, _BANDS * _ROWS, 1)).astype(np.uint64)


def near_copies(items: Iterable[Sequence[str]]) -> npt.NDArray[np.int64]:
    """(N,) index of the first earlier item that each item is a near copy of; -1 for none.

    Every part (prompt, chosen, rejected) of the two items must be nearly the same. Case, punctuation and white space are ignored. The
    estimated share has a standard error of 0.05 at the threshold.
    """
    places: dict[tuple[int, bytes], list[int]] = {}
    signatures: list[npt.NDArray[np.uint32]] = []
    found = []
    for place, parts in enumerate(items):
        signature = np.stack([_signature(part) for part in parts])
        signatures.append(signature)
        bands = [(band, part.tobytes()) for band, part in enumerate(np.split(signature, _BANDS, axis=1))]
        earlier = sorted({one for band in bands for one in places.get(band, ())})
        alike = (one for one in earlier if (signatures[one] == signature).mean(axis=1).min() >= THRESHOLD)
        found.append(next(alike, -1))
        if found[-1] < 0:  # a near copy of a copy is usually one of the original, too
            for band in bands:
                places.setdefault(band, []).append(place)
    return np.array(found, np.int64)


def _signature(text: str) -> npt.NDArray[np.uint32]:
    """(64,) the smallest hash of the shingles under each of 64 permutations."""
    words = re.findall(r"\w+", text.casefold()) or [text]
    shingles = {" ".join(words[at : at + 3]) for at in range(max(len(words) - 2, 1))}
    hashes = np.fromiter((zlib.crc32(one.encode("utf-8", "surrogatepass")) for one in shingles), np.uint64) % _PRIME
    signature: npt.NDArray[np.uint32] = ((hashes * _FACTORS + _OFFSETS) % _PRIME).min(axis=1).astype(np.uint32)
    return signature
