"""Cached ids, token ends and prompt lengths against the text, as the reference's tokenizer and template render it. No weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.audit.sampled_tokens import Texts, Tokens
from mrpo_pipeline.audit.statistics import NAN
from mrpo_pipeline.rendering import Rendered, Renderer

MAX_RENDERED = 400


@dataclass(frozen=True)
class Readers:
    """Renderers of a reference.

    Attributes:
        renderer: by the recipe; None where its tokenizer is not available.
        own: the model's own tokenizer and template, where the recipe names others; else None.
    """

    renderer: Renderer | None = None
    own: Renderer | None = None


@dataclass(frozen=True)
class Tokenization:
    """Shares of the sampled completions; NaN for what was not checked.

    Attributes:
        rendered: number of completions rendered again.
        wrong_ends: of the complete rows, those whose tokens do not end where the text does.
        different_ids: those whose ids are not those of the text. different_edges: those of them that differ only in the first
            tokens, next to the prompt, or in the end-of-turn token. ids_of_others: of the different, those with another completion's.
        different_prompts: those whose prompt has another number of tokens. one_more_token: exactly one more.
        prompts_permuted: whether the prompt lengths are the right ones in another order.
        doubled_bos: whether the reference's own rendering begins with the same control token twice.
        same_first_token: whether all prompts begin with the same token, such as a BOS.
        foreign_ids, foreign_prompts: those that the recipe's tokenizer, or template, renders to other ids than the model's own; the
            latter NaN where the model has no template.
    """

    rendered: int = 0
    wrong_ends: float = NAN
    different_ids: float = NAN
    different_edges: float = NAN
    ids_of_others: float = NAN
    different_prompts: float = NAN
    prompts_permuted: bool = False
    one_more_token: float = NAN
    doubled_bos: bool = False
    same_first_token: bool = False
    foreign_ids: float = NAN
    foreign_prompts: float = NAN

    @property
    def confirms_ids(self) -> bool:
        """Whether the ids are known to be those of the model's tokenizer."""
        own = np.isnan(self.foreign_ids) or self.foreign_ids < 0.5
        return bool(self.different_ids < 0.5 and own)


def check_tokenization(tokens: Tokens, texts: Texts, readers: Readers) -> Tokenization:
    """Check the rows of one reference against their texts."""
    complete_rows = tokens.last_end >= 0
    wrong_ends = (
        float((tokens.last_end[complete_rows] != texts.lengths[complete_rows]).mean()) if complete_rows.any() else NAN
    )
    if readers.renderer is None:
        return Tokenization(wrong_ends=wrong_ends)
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(MAX_RENDERED, len(texts))).astype(np.int64))
    items = list(texts.frame[chosen].select("prompt", "completion").iter_rows())
    rendered = readers.renderer.render(items)
    own = readers.own.render(items) if readers.own is not None else None
    has_none = readers.own is not None and readers.own.identity()["template"].startswith("plain:")
    cached = [tokens.full_ids[at] for at in chosen]
    complete = complete_rows[chosen]
    differs = np.array(
        [not _same(ids, one, whole_row) for ids, one, whole_row in zip(cached, rendered, complete, strict=True)]
    )
    edges = np.array([_same_inside(ids, one.scored_ids) for ids, one in zip(cached, rendered, strict=True)])
    wrong = np.flatnonzero(differs)
    everyone = Counter(one.scored_ids.tobytes() for one in rendered)
    of_others = [everyone[cached[at].astype(np.int32).tobytes()] > 0 for at in wrong]
    expected = np.array([len(one.prompt_ids) for one in rendered], dtype=np.int64)
    found = tokens.prompt_tokens[chosen]
    starts = [one.prompt_ids[:2] for one in rendered]
    alike = len({int(start[0]) for start in starts}) == 1
    return Tokenization(
        rendered=len(chosen),
        wrong_ends=wrong_ends,
        different_ids=float(differs.mean()),
        different_edges=float((differs & edges).mean()),
        ids_of_others=float(np.mean(of_others)) if len(wrong) else 0.0,
        different_prompts=float((found != expected).mean()),
        prompts_permuted=bool((found != expected).any() and np.array_equal(np.sort(found), np.sort(expected))),
        one_more_token=float((found == expected + 1).mean()),
        doubled_bos=alike and all(len(start) == 2 and start[0] == start[1] for start in starts),
        same_first_token=alike,
        foreign_ids=NAN if own is None else _other_ids(rendered, own),
        foreign_prompts=NAN if own is None or has_none else _other_prompts(rendered, own),
    )


def _same(ids: npt.NDArray[np.int32], one: Rendered, complete: bool) -> bool:
    """Whether the row has the ids of the text, up to its end."""
    if complete or len(ids) > len(one.scored_ids):
        return np.array_equal(ids, one.scored_ids)
    return np.array_equal(ids, one.scored_ids[: len(ids)])


def _same_inside(ids: npt.NDArray[np.int32], text: npt.NDArray[np.int32]) -> bool:
    """Whether most tokens before the last one agree, counted from the end."""
    mine, theirs = ids[:-1][::-1], text[:-1][::-1]
    length = min(len(mine), len(theirs))
    differ = np.flatnonzero(mine[:length] != theirs[:length])
    alike = int(differ[0]) if len(differ) else length
    return alike >= 0.6 * max(len(mine), len(theirs))


def _other_ids(rendered: list[Rendered], own: list[Rendered]) -> float:
    """The share of completions that two renderers render to different ids, not only at the edges."""
    return float(np.mean([not _same_inside(a.scored_ids, b.scored_ids) for a, b in zip(rendered, own, strict=True)]))


def _other_prompts(rendered: list[Rendered], own: list[Rendered]) -> float:
    """The share of completions whose prompts two renderers render to different ids."""
    return float(np.mean([not np.array_equal(a.prompt_ids, b.prompt_ids) for a, b in zip(rendered, own, strict=True)]))
