"""byte_ends against oracles that use token strings only."""

import itertools
import re
import unicodedata
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rendering_cases import KINDS, TEXTS, chat, plain_text

from mrpo_pipeline.pairs.identity import dump_prompt
from mrpo_pipeline.rendering import Rendered, Renderer
from mrpo_pipeline.rendering.byte_offsets import byte_ends

BYTE_LEVEL = ["gpt2", "llama3", "qwen"]
FALLBACK = ["llama2", "mistral", "metaspace_always", "phi3"]


@lru_cache
def renderer(kind: str) -> Renderer:
    return Renderer(KINDS[kind](), name=kind)


def strings(kind: str, rendered: Rendered) -> list[str]:
    return KINDS[kind]().convert_ids_to_tokens(rendered.completion_ids[:-1].tolist())


def assert_byte_level(kind: str, completion: str) -> None:
    """In GPT-2's alphabet a token has as many characters as bytes; `<think>` likewise."""
    got = renderer(kind).render([(chat("hi"), completion)])[0]
    lead = len(completion) - len(completion.lstrip()) if kind == "llama3" else 0
    ends = list(itertools.accumulate(map(len, strings(kind, got)), initial=len(completion[:lead].encode())))[1:]
    if ends:
        ends[-1] = len(completion.encode())  # white space trimmed behind
    assert got.byte_ends.tolist() == [*ends, len(completion.encode())]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_end_where_their_bytes_do(kind: str, text: str) -> None:
    if kind == "qwen":
        text = unicodedata.normalize("NFC", text)
    assert_byte_level(kind, text)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["gpt2", "llama3"]), plain_text)
def test_byte_level_tokens_end_where_their_bytes_do_in_any_text(kind: str, text: str) -> None:
    assert_byte_level(kind, text)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FALLBACK), plain_text)
@example("llama2", "? ")
def test_byte_fallback_tokens_end_where_their_bytes_do(kind: str, text: str) -> None:
    """Neither tokenizer normalizes: pieces are the bytes of the text, except one space before the first."""
    content = text.strip() if kind in ("llama2", "metaspace_always") else text
    got = renderer(kind).render([(chat("hi"), text)])[0]
    pieces = strings(kind, got)
    if content != text or content == "" or kind in ("llama2", "metaspace_always"):
        pieces = pieces[:-1] if pieces and pieces[-1] == "▁" else pieces  # the template's space before </s>
    sizes = [1 if re.fullmatch("<0x..>", p) else len(p.replace("▁", " ").encode()) for p in pieces]
    lead = len(text[: len(text) - len(text.lstrip())].encode()) if content else 0
    start = lead if content != text else 0
    extra = sum(sizes) - len(content.encode())
    assert extra in (0, 1)
    ends = [max(end - extra, 0) + start for end in itertools.accumulate(sizes)]
    total = len(text.encode())
    expected = [*ends, *[total] * (len(got.byte_ends) - len(ends))]
    expected[max(len(ends) - 1, 0)] = total
    if extra and pieces[0] == "▁" and len(ends) > 1:  # nothing but the space: it ends with what is behind it
        expected[0] = expected[1]
    assert got.byte_ends.tolist() == expected


def test_the_bytes_of_one_emoji_are_counted_one_by_one() -> None:
    got = renderer("mistral").render([(chat("hi"), "a🎉b")])[0]
    assert strings("mistral", got) == ["a", "<0xF0>", "<0x9F>", "<0x8E>", "<0x89>", "b"]
    assert got.byte_ends.tolist() == [1, 2, 3, 4, 5, 6, 6]


def test_characters_that_normalisation_changes_end_at_the_next_later_start() -> None:
    got = renderer("gemma").render([(chat("hi"), "½ﬁ x")])[0]
    assert strings("gemma", got) == ["1", "⁄", "2", "f", "i", "▁", "x"]
    assert got.byte_ends.tolist() == [2, 2, 2, 5, 5, 6, 7, 7]
    got = renderer("qwen").render([(chat("hi"), "e\u0301a")])[0]
    assert strings("qwen", got) == ["Ã©", "a"]
    assert got.byte_ends.tolist() == [3, 4, 4]


def test_trimmed_space_counts_in_the_completion() -> None:
    got = renderer("llama3").render([(chat("hi"), " \n\u3000fine \n")])[0]
    assert strings("llama3", got) == ["f", "in", "e"]
    assert got.byte_ends.tolist() == [6, 8, 11, 11]


def test_a_completion_trimmed_to_nothing_has_only_the_end_of_turn() -> None:
    got = renderer("llama3").render([(chat("hi"), " \n ")])[0]
    assert KINDS["llama3"]().convert_ids_to_tokens(got.completion_ids.tolist()) == ["<|eot_id|>"]
    assert got.byte_ends.tolist() == [3]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(list(KINDS)), plain_text, plain_text, st.booleans())
def test_ends_never_decrease_and_the_last_two_are_all_bytes(kind: str, prompt: str, text: str, raw: bool) -> None:
    got = renderer(kind).render([(dump_prompt(prompt) if raw else chat(prompt), text)])[0]
    total = len(text.encode())
    assert len(got.byte_ends) == len(got.completion_ids)
    assert (np.diff(got.byte_ends) >= 0).all()
    assert got.byte_ends[0] >= 0
    assert set(got.byte_ends[-2:].tolist()) == {total}
    assert {array.dtype for array in (got.prompt_ids, got.completion_ids, got.byte_ends)} == {np.dtype(np.int32)}
    assert len(got.prompt_ids) >= 1


def by_the_rule(content: str, spans: list[tuple[int, int]], total: int) -> list[int]:
    """The documented rule per token: the start of the next later-starting token."""
    ends = []
    for i, (start, _) in enumerate(spans):
        later = [s for s, _ in spans[i + 1 :] if s > start]
        ends.append(len(content[: later[0]].encode()) if later else total)
    return ends


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_tokens_of_unknown_bytes_follow_the_rule(data: st.DataObject) -> None:
    content = data.draw(st.text(st.sampled_from("a é日🎉"), min_size=1, max_size=8))
    starts = sorted(data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)))
    spans = [(start, data.draw(st.integers(start, len(content)))) for start in starts]
    total = len(content.encode()) + data.draw(st.integers(0, 3))
    got = byte_ends(content, [(a + 7, b + 7) for a, b in spans], 7, [b"\xff"] * len(spans), total)
    assert got.tolist() == by_the_rule(content, spans, total)
