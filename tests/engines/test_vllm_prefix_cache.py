"""When prompts may be read from vLLM's prefix cache, and which requests are repeated."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build

from mrpo_pipeline.engines import ScoringRequest, open_engine
from mrpo_pipeline.engines.vllm.engine import _blocks
from mrpo_pipeline.engines.vllm.environment import environment
from mrpo_pipeline.engines.vllm.logprobs import Dense, Listed
from mrpo_pipeline.engines.vllm.request_trial import try_prefix_cache
from mrpo_pipeline.engines.vllm.scorer import Scorer

BLOCK, VOCAB = 4, 50
TABLE = torch.log_softmax(torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0)), dim=-1)
"""A bigram model: log-prob of each token (column) after another (row)."""


class Core:
    """An engine core with a bigram model and a prefix cache; vLLM's own class makes its dense answers.

    Args:
        chunk: tokens of a step. keeps: whether prompts are cached. spoils: what the model computes behind a hit. fills: rows in the
            place of an answer that vLLM drops.
    """

    def __init__(
        self,
        *,
        chunk: int = 7,
        keeps: bool = True,
        spoils: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
        fills: bool = False,
    ) -> None:
        from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

        self.chunk, self.keeps, self.spoils, self.fills = chunk, keeps, spoils, fills
        # Raw logits, which are log-probs here: the log-softmax is a Triton kernel.
        self.worker = PromptLogprobsWorker(8, torch.device("cpu"), "raw_logits")
        self.waiting: list[tuple[str, list[int], Any]] = []
        self.cached: set[tuple[int, ...]] = set()
        self.computed = 0

    def add_request(self, name: str, prompt: dict[str, list[int]], asked: Any, lora_request: object) -> None:
        self.waiting.append((name, prompt["prompt_token_ids"], asked))

    def step(self) -> list[SimpleNamespace]:
        done, self.waiting = self.waiting, []
        return [self._answer(*one) for one in done]

    def _answer(self, name: str, ids: list[int], asked: Any) -> SimpleNamespace:
        hit = 0 if asked.skip_reading_prefix_cache else self._hit(ids)
        if self.keeps:
            self.cached |= {tuple(ids[:end]) for end in range(BLOCK, len(ids) + 1, BLOCK)}
        self.computed += len(ids) - hit
        self.worker.add_request(name, 0, asked)
        found: dict[str, torch.Tensor] = {}
        for start in range(hit, len(ids), self.chunk):
            found |= self._scores(name, ids, start, min(start + self.chunk, len(ids)), hit)
        scores = found.get(name)
        if scores is None and self.fills and asked.prompt_logprob_token_ids is not None:
            scores = torch.zeros(asked.prompt_logprob_token_ids.shape)
        rows = [None, *({b: SimpleNamespace(logprob=float(TABLE[a, b]))} for a, b in itertools.pairwise(ids))]
        return SimpleNamespace(
            request_id=name, finished=True, num_cached_tokens=hit, prompt_logprobs=rows,
            prompt_token_id_logprobs=None if scores is None else scores.numpy(),
        )  # fmt: skip

    def _hit(self, ids: list[int]) -> int:
        ends = range(BLOCK, len(ids), BLOCK)  # the last token is always computed
        return max((end for end in ends if tuple(ids[:end]) in self.cached), default=0)

    def _scores(self, name: str, ids: list[int], start: int, end: int, hit: int) -> dict[str, torch.Tensor]:
        batch = SimpleNamespace(
            req_ids=[name], idx_mapping_np=[0], num_computed_prefill_tokens_np=[start], num_scheduled_tokens=[end - start],
            prefill_len_np=np.array([len(ids)]), query_start_loc_np=[0],
        )  # fmt: skip
        logits = TABLE[torch.tensor(ids[start:end])]
        hidden = self.spoils(logits) if hit else logits
        given: dict[str, torch.Tensor] = self.worker.compute_prompt_token_id_logprobs(
            lambda rows: rows, hidden, batch, np.array([len(ids)])
        )
        return given


def scorer_on(core: Core, answers: Dense) -> Scorer:
    from vllm import SamplingParams

    scorer = Scorer.__new__(Scorer)
    scorer.engine, scorer.adapter, scorer.notices, scorer.same, scorer.max_model_len = core, None, [], 0.01, 64
    scorer._parameters = SamplingParams
    scorer._asked = {"max_tokens": 1, "temperature": 0.0, "skip_reading_prefix_cache": True}
    scorer.in_flight, scorer.tokens_in_flight, scorer._added = {}, 0, 0
    scorer.usual, scorer.answers = Listed(frozenset()), answers
    return scorer


def bigrams(ids: np.ndarray, count: int) -> np.ndarray:
    return np.array([float(TABLE[a, b]) for a, b in zip(ids[-count - 1 : -1], ids[-count:], strict=True)], np.float32)


def drawn(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)


@pytest.mark.vllm
@pytest.mark.parametrize("chunk", [3, 7, 100])
def test_all_rows_come_or_none_and_what_did_not_come_is_asked_again_without_the_cache(chunk: int) -> None:
    core = Core(chunk=chunk)
    scorer = scorer_on(core, Dense(reads_cache=True))
    texts: list[tuple[np.ndarray, int]] = []
    for prompt in (drawn(1, BLOCK + 1), drawn(2, 2 * BLOCK), drawn(3, 3), drawn(4, 1), drawn(5, 3 * BLOCK - 1)):
        alike = drawn(6, 2 * BLOCK)  # two completions with a common beginning of more than a block
        for completion in (drawn(7, 5), np.append(alike, 1), np.append(alike, 2), drawn(8, 1), drawn(7, 5)):
            texts.append((np.concatenate([prompt, completion]).astype(np.int32), len(completion)))
    found: dict[int, np.ndarray] = {}
    for number, (ids, count) in enumerate(texts):
        scorer.add(number, ids, count)
        while scorer.in_flight:
            found |= dict(scorer.step())
    for number, (ids, count) in enumerate(texts):
        np.testing.assert_allclose(found[number], bigrams(ids, count), atol=1e-6)
    assert scorer.reads_cache and scorer.notices == [] and scorer.tokens_in_flight == 0
    assert len(texts) < scorer._added < 2 * len(texts)  # some were requested again, and some were not


@pytest.mark.vllm
def test_a_prompts_completions_cost_its_tokens_once() -> None:
    core = Core()
    scorer = scorer_on(core, Dense(reads_cache=True))
    prompt = drawn(1, 5 * BLOCK + 2)
    for number in range(7):
        scorer.add(number, np.concatenate([prompt, drawn(10 + number, 6)]), 6)
        scorer.step()
    assert core.computed == len(prompt) + 7 * 6 + 6 * (len(prompt) % BLOCK)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("core", "told"),
    [
        ({}, None),
        ({"keeps": False}, "the second completion of a prompt finds nothing in it"),
        ({"spoils": lambda logits: logits - 0.1}, "the second completion of a prompt gets other log-probs by it"),
        ({"spoils": lambda logits: logits.roll(1, 0)}, "the second completion of a prompt gets other log-probs by it"),
        ({"fills": True}, "a completion that is in it gets other log-probs"),
    ],
)
def test_the_cache_is_read_where_the_numbers_stay_the_same(core: dict[str, Any], told: str | None) -> None:
    scorer = scorer_on(Core(**core), Dense())
    try_prefix_cache(scorer, drawn(0, 16), BLOCK)
    assert scorer.reads_cache == (told is None)
    assert scorer.notices == ([] if told is None else [f"vLLM's prefix cache is not used: {told}"])
    scorer.add(0, ids := drawn(1, 20), 9)
    ((_, logps),) = scorer.step()
    np.testing.assert_allclose(logps, bigrams(ids, 9), atol=1e-6)  # and dense, in every case
    assert isinstance(scorer.answers, Dense)


@pytest.mark.vllm
def test_a_context_too_short_for_the_texts_reads_no_cache() -> None:
    scorer = scorer_on(core := Core(), Dense())
    try_prefix_cache(scorer, drawn(0, 16), 32)
    assert not scorer.reads_cache and scorer.notices == [] and core.computed == 0


def test_completions_of_a_prompt_are_sent_next_to_each_other(uneven: Callable[..., list[ScoringRequest]]) -> None:
    prompts = [one.prompt_ids for one in uneven(300)]
    requests = [ScoringRequest(prompt, one.completion_ids) for one in uneven(5) for prompt in prompts]
    order = [index for block, _ in _blocks(requests) for index in block]
    assert sorted(order) == list(range(len(requests)))
    sent = [requests[index].prompt_ids.tobytes() for index in order]
    changes = sum(one != other for one, other in itertools.pairwise(sent))
    assert changes == len({prompt.tobytes() for prompt in prompts}) - 1
    assert len(requests[order[0]]) == max(map(len, requests))


IN_PROCESS = textwrap.dedent(
    """
    import json, sys
    import numpy as np
    from mrpo_pipeline.engines.vllm.scorer import Scorer

    model, texts, answers = sys.argv[1:]
    scorer = Scorer({"model": model, "revision": None, "adapter": None, "dtype": "float32", "quantization": None, "longest": 0,
                     "trust_remote_code": False, "merge_because": None, "merged_folder": None,
                     "options": {"block_size": 32, "max_num_batched_tokens": 256}})
    tried, found, cached = scorer._added, {}, 0
    finished = scorer.finished
    def counted():
        global cached
        done = finished()
        cached += sum(output.num_cached_tokens or 0 for _, output in done)
        return done
    scorer.finished = counted
    with np.load(texts) as file:
        counts = file["counts"].tolist()
        for number, count in enumerate(counts):
            scorer.add(number, file[f"text{number}"], count)
    while scorer.in_flight:
        found |= {f"text{number}": logps for number, logps in scorer.step()}
    told = {"reads_cache": scorer.reads_cache, "notices": scorer.notices, "asked": scorer._added - tried, "cached": cached}
    np.savez(answers, told=json.dumps(told), **found)
    """
)


def requests_of_few_prompts() -> Iterator[ScoringRequest]:
    """Prompts of complete blocks of 32 tokens, and others; five completions each, two of which begin alike."""
    draw = np.random.default_rng(0)
    for length in (96, 70, 64, 33, 32, 20, 1):
        prompt, alike = (draw.integers(3, 320, size).astype(np.int32) for size in (length, 50))
        for completion in (alike[:40], np.append(alike, 5), np.append(alike, 9), draw.integers(3, 320, 7), alike[:1]):
            yield ScoringRequest(prompt, completion.astype(np.int32))


def in_one_process(
    folder: Path, model: Path, requests: list[ScoringRequest]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    texts = {f"text{i}": np.concatenate([one.prompt_ids, one.completion_ids]) for i, one in enumerate(requests)}
    np.savez(folder / "texts.npz", counts=[len(one.completion_ids) for one in requests], **texts)
    command = [sys.executable, "-c", IN_PROCESS, model, folder / "texts.npz", folder / "answers.npz"]
    subprocess.run(command, check=True, timeout=580, env=environment(1, {}) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    with np.load(folder / "answers.npz") as answers:
        return json.loads(str(answers["told"])), [answers[name] for name in texts]


@pytest.mark.vllm
@pytest.mark.usefixtures("forked_vllm")
def test_a_model_runner_without_dense_answers_reads_no_cache(tmp_path, oracle) -> None:  # type: ignore[no-untyped-def]
    """V1, which the CPU build has, leaves positions from the cache unwritten."""
    path, requests = build("llama", tmp_path / "llama"), list(requests_of_few_prompts())
    told, found = in_one_process(tmp_path, path, requests)
    if told["reads_cache"]:
        pytest.skip("this vLLM's model runner gives dense answers")
    assert told["asked"] == len(requests) and told["cached"] == 0
    assert told["notices"] == []  # it is known that V1 refuses dense answers, and the options set the sizes
    for logps, expected in zip(found, oracle(path, requests), strict=True):
        np.testing.assert_allclose(logps, expected, atol=1e-3, rtol=0)


@pytest.mark.vllm
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
def test_a_prompt_is_computed_once_by_the_real_engine(tmp_path, oracle, kind, source_of) -> None:  # type: ignore[no-untyped-def]
    """Needs vLLM's V2 model runner, and so Triton. The models include sliding windows."""
    path, requests = build(kind, tmp_path / kind), list(requests_of_few_prompts())
    told, found = in_one_process(tmp_path, path, requests)
    assert told["reads_cache"] and told["cached"] > 0
    assert len(requests) < told["asked"] < 2 * len(requests)
    for logps, expected in zip(found, oracle(path, requests), strict=True):
        np.testing.assert_allclose(logps, expected, atol=1e-3, rtol=0)
    engine = open_engine("vllm", source_of(path), {"block_size": 32})
    try:
        assert engine.prompts_once  # type: ignore[attr-defined]
        again = dict(engine.score(requests))
    finally:
        engine.close()
    for index, logps in enumerate(found):
        np.testing.assert_allclose(again[index], logps, atol=1e-3, rtol=0)
