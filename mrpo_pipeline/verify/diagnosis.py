"""What the differences look like, in words: a guess at why cached numbers are wrong. Pure arrays, no model.

Each fault leaves a mark of its own. Other token ids or another number of prompt tokens say it outright. Where the text is
the same, the place of the wrong tokens tells: a prompt that was read otherwise weighs most on the first tokens; positions
that an engine took from its prefix cache are wrong up to one place and exact from there on; positions (rope scaling,
windows) go wrong from one place on; other weights are wrong everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.verify.comparison import Compared, Floats

BLOCKS = (128, 64, 32, 16)  # tokens in a block of vLLM's prefix cache: 16 on GPUs, 128 on CPUs, others on request
_IMPOSSIBLE = (-1e4, 1e-3)  # no log-prob of a real model lies outside
_EARLY, _LATE = 2, 8  # tokens: the first ones, and those far enough behind them to compare with


def guess_reasons(compared: Sequence[Compared], clearly_off: float) -> list[str]:
    """Why the cached numbers may be wrong, most telling first; empty where the evidence supports nothing.

    Args:
        compared: the completions, right ones among them.
        clearly_off: nats; a token off by more is not off by rounding (``Limits.clearly_off``).
    """
    reasons = _ids(compared) + _prompts(compared)
    if reasons:
        return reasons
    rows = [_Row.of(one, clearly_off) for one in compared if len(one.cached)]
    for look in (_end_of_turn, _up_to_a_place, _from_a_place, _some_completions, _scale, _fading, _everywhere):
        found = look(rows)
        if found:
            return [found]
    return []


def _ids(compared: Sequence[Compared]) -> list[str]:
    differing = [one for one in compared if not one.ids_agree]
    if not differing:
        return []
    count = f"the token ids of {len(differing)} of {len(compared)} completions are not those of the text as read here"
    at_end = [one for one in differing if len(one.cached) == min(len(one.cached_ids), len(one.ids) - 1)]
    if len(at_end) == len(differing):
        same_length = all(one.complete and len(one.cached_ids) == len(one.ids) for one in differing)
        if same_length:
            return [f"{count}, by the end-of-turn token alone: another chat template or end-of-turn token"]
        return [f"{count}, by where they end alone: the text was cut otherwise, or rows that are cut claim to be whole"]
    first = differing[0]
    place = len(first.cached)
    only_first = all(
        len(one.cached) == 0 and np.array_equal(one.cached_ids[1:], one.ids[1 : len(one.cached_ids)])
        for one in differing
    )
    if only_first:
        return [f"{count}, by the first token alone: the seam to the prompt (a space, the template's last words)"]
    return [
        f"{count} (first difference in {first.completion_id}: token {place}, id {_id_at(first.cached_ids, place)} in the "
        f"cache and {_id_at(first.ids, place)} here): another tokenizer or template, or other text"
    ]


def _id_at(ids: npt.NDArray[np.int32], place: int) -> str:
    return str(ids[place]) if place < len(ids) else "none"


def _prompts(compared: Sequence[Compared]) -> list[str]:
    more = np.array([one.cached_prompt_tokens - one.prompt_tokens for one in compared])
    if not more.any():
        return []
    count = f"{np.count_nonzero(more)} of {len(more)} prompts"
    if (more == 1).all():
        return ["every prompt had one token more than it has here: most likely the BOS token stood there twice"]
    if (more == -1).all():
        return ["every prompt had one token less than it has here: most likely the BOS token was missing"]
    if (more == more[0]).all():
        what = f"{abs(more[0])} tokens {'more' if more[0] > 0 else 'less'} than it has here"
        return [
            f"every prompt had {what}: another part of the chat template that is the same for all (a system prompt, a "
            "generation prompt)"
        ]
    return [
        f"{count} had another number of tokens than here (by {more.min():+d} to {more.max():+d}): the chat template or "
        "tokenizer of another model, or prompts cut otherwise"
    ]


@dataclass(frozen=True, slots=True)
class _Row:
    """A completion's differences: which tokens are clearly off."""

    one: Compared
    size: Floats
    off: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, one: Compared, clearly_off: float) -> _Row:
        size = np.abs(one.difference)
        return cls(one, size, size > clearly_off)

    @property
    def lead(self) -> int:
        """One more than the place of the last token that is off."""
        return int(np.flatnonzero(self.off)[-1]) + 1 if self.off.any() else 0


