"""Guess why cached log-probs are wrong, from the pattern of the differences. Pure arrays, no model.

Different token ids or prompt lengths show the fault directly. Where the text is the same, the position of the wrong tokens does:
another prompt affects the first tokens most; positions that an engine took from its prefix cache are wrong up to one position and
exact after it; rope scaling and sliding windows are wrong from one position on; other weights are wrong everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.verify.comparison import Compared, Floats

BLOCKS = (128, 64, 32, 16)  # block sizes of vLLM's prefix cache: 16 on GPUs, 128 on CPUs, others by option
_POSSIBLE = (-1e4, 1e-3)  # range of a real model's log-probs, nats
_EARLY, _LATE = 2, 8  # first tokens, and the position from which later ones are compared with them


def guess_reasons(compared: Sequence[Compared], beyond_rounding: float) -> list[str]:
    """Possible causes, most likely first; empty where there is no evidence.

    Args:
        compared: all compared completions, correct ones among them.
        beyond_rounding: nats (``Limits.beyond_rounding``).
    """
    found = [reason for reason in (_ids(compared), _prompts(compared)) if reason]
    rows = [_Row.of(one, beyond_rounding) for one in compared if len(one.cached)]
    if found or not rows:
        return found
    affected = [row for row in rows if row.off.any()]
    patterns = (_end_of_turn, _up_to_a_position, _from_a_position, _some_completions, _scale, _fading)
    return [next((reason for look in patterns if (reason := look(rows, affected))), None) or _everywhere(rows)]


def _ids(compared: Sequence[Compared]) -> str | None:
    differing = [one for one in compared if not one.ids_agree]
    if not differing:
        return None
    count = f"the token ids of {len(differing)} of {len(compared)} completions differ from the text's"
    if all(len(one.cached) == min(len(one.cached_ids), len(one.ids) - 1) for one in differing):
        if all(one.complete and len(one.cached_ids) == len(one.ids) for one in differing):
            return f"{count} in the end-of-turn token only: another chat template or end-of-turn token"
        return f"{count} in length only: another truncation, or truncated rows marked as complete"
    if all(
        len(one.cached) == 0 and np.array_equal(one.cached_ids[1:], one.ids[1 : len(one.cached_ids)])
        for one in differing
    ):
        return f"{count} in the first token only: the boundary to the prompt (a space, the end of the template)"
    first, at = differing[0], len(differing[0].cached)
    ids = [str(ids[at]) if at < len(ids) else "none" for ids in (first.cached_ids, first.ids)]
    return (
        f"{count} (first in {first.completion_id}: token {at}, id {ids[0]} in the cache, {ids[1]} in the text): another tokenizer, "
        "template or text"
    )


def _prompts(compared: Sequence[Compared]) -> str | None:
    more = np.array([one.cached_prompt_tokens - one.prompt_tokens for one in compared])
    if not more.any():
        return None
    if (more == more[0]).all():
        size = abs(int(more[0]))
        text = f"every prompt had {size} token{'s' * (size != 1)} {'more' if more[0] > 0 else 'fewer'} than now"
        if size == 1:
            return f"{text}: probably a {'doubled' if more[0] > 0 else 'missing'} BOS token"
        return f"{text}: a part of the chat template that is the same for all prompts (a system prompt, a generation prompt)"
    return (
        f"{np.count_nonzero(more)} of {len(more)} prompts had another number of tokens ({more.min():+d} to {more.max():+d}): another "
        "model's chat template or tokenizer, or another truncation of prompts"
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """A completion's |differences| and which tokens are beyond rounding."""

    one: Compared
    size: Floats
    off: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, one: Compared, beyond_rounding: float) -> _Row:
        size = np.abs(one.difference)
        return cls(one, size, size > beyond_rounding)

    @property
    def lead(self) -> int:
        """One more than the position of the last token that is off."""
        return int(np.flatnonzero(self.off)[-1]) + 1 if self.off.any() else 0

    @property
    def impossible(self) -> int:
        """Number of cached values that no model gives: out of range, or zero where the model is not certain of the token."""
        cached = self.one.cached
        zero = (np.abs(cached) < 1e-30) & (self.one.recomputed < -1e-3)
        return int(np.count_nonzero((cached < _POSSIBLE[0]) | (cached > _POSSIBLE[1]) | zero))


def _end_of_turn(rows: Sequence[_Row], affected: Sequence[_Row]) -> str | None:
    only = [row for row in affected if row.one.complete and len(row.off) > 1 and not row.off[:-1].any()]
    if not affected or len(only) < len(affected):
        return None
    return (
        f"only the end-of-turn token is off (in {len(affected)} of {len(rows)} completions): its log-prob is that of another token or "
        "position"
    )


