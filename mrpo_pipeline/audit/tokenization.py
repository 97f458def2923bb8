"""Whether the cached rows are of these texts and of this reference's own reading of them. No weights: tokenizers alone.

What the rows record (ids, where tokens end, how many tokens the prompt had) is held against the text, and against the text
as the reference's own tokenizer and template render it, where those are at hand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.audit.sample import Texts, Tokens
from mrpo_pipeline.audit.statistics import NONE
from mrpo_pipeline.rendering import Rendered, Renderer

RENDERED = 400  # completions that are rendered again, at most


@dataclass(frozen=True)
class Readers:
    """How a reference reads text.

    Attributes:
        renderer: by the recipe; None where its tokenizer is not at hand.
        own: the model's own tokenizer and template, where the recipe gives it others; None where it does not.
    """

    renderer: Renderer | None = None
    own: Renderer | None = None


@dataclass(frozen=True)
class Origin:
    """Shares of the sampled completions; NaN for what could not be looked at.

    Attributes:
        rendered: completions rendered again.
        other_text: whole completions whose tokens do not end where their text does.
        other_ids: completions whose token ids are not those of the text as the reference reads it.
        other_edges: those of them that differ at the ends alone: in the first tokens, next to the prompt, or in the
            end-of-turn token.
        ids_of_others: those of them whose ids are another completion's.
        other_prompts: completions whose prompt had another number of tokens.
        prompt_moved: whether those numbers are the right ones in another order.
        one_more: completions whose prompt had exactly one token more.
        puts_bos_twice: whether the reference's own rendering begins with the same control token twice.
        begins_alike: whether all its prompts begin with the same token, as with a BOS.
        not_own_ids: completions that the recipe's tokenizer reads as other ids than the model's own.
        not_own_prompts: completions whose prompt the recipe's template writes otherwise than the model's own; NaN where it has
            none of its own.
    """

    rendered: int = 0
    other_text: float = NONE
    other_ids: float = NONE
    other_edges: float = NONE
    ids_of_others: float = NONE
    other_prompts: float = NONE
    prompt_moved: bool = False
    one_more: float = NONE
    puts_bos_twice: bool = False
    begins_alike: bool = False
    not_own_ids: float = NONE
    not_own_prompts: float = NONE

    @property
    def confirms_ids(self) -> bool:
        """Whether the ids are known to be the model's own for these texts."""
        own = np.isnan(self.not_own_ids) or self.not_own_ids < 0.5
        return bool(self.other_ids < 0.5 and own)


def origin_of(tokens: Tokens, texts: Texts, readers: Readers) -> Origin:
    """Hold the rows of one reference against their texts."""
    whole = tokens.last_end >= 0
    other_text = float((tokens.last_end[whole] != texts.whole[whole]).mean()) if whole.any() else NONE
    if readers.renderer is None:
        return Origin(other_text=other_text)
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(RENDERED, len(texts))).astype(np.int64))
    items = list(texts.frame[chosen].select("prompt", "completion").iter_rows())
    rendered = readers.renderer.render(items)
    own = readers.own.render(items) if readers.own is not None else None
    has_none = readers.own is not None and readers.own.identity()["template"].startswith("plain:")
    cached = [tokens.full_ids[at] for at in chosen]
    complete = whole[chosen]
    differs = np.array([not _same(ids, one, all_) for ids, one, all_ in zip(cached, rendered, complete, strict=True)])
    edges = np.array([_same_inside(ids, one.scored_ids) for ids, one in zip(cached, rendered, strict=True)])
    wrong = np.flatnonzero(differs)
    everyone = Counter(one.scored_ids.tobytes() for one in rendered)
    of_others = [everyone[cached[at].astype(np.int32).tobytes()] > 0 for at in wrong]
    expected = np.array([len(one.prompt_ids) for one in rendered], dtype=np.int64)
    found = tokens.prompt_tokens[chosen]
    starts = [one.prompt_ids[:2] for one in rendered]
    alike = len({int(start[0]) for start in starts}) == 1
    return Origin(
        rendered=len(chosen),
        other_text=other_text,
        other_ids=float(differs.mean()),
        other_edges=float((differs & edges).mean()),
        ids_of_others=float(np.mean(of_others)) if len(wrong) else 0.0,
        other_prompts=float((found != expected).mean()),
        prompt_moved=bool((found != expected).any() and np.array_equal(np.sort(found), np.sort(expected))),
        one_more=float((found == expected + 1).mean()),
        puts_bos_twice=alike and all(len(start) == 2 and start[0] == start[1] for start in starts),
        begins_alike=alike,
        not_own_ids=NONE if own is None else _other_ids(rendered, own),
        not_own_prompts=NONE if own is None or has_none else _other_prompts(rendered, own),
    )


def _same(ids: npt.NDArray[np.int32], one: Rendered, complete: bool) -> bool:
    """Whether the row has the ids of the text, as far as it goes."""
    if complete or len(ids) > len(one.scored_ids):
        return np.array_equal(ids, one.scored_ids)
    return np.array_equal(ids, one.scored_ids[: len(ids)])


def _same_inside(ids: npt.NDArray[np.int32], text: npt.NDArray[np.int32]) -> bool:
    """Whether most of the tokens before the last one agree, counted from the end."""
    mine, theirs = ids[:-1][::-1], text[:-1][::-1]
    length = min(len(mine), len(theirs))
    differ = np.flatnonzero(mine[:length] != theirs[:length])
    alike = int(differ[0]) if len(differ) else length
    return alike >= 0.6 * max(len(mine), len(theirs))


def _other_ids(rendered: list[Rendered], own: list[Rendered]) -> float:
    """The share of completions that two renderers read as other ids, not only at their ends."""
    return float(np.mean([not _same_inside(a.scored_ids, b.scored_ids) for a, b in zip(rendered, own, strict=True)]))


def _other_prompts(rendered: list[Rendered], own: list[Rendered]) -> float:
    """The share of completions whose prompts two renderers read as other ids."""
    return float(np.mean([not np.array_equal(a.prompt_ids, b.prompt_ids) for a, b in zip(rendered, own, strict=True)]))
