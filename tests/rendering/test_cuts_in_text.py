"""Truncation: prompts lose their oldest part, completions end at the same character for every model."""

import json
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering_cases import KINDS, TEXTS, chat, plain_text
from tiny_tokenizers import TEXT, qwen

from mrpo_pipeline.pairs.identity import dump_prompt
from mrpo_pipeline.rendering import Rendered, Renderer, cut_offset, cut_prompt, tokens_counted, tokens_to_score


@lru_cache
def renderer(kind: str) -> Renderer:
    return Renderer(KINDS[kind](), name=kind)


def length(prompt: str, kind: str = "qwen") -> int:
    return renderer(kind).prompt_lengths([prompt])[0]


def ends(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_a_prompt_that_fits_is_the_same_text() -> None:
    prompt = chat("hi", "yes", "and?")
    assert cut_prompt(renderer("qwen"), prompt, length(prompt)) is prompt


def test_oldest_turns_are_dropped_first_and_the_system_message_is_kept() -> None:
    system = {"role": "system", "content": "Be brief."}
    turns = json.loads(chat(*(f"turn number {i} of the talk" for i in range(7))))
    for kept in (1, 3, 5):
        wanted = dump_prompt([system, *turns[-kept:]])
        more = dump_prompt([system, *turns[-kept - 2 :]])
        for budget in (length(wanted), length(more) - 1):
            assert cut_prompt(renderer("qwen"), dump_prompt([system, *turns]), budget) == wanted


def test_then_the_start_of_the_first_remaining_message_is_cut() -> None:
    long = " ".join(TEXT)
    system = {"role": "system", "content": "Be brief."}
    prompt = dump_prompt([system, *json.loads(chat("old", "answer", long))])
    got = json.loads(cut_prompt(renderer("qwen"), prompt, 60) or "")
    assert got[0] == system
    assert [message["role"] for message in got] == ["system", "user"]
    assert long.endswith(got[1]["content"])
    assert got[1]["content"]


@pytest.mark.parametrize("kind", list(KINDS))
@settings(max_examples=8, deadline=None)
@given(text=plain_text, spare=st.integers(1, 20), raw=st.booleans())
def test_the_longest_end_that_fits_is_kept(kind: str, text: str, spare: int, raw: bool) -> None:
    text = (text * 4).strip() + "end"
    prompt = dump_prompt(text) if raw else chat(text)
    empty = length(dump_prompt("") if raw else chat(""), kind)
    budget = empty + spare
    cut = cut_prompt(renderer(kind), prompt, budget)
    tails = [text[i:] for i in range(len(text))]  # every end of the text, the longest first
    lengths = renderer(kind).prompt_lengths([dump_prompt(tail) if raw else chat(tail) for tail in tails])
    fitting = [tail for tail, tokens in zip(tails, lengths, strict=True) if tokens <= budget]
    if cut is None:
        assert not fitting
        return
    got = json.loads(cut) if raw else json.loads(cut)[0]["content"]
    assert length(cut, kind) <= budget
    # A much longer end may fit by chance if a word was split; within one token's length none does.
    assert text.endswith(got)
    assert len(fitting[0]) - len(got) <= 2


def test_few_renderings_are_made_for_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = Renderer.prompt_lengths
    monkeypatch.setattr(Renderer, "prompt_lengths", lambda s, p: calls.append(len(p)) or real(s, p))
    text = " ".join(TEXT) * 5
    got = cut_prompt(renderer("qwen"), chat(text), 200)
    assert got is not None
    assert length(got) in (199, 200)
    assert sum(calls) < 60


def test_a_prompt_that_cannot_fit_gives_none() -> None:
    system = {"role": "system", "content": "Be brief. " * 20}
    assert cut_prompt(renderer("qwen"), dump_prompt([system, *json.loads(chat("hi"))]), 20) is None
    assert cut_prompt(renderer("qwen"), dump_prompt([system]), 20) is None
    assert cut_prompt(renderer("llama3"), dump_prompt("some text"), 1) is None


def test_a_conversation_that_starts_with_an_answer_loses_it_first() -> None:
    prompt = dump_prompt(
        [{"role": "assistant", "content": "Welcome to this place."}, {"role": "user", "content": "hi"}]
    )
    assert cut_prompt(renderer("qwen"), prompt, length(prompt) - 1) == chat("hi")


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("text", TEXTS)
def test_a_cut_leaves_at_most_the_budget_and_no_end_of_turn(kind: str, text: str) -> None:
    got = renderer(kind).render([(chat("hi"), text)])[0]
    size = len(got.completion_ids)
    assert cut_offset(got, text, size) is None
    edges = [len(text[:i].encode()) for i in range(len(text) + 1)]
    before = -1
    for budget in range(size):
        offset = cut_offset(got, text, budget)
        assert offset is not None
        text.encode()[:offset].decode()  # at a character's edge
        assert tokens_counted(got.byte_ends, True, offset) <= budget
        assert offset >= before
        before = offset
        # No further character fits: it is after the last fitting token, or too many tokens end with it.
        after = next((edge for edge in edges if edge > offset), None)
        if after is not None and budget > 0:
            too_many = tokens_counted(got.byte_ends, True, after) > budget
            tied = got.byte_ends[budget - 1] == got.byte_ends[budget]  # these count together: Llama-2's last space
            assert too_many or tied or after > got.byte_ends[budget - 1]


def test_cuts_worked_by_hand() -> None:
    rendered = Rendered(ends(1), ends(1, 2, 3, 4, 5), ends(1, 3, 5, 6, 6))  # "a🎉b" in tokens a, 2 bytes, 2 bytes, b
    text = "a🎉b"
    assert [cut_offset(rendered, text, n) for n in range(6)] == [0, 1, 1, 5, 6, None]
    assert [tokens_counted(rendered.byte_ends, True, c) for c in (0, 1, 4, 5, 6, None)] == [0, 1, 2, 3, 4, 5]
    assert [tokens_to_score(rendered.byte_ends, c) for c in (0, 1, 2, 5, 6, 7, None)] == [1, 1, 2, 3, 5, 5, 5]


def test_tokens_of_one_character_count_together() -> None:
    rendered = Rendered(ends(1), ends(1, 2, 3, 4, 5), ends(1, 3, 3, 4, 4))  # a, then two tokens for ½
    assert [cut_offset(rendered, "a½b", n) for n in range(6)] == [0, 1, 1, 3, 4, None]
    assert tokens_to_score(rendered.byte_ends, 2) == 3


def test_context_between_messages_counts_and_is_not_scored() -> None:
    scored = np.array([True, True, True, False, False, True, True, True])
    rendered = Rendered(
        ends(1), ends(*range(10, 18)), ends(1, 2, 2, 2, 2, 3, 5, 5), scored
    )  # "ab", end, context, "cde"
    assert rendered.scored_ids.tolist() == [10, 11, 12, 15, 16, 17]
    assert rendered.scored_ends.tolist() == [1, 2, 2, 3, 5, 5]
    # From "ab" and its end token on, the context costs two tokens more before "c" counts.
    assert [cut_offset(rendered, "abcde", n) for n in range(9)] == [0, 1, 1, 2, 2, 2, 3, 5, None]
    assert [tokens_to_score(rendered.scored_ends, cut) for cut in (1, 2, 3, 5, None)] == [1, 3, 4, 6, 6]
    for count, length in enumerate((0, 1, 2, 3, 6, 7, 8)):
        part = rendered.beginning(count)
        assert part.completion_ids.tolist() == list(range(10, 10 + length))
        assert len(part.scored_ids) == count == rendered.scored_within(length)
        assert (part.scored is None) == (count <= 3)
    assert rendered.scored_within(5) == 3 and rendered.scored_within(-1) == 0


def test_a_row_scored_for_a_cut_reaches_the_cut() -> None:
    for kind in KINDS:
        for text in TEXTS:
            byte_ends = renderer(kind).render([(chat("hi"), text)])[0].byte_ends
            total = len(text.encode())
            for cut in range(total + 1):
                scored = tokens_to_score(byte_ends, cut)
                complete = scored == len(byte_ends)
                assert byte_ends[scored - 1] >= cut
                assert tokens_counted(byte_ends[:scored], complete, cut) == tokens_counted(byte_ends, True, cut)


def test_a_cut_at_all_bytes_still_has_no_end_of_turn() -> None:
    got = renderer("qwen").render([(chat("hi"), "fine")])[0]
    assert cut_offset(got, "fine", len(got.completion_ids) - 1) == 4
    assert tokens_counted(got.byte_ends, True, 4) == len(got.completion_ids) - 1
    assert tokens_counted(got.byte_ends[:-1], False, 4) == len(got.completion_ids) - 1
    assert tokens_counted(got.byte_ends, True, None) == len(got.completion_ids)
    assert qwen().eos_token_id == got.completion_ids[-1]
