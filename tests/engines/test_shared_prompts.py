"""A prompt and all its completions in one row: the numbers of plain rows, no token twice, and a notice if that is impossible."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build

from mrpo_pipeline.engines import ScoringRequest
from mrpo_pipeline.engines.batching import by_prompt, pack_groups, to_compare
from mrpo_pipeline.engines.transformers import TransformersEngine
from mrpo_pipeline.models import shared_prompt_attention

SHARED = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3", "gpt2", "gpt_neox", "mixtral", "qwen2_moe",
    "cohere", "granite", "opt",
)  # fmt: skip
PLAIN = ("bloom", "mamba", "recurrent_gemma", "falcon_h1")
ANSWERS = (1, 7, 2, 1, 4)


def ranked(longest: int = 40, seed: int = 0) -> list[ScoringRequest]:
    """Prompts with one to seven answers each, of one token to `longest`, not ordered by prompt."""
    draw = np.random.default_rng(seed)

    def ids(most: int, least: int = 1) -> np.ndarray:
        return draw.integers(3, 320, draw.integers(least, most + 1)).astype(np.int32)

    requests = []
    for answers in ANSWERS:
        prompt = ids(longest, longest // 2)
        requests += [ScoringRequest(prompt, ids(1 if number == 3 else longest)) for number in range(answers)]
    return [requests[at] for at in draw.permutation(len(requests))]


def watched(engine: TransformersEngine) -> list[tuple[int, int]]:
    """The shapes of the ids of all later forward passes."""
    shapes: list[tuple[int, int]] = []
    head = engine._open().head
    own = head.hidden_states

    def hidden_states(input_ids, *args, **given):  # type: ignore[no-untyped-def]
        shapes.append(tuple(input_ids.shape))
        return own(input_ids, *args, **given)

    head.hidden_states = hidden_states  # type: ignore[method-assign]
    return shapes


def distinct_tokens(requests: list[ScoringRequest]) -> int:
    prompts = {request.prompt_ids.tobytes(): len(request.prompt_ids) for request in requests}
    return sum(prompts.values()) + sum(len(request.completion_ids) - 1 for request in requests)


def plain_engine(source, **options) -> TransformersEngine:  # type: ignore[no-untyped-def]
    engine = TransformersEngine(source, options)
    engine._may_share = False
    return engine


@pytest.mark.parametrize("kind", SHARED)
def test_log_probs_are_those_of_plain_rows_and_of_full_logits(kind, tmp_path, oracle, source_of, caplog) -> None:  # type: ignore[no-untyped-def]
    # Longer than the sliding window of 16 that mistral, gemma2 and gemma3 have here; rows of several prompts.
    path, requests = build(kind, tmp_path / kind), ranked()
    engine = TransformersEngine(source_of(path), {"max_batch_tokens": 400})
    with caplog.at_level(logging.WARNING, logger="mrpo"):
        found = dict(engine.score(requests))
    assert not [record for record in caplog.records if record.name == "mrpo"]
    assert engine._open().is_shared
    before = dict(plain_engine(source_of(path)).score(requests))
    for index, expected in enumerate(oracle(path, requests)):
        np.testing.assert_allclose(found[index], before[index], atol=1e-5, rtol=0)
        np.testing.assert_allclose(found[index], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_model_that_cannot_runs_plain_rows_and_says_so_once(kind, tmp_path, oracle, source_of, caplog) -> None:  # type: ignore[no-untyped-def]
    path, requests = build(kind, tmp_path / kind), ranked()
    engine = TransformersEngine(source_of(path))
    with caplog.at_level(logging.WARNING, logger="mrpo"):
        found = dict(engine.score(requests))
        list(engine.score(ranked(longest=60)))
    (record,) = [record for record in caplog.records if record.name == "mrpo"]
    assert "which is slower: " in record.getMessage()
    for index, expected in enumerate(oracle(path, requests)):
        np.testing.assert_allclose(found[index], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_state_that_a_long_prompt_forgets_is_noticed(kind, tmp_path, source_of) -> None:  # type: ignore[no-untyped-def]
    draw = np.random.default_rng(0)
    engine = TransformersEngine(source_of(build(kind, tmp_path / kind)))
    requests = [
        ScoringRequest(draw.integers(3, 320, 200).astype(np.int32), draw.integers(3, 320, 40).astype(np.int32))
        for _ in range(4)
    ]
    list(engine.score(requests))
    assert not engine._open().is_shared


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    return build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("budget", [10_000, 300, 120, 1])
def test_no_token_runs_twice_but_where_a_prompt_is_split(budget, llama, source_of, oracle) -> None:  # type: ignore[no-untyped-def]
    requests = ranked()
    engine = TransformersEngine(source_of(llama), {"max_batch_tokens": budget})
    list(engine.score(requests))  # the trial
    shapes = watched(engine)
    found = dict(engine.score(requests))
    assert all(rows == 1 for rows, _ in shapes)
    longest = max(map(len, requests))
    assert all(length <= max(budget, longest) for _, length in shapes)
    run, distinct = sum(length for _, length in shapes), distinct_tokens(requests)
    if budget == 10_000:
        assert len(shapes) == 1
    if budget >= 300:
        assert run == distinct
    if budget == 1:
        assert run == sum(len(request) - 1 for request in requests)
    for index, expected in enumerate(oracle(llama, requests)):
        np.testing.assert_allclose(found[index], expected, atol=1e-4, rtol=0)


def test_context_inside_a_completion_is_read_and_not_scored(llama, source_of, oracle) -> None:  # type: ignore[no-untyped-def]
    draw = np.random.default_rng(1)
    requests = []
    for request in ranked():
        scored = draw.random(len(request.completion_ids)) < 0.5
        scored[-1] = True
        requests.append(replace(request, scored=scored))
    engine = TransformersEngine(source_of(llama))
    found = dict(engine.score(requests))
    assert engine._open().is_shared
    for index, expected in enumerate(oracle(llama, requests)):
        np.testing.assert_allclose(found[index], expected[requests[index].scored], atol=1e-4, rtol=0)


def test_an_attention_that_is_asked_for_by_name_is_kept(llama, source_of, oracle) -> None:  # type: ignore[no-untyped-def]
    requests = ranked()
    engine = TransformersEngine(source_of(llama), {"attn_implementation": "eager"})
    found = dict(engine.score(requests))
    assert not engine._open().is_shared
    for index, expected in enumerate(oracle(llama, requests)):
        np.testing.assert_allclose(found[index], expected, atol=1e-4, rtol=0)


def test_rows_longer_than_those_tried_are_tried_before_they_run(
    tmp_path, source_of, oracle, monkeypatch, caplog
) -> None:  # type: ignore[no-untyped-def]
    """An attention without the window is right on short rows, but must not be trusted on longer ones."""
    real = shared_prompt_attention.attend

    def without_window(*args, sliding_window=None, **given):  # type: ignore[no-untyped-def]
        return real(*args, **given)

    monkeypatch.setattr(shared_prompt_attention, "attend", without_window)
    path = build("mistral", tmp_path / "mistral")
    engine = TransformersEngine(source_of(path))
    list(engine.score(ranked(longest=7)))
    assert engine._open().is_shared
    requests = ranked(longest=40)
    with caplog.at_level(logging.WARNING, logger="mrpo"):
        found = dict(engine.score(requests))
    assert "nats per token" in caplog.text
    for index, expected in enumerate(oracle(path, requests)):
        np.testing.assert_allclose(found[index], expected, atol=1e-4, rtol=0)


def test_where_memory_runs_out_groups_are_halved_and_then_their_completions(
    llama, source_of, oracle, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    requests = ranked()
    engine = TransformersEngine(source_of(llama))
    list(engine.score(requests))
    real = engine._logps

    def small(groups):  # type: ignore[no-untyped-def]
        if sum(len(group.completions) for group in groups) > 2:
            raise torch.OutOfMemoryError("as a GPU says it")
        return real(groups)

    monkeypatch.setattr(engine, "_logps", small)
    found = dict(engine.score(requests))
    for index, expected in enumerate(oracle(llama, requests)):
        np.testing.assert_allclose(found[index], expected, atol=1e-4, rtol=0)


SIZES = st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 40), min_size=1, max_size=6)), max_size=9)


@given(SIZES, st.integers(1, 200))
def test_each_request_once_with_its_own_prompt_and_within_the_budget(sizes, budget) -> None:  # type: ignore[no-untyped-def]
    requests = [
        ScoringRequest(np.full(prompt, number, np.int32), np.ones(completion, np.int32))
        for number, (prompt, completions) in enumerate(sizes)
        for completion in completions
    ]
    groups = by_prompt(requests)
    batches = list(pack_groups(groups, requests, budget))
    assert sorted(index for batch in batches for group in batch for index in group) == list(range(len(requests)))
    for batch in batches:
        tokens = 0
        for group in batch:
            (prompt,) = {requests[index].prompt_ids.tobytes() for index in group}
            tokens += len(prompt) // 4 + sum(len(requests[index].completion_ids) for index in group)
        assert tokens <= budget or [len(group) for group in batch] == [1]
    longest = [len(requests[group[0]]) for group in groups]
    assert longest == sorted(longest, reverse=True)


def test_the_longest_behind_whatever_can_stand_before_it_is_compared_once() -> None:
    requests = ranked()
    (batch,) = pack_groups(by_prompt(requests), requests, 10_000)
    compared: dict[str, int] = {}
    picked = to_compare(batch, requests, compared)
    longest = max(range(len(requests)), key=lambda index: len(requests[index]))
    behind = [index for group in batch if len(group) > 1 for index in group]
    assert set(picked) == {longest, max(behind, key=lambda index: len(requests[index]))}
    assert batch[-1][-1] == longest
    assert to_compare(batch, requests, compared) == []
    alone: dict[str, int] = {}
    assert to_compare([[longest]], requests, alone) == [longest]
    assert set(to_compare(batch, requests, alone)) == set(picked)


def test_what_was_tried_in_a_shared_row_is_not_run_again(llama, source_of) -> None:  # type: ignore[no-untyped-def]
    requests = ranked()
    engine = TransformersEngine(source_of(llama))
    shapes = watched(engine)
    list(engine.score(requests))
    short = [rows * length for rows, length in shapes[:2]]  # random texts
    assert sum(short) < 500
    assert sum(length for _, length in shapes[2:]) <= distinct_tokens(requests) + 2 * max(map(len, requests))


def test_memory_that_runs_out_while_it_is_tried_is_no_reason_against_it(llama, source_of, oracle, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    requests = ranked()
    engine = TransformersEngine(source_of(llama))
    real = engine._logps

    def small(groups):  # type: ignore[no-untyped-def]
        if sum(len(group.prompt) + sum(map(len, group.completions)) for group in groups) > 200:
            raise torch.OutOfMemoryError("as a GPU says it")
        return real(groups)

    monkeypatch.setattr(engine, "_logps", small)
    found = dict(engine.score(requests))
    assert engine._open().is_shared
    for index, expected in enumerate(oracle(llama, requests)):
        np.testing.assert_allclose(found[index], expected, atol=1e-4, rtol=0)
