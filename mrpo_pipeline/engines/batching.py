"""Batches of requests of similar length within a token budget; requests of one prompt together if the prompt is shared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mrpo_pipeline.engines.base import ScoringRequest, longest_first
from mrpo_pipeline.models.input_layouts import Group

# Default tokens of a batch, padding counted.
BATCH_TOKENS = {"cpu": 4096, "gpu": 16384}

Indices = list[int]


def pack(
    requests: Sequence[ScoringRequest], max_batch_tokens: int, among: Sequence[int] | None = None
) -> Iterator[Indices]:
    """Batches of request indices, longest first.

    Rows are padded to the longest of their batch, and padding counts: rows × longest ≤ `max_batch_tokens`. A request
    longer than the budget is a batch of its own. Every index appears once.

    Args:
        among: indices of the requests to pack; None: all.
    """
    batch: Indices = []
    longest = 0
    for index in longest_first(requests, among):
        if batch and (len(batch) + 1) * longest > max_batch_tokens:
            yield batch
            batch = []
        if not batch:
            longest = len(requests[index])
        batch.append(index)
    if batch:
        yield batch


def by_prompt(requests: Sequence[ScoringRequest]) -> list[Indices]:
    """The requests of each prompt (by its ids), longest first; the prompt of the longest request first."""
    groups: dict[bytes, Indices] = {}
    for index in longest_first(requests):
        groups.setdefault(requests[index].prompt_ids.tobytes(), []).append(index)
    return list(groups.values())


def pack_groups(
    groups: Sequence[Indices], requests: Sequence[ScoringRequest], max_batch_tokens: int
) -> Iterator[list[Indices]]:
    """Batches of groups; each batch is one row of at most `max_batch_tokens` tokens with every prompt once.

    If the completions of a prompt do not fit into one row, the prompt is repeated for the rest of them. A request longer than
    the budget is a batch of its own. Every index appears once. The longest prompts are in the first batches; within a batch the
    longest completion is the last of its group, and its group the last of the row.
    """
    batch: list[Indices] = []
    used = 0
    for group in groups:
        for part, tokens in _parts(group, requests, max_batch_tokens):
            if batch and used + tokens > max_batch_tokens:
                yield batch[::-1]
                batch, used = [], 0
            batch.append(part[::-1])
            used += tokens
    if batch:
        yield batch[::-1]


def _parts(group: Indices, requests: Sequence[ScoringRequest], max_batch_tokens: int) -> Iterator[tuple[Indices, int]]:
    """Split a prompt's requests into parts that fit into a row: (indices, tokens with the prompt)."""
    prompt = len(requests[group[0]].prompt_ids)
    part: Indices = []
    used = prompt
    for index in group:
        tokens = len(requests[index].completion_ids)
        if part and used + tokens > max_batch_tokens:
            yield part, used
            part, used = [], prompt
        part.append(index)
        used += tokens
    yield part, used


def to_compare(batch: Sequence[Indices], requests: Sequence[ScoringRequest], compared: dict[str, int]) -> Indices:
    """Requests of a shared row to compare with plain rows: those longer than any compared before.

    Args:
        batch: of :func:`pack_groups`. compared: tokens of the longest request so far, by what precedes it in its row; updated.
    """
    before = {
        "nothing else": batch,
        "another completion": [group for group in batch if len(group) > 1],
        "another prompt": batch if len(batch) > 1 else [],
    }
    picked: Indices = []
    for what, groups in before.items():
        longest = max((group[-1] for group in groups), key=lambda index: len(requests[index]), default=None)
        if longest is not None and len(requests[longest]) > compared.get(what, 0):
            compared[what] = len(requests[longest])
            picked += [longest] if longest not in picked else []
    return picked


def as_groups(batch: Sequence[Indices], requests: Sequence[ScoringRequest]) -> list[Group]:
    """The requests of each prompt as the model takes them."""
    return [
        Group(
            requests[group[0]].prompt_ids,
            [requests[index].completion_ids for index in group],
            [requests[index].scored for index in group],
        )
        for group in batch
    ]