def _affected(rows: Sequence[_Row]) -> list[_Row]:
    return [row for row in rows if row.off.any()]


def _end_of_turn(rows: Sequence[_Row]) -> str | None:
    affected = _affected(rows)
    whole = [row for row in affected if row.one.complete and len(row.off) > 1 and not row.off[:-1].any()]
    if not affected or len(whole) < len(affected):
        return None
    return (
        f"only the end-of-turn token is off (in {len(affected)} of {len(rows)} completions): its log-prob was taken for "
        "another token or at another place"
    )


def _up_to_a_place(rows: Sequence[_Row]) -> str | None:
    """Off up to one place, exact from there on; or numbers that no model gives."""
    affected = _affected(rows)
    if not affected:
        return None
    impossible = sum(
        int(np.count_nonzero((row.one.cached < _IMPOSSIBLE[0]) | (row.one.cached > _IMPOSSIBLE[1]) | _nothing(row.one)))
        for row in affected
    )
    leading = [row for row in affected if row.off[: row.lead].mean() >= 0.5]
    edges = [row for row in leading if 1 < row.lead < len(row.off)]
    # A difference that fades crosses the threshold gently; here it falls by a factor of hundreds from token to token.
    sharp = [row for row in edges if row.size[row.lead - 1] > 20 * row.size[row.lead :].max()]
    # The log-prob of the token at position p comes from position p - 1: the last one that was cached.
    places = np.array([row.one.prompt_tokens + row.lead - 1 for row in sharp])
    block = next((size for size in BLOCKS if len(places) and not (places % size).any()), None)
    strange = impossible >= 0.05 * sum(int(row.off.sum()) for row in affected)
    exact_behind = len(sharp) == len(edges) and (len(sharp) > 1 or block is not None)
    if len(leading) < len(affected) or not (strange or exact_behind):
        if not strange:
            return None
        return (
            f"{impossible:,} of the cached values are no log-probs at all (0, above 0, or beyond any model): memory that was "
            "never written, as an engine leaves it for positions that it did not compute"
        )
    told = f", each time up to a multiple of {block} tokens from the prompt's start" if block else ""
    values = f"; {impossible:,} of the values are no log-probs at all" if impossible else ""
    return (
        f"the beginning of {len(affected)} of {len(rows)} completions is off and all behind it exact{told}{values}: positions "
        "that the engine took from its prefix cache and did not compute (enable_prefix_caching with "
        "skip_reading_prefix_cache=False)"
    )


def _nothing(one: Compared) -> npt.NDArray[np.bool_]:
    """Zeros and denormals where the model is not certain of the token."""
    return (np.abs(one.cached) < 1e-30) & (one.again < -1e-3)


def _from_a_place(rows: Sequence[_Row]) -> str | None:
    affected = _affected(rows)
    positions = [row.one.prompt_tokens + np.arange(len(row.off)) for row in rows]
    every = np.concatenate(positions) if positions else np.empty(0, np.int64)
    off = np.concatenate([row.off for row in rows]) if rows else np.empty(0, bool)
    if not off.any():
        return None
    start = int(every[off].min())
    before, behind = every < start, every >= start
    edge_inside = any(row.one.prompt_tokens < start and np.flatnonzero(row.off)[0] > 0 for row in affected)
    if not edge_inside or before.sum() < max(32, 0.1 * len(every)) or off[behind].mean() < 0.8:
        return None
    return (
        f"every token up to position {start:,} agrees, and nearly all behind it are off: another rope scaling, sliding window "
        "or maximum of positions"
    )


