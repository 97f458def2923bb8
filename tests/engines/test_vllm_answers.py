"""How log-probs are requested from vLLM, read, compared and refused, with a scripted engine core."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mrpo_pipeline.engines.vllm.adapters import UnsupportedError
from mrpo_pipeline.engines.vllm.logprobs import Dense, Listed, MisalignedError
from mrpo_pipeline.engines.vllm.request_trial import try_out
from mrpo_pipeline.engines.vllm.scorer import Scorer
from mrpo_pipeline.errors import RunError

FLAT = frozenset({"prompt_logprobs", "flat_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start"})


class FlatLogprobs(list):  # type: ignore[type-arg]
    """Like vLLM's: one entry per position except the first, in arrays."""

    def __init__(self, ids: list[int], logps: list[float]) -> None:
        super().__init__([None, *ids])
        self.token_ids, self.logprobs = ids, logps


class Core:
    """Answers every request at the next step with token id ÷ -10, in the usual form and densely, by default."""

    def __init__(self, dense: Callable[[np.ndarray], Any] | None = lambda scores: scores) -> None:
        self.waiting: list[tuple[str, list[int], dict[str, Any]]] = []
        self.asked: list[dict[str, Any]] = []
        self.dense = dense
        self.usual: Callable[[list[int]], list[float]] = lambda ids: [-token / 10 for token in ids]

    def add_request(self, name: str, prompt: dict[str, list[int]], asked: dict[str, Any], lora_request: object) -> None:
        if "prompt_logprob_token_ids" in asked and self.dense is None:
            raise LookupError("prompt_logprob_token_ids requires the V2 model runner")
        self.asked.append(asked)
        self.waiting.append((name, prompt["prompt_token_ids"], asked))

    def step(self) -> list[SimpleNamespace]:
        done, self.waiting = self.waiting, []
        return [self._answer(*one) for one in done]

    def _answer(self, name: str, ids: list[int], asked: dict[str, Any]) -> SimpleNamespace:
        output = SimpleNamespace(request_id=name, finished=True, prompt_logprobs=None, prompt_token_id_logprobs=None)
        if "prompt_logprob_token_ids" in asked:
            assert self.dense is not None
            output.prompt_token_id_logprobs = self.dense(
                -np.asarray(asked["prompt_logprob_token_ids"], np.float32) / 10
            )
        else:
            output.prompt_logprobs = FlatLogprobs(ids[1:], self.usual(ids[1:]))
        return output


def scorer_on(core: Core, *, dense: bool = True) -> Scorer:
    scorer = Scorer.__new__(Scorer)
    scorer.engine, scorer.adapter, scorer.notices = core, None, []
    scorer._asked, scorer._parameters, scorer.same = {"max_tokens": 1}, dict, 0.01
    scorer.in_flight, scorer.tokens_in_flight, scorer._added = {}, 0, 0
    scorer.usual = Listed(FLAT)
    scorer.answers = Dense() if dense else scorer.usual
    return scorer


IDS = np.array([11, 12, 13, 24, 25], np.int32)


def test_a_dense_answer_is_asked_for_the_completion_only() -> None:
    """Row i of the answer is the prediction of prompt token start + i + 1 (vLLM's SamplingParams)."""
    core = Core()
    scorer = scorer_on(core)
    scorer.add(3, IDS, 2)
    assert scorer.tokens_in_flight == 5
    (asked,) = core.asked
    assert asked["prompt_logprob_start"] == 2
    assert np.asarray(asked["prompt_logprob_token_ids"]).tolist() == [[24], [25]]
    ((index, logps),) = scorer.step()
    assert index == 3
    np.testing.assert_allclose(logps, [-2.4, -2.5])
    assert (scorer.in_flight, scorer.tokens_in_flight) == ({}, 0)


