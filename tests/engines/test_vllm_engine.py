"""The vLLM engine, for real: the numbers of a plain forward pass, results as they come, everything given back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import build, make

from mrpo_pipeline.engines import ScoringRequest, open_engine
from mrpo_pipeline.engines.vllm_process import Scorer
from mrpo_pipeline.engines.vllm_settings import choose_sizes, first_model_length, kv_bytes_per_token
from mrpo_pipeline.errors import RunError, UserError

GIB = 1 << 30
needs_vllm = pytest.mark.vllm


def descendants(pid: int) -> list[int]:
    """Processes below this one, zombies left out."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue
            if state != "Z":
                below.setdefault(int(parent), []).append(int(entry.name))
    found = list(below.get(pid, []))
    for child in found:
        found.extend(below.get(child, []))
    return found


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_vllm
@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma2", "gpt2", "gpt_neox"])
def test_every_token_agrees_with_a_plain_forward(kind, tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    path = build(kind, tmp_path / kind)
    requests = uneven(40)
    # Fewer tokens a step than the longest sequence has: prompts are cut into chunks too.
    engine = open_engine("vllm", source_of(path), {"max_num_batched_tokens": 64, "max_num_seqs": 8})
    try:
        assert engine.context_length == 512
        got = dict(engine.score(requests))
    finally:
        engine.close()
    assert sorted(got) == list(range(40))
    for index, expected in enumerate(oracle(path, requests)):
        assert got[index].dtype == np.float32
        np.testing.assert_allclose(got[index], expected, atol=1e-3, rtol=0)


@needs_vllm
def test_one_engine_from_start_to_end(tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    """Several runs on one engine, a run left in the middle, refusals, and nothing left behind."""
    path = build("llama", tmp_path / "llama")
    before, rss = set(descendants(os.getpid())), resident_bytes()
    engine = open_engine("auto", source_of(path), {"threads": 1, "max_batch_tokens": 77})
    assert engine.name == "vllm"
    assert engine.dtype == "float32"
    assert "tiny: scored by vLLM" in engine.notices[0]
    assert "tokens a step" in engine.notices[1]
    assert "torch" in engine.versions()
    requests = uneven(1200)  # more than one block, more than one window
    requests += [requests[5], requests[5]]
    results = engine.score(requests)
    first = [next(results) for _ in range(10)]
    assert max(len(requests[index]) for index, _ in first) == max(map(len, requests))
    got = dict([*first, *results])
    assert sorted(got) == list(range(1202))
    np.testing.assert_allclose(got[1200], got[5], atol=1e-5)
    for index, expected in enumerate(oracle(path, requests[:60])):
        np.testing.assert_allclose(got[index], expected, atol=1e-3, rtol=0)
    again = dict(engine.score(requests[:7]))
    for index in range(7):
        np.testing.assert_allclose(again[index], got[index], atol=1e-4)
    assert list(engine.score([])) == []
    long = ScoringRequest(np.full(500, 5, np.int32), np.full(12, 5, np.int32))
    with pytest.raises(UserError, match="a context of 512 holds 511 at most"):
        next(engine.score([long]))
    assert set(descendants(os.getpid())) - before
    left = engine.score(requests)
    next(left)
    process = engine._process
    left.close()  # the caller walks away
    assert process.returncode == 0  # it noticed by itself and was not killed
    assert set(descendants(os.getpid())) <= before
    assert resident_bytes() - rss < GIB // 2
    with pytest.raises(RunError, match="closed"):
        next(engine.score(requests))
    engine.close()


@needs_vllm
def test_a_sequence_longer_than_it_started_for_makes_it_start_again(tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    source = source_of(path := build("phi", tmp_path / "phi", max_position_embeddings=10_000))
    draw = np.random.default_rng(2)
    long = ScoringRequest(draw.integers(3, 320, 8300).astype(np.int32), draw.integers(3, 320, 40).astype(np.int32))
    requests = uneven(5)
    engine = open_engine("vllm", source)
    try:
        assert engine.context_length == 10_000  # the model's own, whatever vLLM was started for
        for index, logps in engine.score(requests):
            np.testing.assert_allclose(logps, oracle(path, requests)[index], atol=1e-3, rtol=0)
        got = dict(engine.score([*requests, long]))
    finally:
        engine.close()
    ((_, expected),) = open_engine("transformers", source).score([long])
    np.testing.assert_allclose(got[5], expected, atol=1e-3, rtol=0)
    assert sorted(got) == list(range(6))


@needs_vllm
def test_a_script_without_a_guard_can_score_with_an_adapter(tmp_path, plain) -> None:  # type: ignore[no-untyped-def]
    """As the `mrpo` command is one; and the caller's death takes the engine with it."""
    from peft import LoraConfig, get_peft_model

    path = build("llama", tmp_path / "llama")
    adapted = get_peft_model(
        make("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, os, signal
        import numpy as np
        from mrpo_pipeline.engines import ScoringRequest, open_engine
        from mrpo_pipeline.references import ModelSource
        source = ModelSource(name="tiny", model={str(path)!r}, adapter={str(tmp_path / "adapter")!r})
        request = ScoringRequest(np.array({[5, 6, 7]}, np.int32), np.array({list(range(20, 50))}, np.int32))
        engine = open_engine("vllm", source)
        ((index, logps),) = engine.score([request])
        print(json.dumps({{"logps": logps.tolist(), "pid": engine._process.pid}}), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    done = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == -9, done.stderr
    answer = json.loads(done.stdout)
    request = ScoringRequest(np.array([5, 6, 7], np.int32), np.arange(20, 50, dtype=np.int32))
    np.testing.assert_allclose(answer["logps"], plain(adapted.eval(), request), atol=1e-3, rtol=0)
    assert abs(np.array(answer["logps"]) - plain(make("llama"), request)).max() > 0.01
    assert done.stderr == ""  # vLLM's own talk goes elsewhere
    deadline = time.monotonic() + 20
    while Path(f"/proc/{answer['pid']}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{answer['pid']}").exists()


@needs_vllm
def test_what_vllm_cannot_do_is_told_and_auto_goes_on(tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    path = build("recurrent_gemma", tmp_path / "model")
    requests = uneven(4)
    engine = open_engine("auto", source_of(path), {"max_num_seqs": 4})
    assert engine.name == "transformers"
    assert "since reference tiny: vLLM has no implementation of RecurrentGemmaForCausalLM" in engine.notices[0]
    for index, logps in engine.score(requests):
        np.testing.assert_allclose(logps, oracle(path, requests)[index], atol=1e-4, rtol=0)


@needs_vllm
def test_an_unknown_option_is_refused_with_the_nearest(tmp_path, source_of) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="Did you mean max_num_seqs"):
        open_engine("vllm", source_of(build("llama", tmp_path / "llama")), {"max_num_seq": 4})


class DenseEngine:
    """An engine core that answers for the completion alone, as vLLM does where its newer model runner works."""

    def __init__(self) -> None:
        self.asked: dict[str, dict[str, object]] = {}

    def add_request(
        self, name: str, prompt: dict[str, list[int]], asked: dict[str, object], lora_request: object
    ) -> None:
        self.asked[name] = prompt | asked

    def step(self) -> list[SimpleNamespace]:
        (name, asked), *_ = self.asked.items()
        scores = -np.asarray(asked["prompt_logprob_token_ids"], np.float32) / 10
        return [
            SimpleNamespace(
                request_id=name,
                finished=True,
                prompt_token_ids=asked["prompt_token_ids"],
                prompt_token_id_logprobs=scores,
            )
        ]


def dense_scorer() -> Scorer:
    scorer = Scorer.__new__(Scorer)
    scorer.engine, scorer.dense, scorer.adapter = DenseEngine(), True, None
    scorer._asked, scorer._parameters = {"max_tokens": 1}, dict
    scorer.in_flight, scorer.tokens_in_flight, scorer._added = {}, 0, 0
    return scorer


def test_a_dense_answer_is_asked_for_the_completion_only() -> None:
    """Row i of the answer is the prediction of prompt token start + i + 1 (vLLM's SamplingParams)."""
    scorer = dense_scorer()
    scorer.add(3, np.array([11, 12, 13, 24, 25], np.int32), completion_tokens=2)
    assert scorer.tokens_in_flight == 5
    ((_, asked),) = scorer.engine.asked.items()
    assert asked["prompt_token_ids"] == [11, 12, 13, 24, 25]
    assert asked["prompt_logprob_start"] == 2
    assert np.asarray(asked["prompt_logprob_token_ids"]).tolist() == [[24], [25]]
    ((index, logps),) = scorer.step()
    assert index == 3
    np.testing.assert_allclose(logps, [-2.4, -2.5])
    assert (scorer.in_flight, scorer.tokens_in_flight) == ({}, 0)


def test_answers_that_do_not_line_up_are_refused() -> None:
    scorer = dense_scorer()
    short = SimpleNamespace(prompt_token_id_logprobs=np.zeros((1, 1)))
    with pytest.raises(RunError, match=r"request 9: .*shape \(1, 1\) for 2 tokens"):
        scorer._read(9, short, np.array([4, 5]))
    scorer.dense = False

    class Flat(list):  # type: ignore[type-arg]
        token_ids = (4, 6)
        logprobs = (-1.0, -2.0)

    with pytest.raises(RunError, match="do not line up"):
        scorer._read(9, SimpleNamespace(prompt_logprobs=Flat([None, 0, 0])), np.array([4, 5]))
    older = SimpleNamespace(
        prompt_logprobs=[None, {4: SimpleNamespace(logprob=-1.5)}, {5: SimpleNamespace(logprob=-2.5)}]
    )
    assert scorer._read(9, older, np.array([4, 5])).tolist() == [-1.5, -2.5]


def test_a_large_vocabulary_lowers_the_tokens_of_a_step() -> None:
    """152k entries: 8,192 tokens would take 18.5 GiB beside what vLLM has measured."""
    card = {"max_model_len": 8192, "kv_bytes_per_token": 131072, "free_bytes": 24 * GIB, "total_bytes": 24 * GIB}
    large = choose_sizes(vocab_size=151_936, on_cpu=False, **card)
    small = choose_sizes(vocab_size=320, on_cpu=False, **card)
    assert small.max_num_batched_tokens == 8192
    assert large.max_num_batched_tokens == 1024
    assert large.block_bytes <= 2.4 * GIB
    assert large.memory_share is not None
    assert large.memory_share * 24 * GIB + large.block_bytes <= 0.91 * 24 * GIB
    assert "1024 tokens a step" in large.notice(151_936)
    shared = choose_sizes(vocab_size=320, on_cpu=False, **(card | {"free_bytes": 12 * GIB}))
    assert shared.memory_share is not None
    assert shared.memory_share <= 0.5


def test_a_cpu_gets_a_small_cache_that_holds_the_longest_sequence() -> None:
    machine = {"vocab_size": 32_000, "free_bytes": 8 * GIB, "total_bytes": 16 * GIB, "on_cpu": True}
    tiny = choose_sizes(max_model_len=512, kv_bytes_per_token=512, **machine)
    assert tiny.kv_cache_bytes == 256 << 20
    assert tiny.block_bytes <= GIB
    large = choose_sizes(max_model_len=8192, kv_bytes_per_token=256 << 10, **machine)
    assert large.kv_cache_bytes is not None
    assert 8192 * (256 << 10) < large.kv_cache_bytes <= 2.1 * GIB


def test_lengths_to_start_with() -> None:
    assert first_model_length(None, 0, None) == 8192
    assert first_model_length(512, 0, None) == 512
    assert first_model_length(131_072, 0, None) == 8192
    assert first_model_length(131_072, 20_000, None) == 20_001
    assert first_model_length(131_072, 0, 1000) == 1000


def test_bytes_of_keys_and_values_by_hand() -> None:
    from tiny_models import build_config

    # 2 (keys, values) × 2 layers × 1 head × 32 × 4 bytes
    assert kv_bytes_per_token(build_config("llama"), 4) == 512