def _some_completions(rows: Sequence[_Row]) -> str | None:
    affected = _affected(rows)
    clean = len(rows) - len(affected)
    if not affected or clean < max(2, 0.1 * len(rows)) or np.mean([row.off.mean() for row in affected]) < 0.5:
        return None
    return (
        f"{len(affected)} of {len(rows)} completions are off throughout and the others agree: part of the cache was scored "
        "from other files or settings (by one of several workers or machines, say)"
    )


def _together(rows: Sequence[_Row]) -> tuple[Floats, Floats]:
    cached = np.concatenate([row.one.cached for row in rows]).astype(np.float64)
    return cached, np.concatenate([row.one.again for row in rows]).astype(np.float64)


def _scale(rows: Sequence[_Row]) -> str | None:
    """Logits divided by a temperature: log-probs keep their order and are stretched."""
    if not rows:
        return None
    cached, again = _together(rows)
    if len(cached) < 16 or again.std() < 1e-9 or cached.std() < 1e-9:
        return None
    agreement = float(np.corrcoef(cached, again)[0, 1])
    stretch = float(cached.std() / again.std())
    left = cached - cached.mean() - stretch * (again - again.mean())
    difference = cached - again
    explained = 1 - float((left**2).mean()) / max(float((difference**2).mean()), 1e-30)
    if agreement < 0.95 or abs(stretch - 1) < 0.03 or explained < 0.8:
        return None
    return (
        f"the cached log-probs are the right ones stretched by about {stretch:.2f}: a temperature, or another logit scale "
        "or soft cap"
    )


def _fading(rows: Sequence[_Row]) -> str | None:
    long = [row for row in rows if len(row.size) >= _LATE + 4]
    if not long or not _affected(rows):
        return None
    early = float(np.mean([row.size[:_EARLY].mean() for row in long]))
    late = float(np.mean([row.size[_LATE:].mean() for row in long]))
    if early < 3 * late:
        return None
    return (
        f"the first tokens are off most ({early:.2g} nats a token) and less so further on ({late:.2g}): the model read another "
        "prompt (BOS twice or missing, another system prompt or template)"
    )


def _everywhere(rows: Sequence[_Row]) -> str | None:
    if not rows:
        return None
    off = np.concatenate([row.off for row in rows])
    share = float(off.mean())
    cached, again = _together(rows)
    if share < 0.3:
        return _here_and_there(rows, share)
    close = len(cached) > 16 and again.std() > 1e-9 and cached.std() > 1e-9 and np.corrcoef(cached, again)[0, 1] > 0.95
    if close:
        return (
            f"{share:.0%} of the tokens are off, though the ids are right and the numbers akin: another revision of the "
            "weights, an adapter left out or put on, or a quantization or dtype other than the manifest's"
        )
    return (
        f"{share:.0%} of the tokens are off, though the ids are right: other weights (another revision or model), or a prompt "
        "of the same length with other words"
    )


def _here_and_there(rows: Sequence[_Row], share: float) -> str:
    """Few tokens are clearly off, or none is and the average is too large."""
    if not share:
        return "no token is off by much, but too many by a little: rounding, as another dtype, quantization or kernel gives it"
    single = f"single tokens are off ({share:.1%})"
    off = np.concatenate([row.size[row.off] for row in rows])
    # Rounding reaches a little beyond a limit that it passes, not many times as far.
    if float(np.median(off)) > 20 * float(np.concatenate([row.size for row in rows]).mean()) and off.max() > 1.0:
        return (
            f"{single}, by up to {off.max():.2g} nats, and the others agree: not rounding; values that were changed or "
            "misplaced after they were computed"
        )
    return f"{single}: rounding, as another dtype, quantization or kernel gives it"