@pytest.mark.parametrize("wrong", [lambda scores: None, lambda scores: scores[1:], lambda scores: scores[:, [0, 0]]])
def test_a_dense_answer_of_the_wrong_shape_is_asked_for_again_in_the_usual_way(wrong: Callable[..., Any]) -> None:
    scorer = scorer_on(Core(wrong))
    scorer.add(3, IDS, 2)
    assert scorer.step() == []
    ((index, logps),) = scorer.step()
    assert index == 3
    np.testing.assert_allclose(logps, [-2.4, -2.5])
    assert scorer.tokens_in_flight == 0
    assert "dense prompt log-probs are not used: scores of shape" in scorer.notices[0]
    scorer.add(4, IDS, 1)
    ((_, logps),) = scorer.step()
    np.testing.assert_allclose(logps, [-2.5])
    assert len(scorer.notices) == 1


@pytest.mark.parametrize(
    ("dense", "used", "told"),
    [
        (lambda scores: scores, True, []),
        (None, False, []),  # refused: the model runner does not support it, as already known
        (lambda scores: None, False, ["scores of shape None"]),
        (lambda scores: np.roll(scores, 1, axis=0), False, ["nats per token away"]),
        (lambda scores: scores - 0.1, False, ["nats per token away from the usual answer"]),
    ],
)
def test_the_dense_way_is_taken_where_it_gives_the_same_numbers(dense: Any, used: bool, told: list[str]) -> None:
    scorer = scorer_on(Core(dense), dense=False)
    try_out(scorer, np.arange(5, 21, dtype=np.int32), None, dense=True)
    assert (scorer.answers is not scorer.usual) == used
    assert len(scorer.notices) == len(told)
    assert all(words in notice for words, notice in zip(told, scorer.notices, strict=True))
    assert (scorer.in_flight, scorer.tokens_in_flight) == ({}, 0)


def test_a_merged_model_of_which_vllm_leaves_a_part_out_is_refused() -> None:
    ids = np.arange(5, 21, dtype=np.int32)
    scorer = scorer_on(Core(), dense=False)
    try_out(scorer, ids, (-ids[1:] / 10 + 0.005).tolist(), dense=False)
    with pytest.raises(UnsupportedError, match="leaves part of the merged model out"):
        try_out(scorer, ids, (-ids[1:] / 10 + 0.05).tolist(), dense=False)


def test_numbers_that_depend_on_what_else_is_scored_are_refused_at_the_start() -> None:
    core = Core()
    core.usual = lambda ids: [-token / 10 - len(ids) / 100 for token in ids]
    with pytest.raises(RunError, match="those of its first half"):
        try_out(scorer_on(core, dense=False), np.arange(5, 21, dtype=np.int32), None, dense=False)


def test_usual_answers_that_do_not_line_up_are_refused() -> None:
    usual = Listed(FLAT)
    assert usual.asked(IDS, 2) == {"prompt_logprobs": 0, "flat_logprobs": True}
    fine = SimpleNamespace(prompt_logprobs=FlatLogprobs([12, 13, 24, 25], [-1.0, -2.0, -3.0, -4.0]))
    assert usual.read(fine, IDS[3:]).tolist() == [-3.0, -4.0]
    for ids, logps in (([12, 13, 24, 0], [0.0] * 4), ([12, 13, 25], [0.0] * 3)):
        answer = FlatLogprobs(ids, logps)
        answer[:] = [None] * 5
        with pytest.raises(MisalignedError, match="entries for 5 positions"):
            usual.read(SimpleNamespace(prompt_logprobs=answer), IDS[3:])
    core = Core()
    scorer = scorer_on(core, dense=False)
    scorer.add(9, IDS, 2)
    core.waiting = [(name, [*ids[:-1], 0], asked) for name, ids, asked in core.waiting]
    with pytest.raises(RunError, match=r"request 9: .*do not line up"):
        scorer.step()


def test_answers_of_a_vllm_without_flat_ones_are_read() -> None:
    usual = Listed(frozenset({"prompt_logprobs"}))
    assert usual.asked(IDS, 2) == {"prompt_logprobs": 0}
    rows = [None, {4: SimpleNamespace(logprob=-1.5)}, {5: SimpleNamespace(logprob=-2.5)}]
    assert usual.read(SimpleNamespace(prompt_logprobs=rows), np.array([4, 5])).tolist() == [-1.5, -2.5]
    for wrong in (rows[:2], [None, rows[1], {6: rows[2][5]}], None):
        with pytest.raises(MisalignedError):
            usual.read(SimpleNamespace(prompt_logprobs=wrong), np.array([4, 5]))
