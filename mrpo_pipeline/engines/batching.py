"""Requests of like length together, as many as a token budget allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mrpo_pipeline.engines.base import ScoringRequest, longest_first

# Padded tokens of a batch, where none are named.
BATCH_TOKENS = {"cpu": 4096, "gpu": 16384}


def pack(requests: Sequence[ScoringRequest], max_batch_tokens: int) -> Iterator[list[int]]:
    """Batches of request indices, the longest first.

    Rows are padded to the longest of their batch, and padding counts: rows × longest ≤ `max_batch_tokens`. A request
    that is longer than the budget alone makes a batch of its own. Every index comes once.
    """
    batch: list[int] = []
    longest = 0
    for index in longest_first(requests):
        if batch and (len(batch) + 1) * longest > max_batch_tokens:
            yield batch
            batch = []
        if not batch:
            longest = len(requests[index])
        batch.append(index)
    if batch:
        yield batch