def _up_to_a_position(rows: Sequence[_Row], affected: Sequence[_Row]) -> str | None:
    """Off up to one position, exact after it; or values that no model gives."""
    if not affected:
        return None
    impossible = sum(row.impossible for row in affected)
    leading = [row for row in affected if row.off[: row.lead].mean() >= 0.5]
    edges = [row for row in leading if 1 < row.lead < len(row.off)]
    # A fading difference crosses the threshold gradually; here it falls by a factor of hundreds from one token to the next.
    sharp = [row for row in edges if row.size[row.lead - 1] > 20 * row.size[row.lead :].max()]
    # The log-prob of the token at position p comes from position p - 1: the last one that was cached.
    positions = np.array([row.one.prompt_tokens + row.lead - 1 for row in sharp])
    block = next((size for size in BLOCKS if len(positions) and not (positions % size).any()), None)
    many_impossible = impossible >= 0.05 * sum(int(row.off.sum()) for row in affected)
    exact_after = len(sharp) == len(edges) and (len(sharp) > 1 or block is not None)
    if len(leading) == len(affected) and (many_impossible or exact_after):
        where = f", up to a multiple of {block} tokens from the start of the prompt" if block else ""
        values = f"; {impossible:,} values are not log-probs" if impossible else ""
        return (
            f"the beginning of {len(affected)} of {len(rows)} completions is off and the rest exact{where}{values}: positions that the "
            "engine took from its prefix cache (enable_prefix_caching with skip_reading_prefix_cache=False)"
        )
    if many_impossible:
        return (
            f"{impossible:,} cached values are not log-probs (0, above 0, or far below any model's): uninitialized memory, as an engine "
            "leaves it for positions that it did not compute"
        )
    return None


def _from_a_position(rows: Sequence[_Row], affected: Sequence[_Row]) -> str | None:
    if not affected:
        return None
    every = np.concatenate([row.one.prompt_tokens + np.arange(len(row.off)) for row in rows])
    off = np.concatenate([row.off for row in rows])
    start = int(every[off].min())
    before, after = every < start, every >= start
    edge_inside = any(row.one.prompt_tokens < start and np.flatnonzero(row.off)[0] > 0 for row in affected)
    if not edge_inside or before.sum() < max(32, 0.1 * len(every)) or off[after].mean() < 0.8:
        return None
    return (
        f"every token up to position {start:,} agrees and nearly all later ones are off: another rope scaling, sliding window or "
        "maximum position"
    )


def _some_completions(rows: Sequence[_Row], affected: Sequence[_Row]) -> str | None:
    clean = len(rows) - len(affected)
    if not affected or clean < max(2, 0.1 * len(rows)) or np.mean([row.off.mean() for row in affected]) < 0.5:
        return None
    return (
        f"{len(affected)} of {len(rows)} completions are off throughout and the others agree: a part of the cache was scored with other "
        "files or settings (such as by one worker or machine)"
    )


def _joined(rows: Sequence[_Row]) -> tuple[Floats, Floats, float]:
    """Cached and recomputed log-probs of all rows, and their correlation (0 where it is undefined)."""
    cached = np.concatenate([row.one.cached for row in rows]).astype(np.float64)
    recomputed = np.concatenate([row.one.recomputed for row in rows]).astype(np.float64)
    defined = len(cached) >= 16 and cached.std() > 1e-9 and recomputed.std() > 1e-9
    return cached, recomputed, float(np.corrcoef(cached, recomputed)[0, 1]) if defined else 0.0


def _scale(rows: Sequence[_Row], affected: Sequence[_Row]) -> str | None:
    """Logits divided by a temperature: log-probs keep their order and are scaled."""
    cached, recomputed, correlation = _joined(rows)
    if correlation < 0.95:
        return None
    scale = float(cached.std() / recomputed.std())
    left = cached - cached.mean() - scale * (recomputed - recomputed.mean())
    explained = 1 - float((left**2).mean()) / max(float(((cached - recomputed) ** 2).mean()), 1e-30)
    if abs(scale - 1) < 0.03 or explained < 0.8:
        return None
    return (
        f"the cached log-probs are the correct ones scaled by about {scale:.2f}: a temperature, logit scale or soft cap"
    )


def _fading(rows: Sequence[_Row], affected: Sequence[_Row]) -> str | None:
    long = [row for row in rows if len(row.size) >= _LATE + 4]
    if not long or not affected:
        return None
    early = float(np.mean([row.size[:_EARLY].mean() for row in long]))
    late = float(np.mean([row.size[_LATE:].mean() for row in long]))
    if early < 3 * late:
        return None
    return (
        f"the first tokens are off most ({early:.2g} nats per token) and later ones less ({late:.2g}): the model read another prompt "
        "(a doubled or missing BOS, another system prompt or template)"
    )


def _everywhere(rows: Sequence[_Row]) -> str:
    off = np.concatenate([row.off for row in rows])
    share = float(off.mean())
    if share >= 0.3:
        if _joined(rows)[2] > 0.95:
            return (
                f"{share:.0%} of the tokens are off although the ids are right and the values similar: another revision of the weights, "
                "an adapter missing or added, or another quantization or dtype than the manifest's"
            )
        return (
            f"{share:.0%} of the tokens are off although the ids are right: other weights (another revision or model), or another "
            "prompt of the same length"
        )
    rounding = "rounding, as by another dtype, quantization or kernel"
    if not share:
        return f"no token is far off, but too many are slightly off: {rounding}"
    sizes = np.concatenate([row.size for row in rows])
    # Rounding exceeds a limit slightly, not many times over.
    if float(np.median(sizes[off])) > 20 * float(sizes.mean()) and sizes.max() > 1.0:
        return (
            f"single tokens are off ({share:.1%}), by up to {sizes.max():.2g} nats, and the others agree: not rounding, but values "
            "changed or misplaced after they were computed"
        )
    return f"single tokens are off ({share:.1%}): {rounding}"
