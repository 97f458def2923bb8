"""The real vLLM engine: the numbers of a plain forward pass, results as they come, all resources released."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import build, make

from mrpo_pipeline.engines import ScoringRequest, open_engine, start_engine
from mrpo_pipeline.errors import RunError, UserError

GIB = 1 << 30
needs_vllm = pytest.mark.vllm
forked = pytest.mark.usefixtures("forked_vllm")


def descendants(pid: int) -> list[int]:
    """Descendants of this process, without zombies."""
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


def peak_bytes(pid: int) -> int:
    """The peak memory of one process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_vllm
@forked
@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma2", "gpt2", "gpt_neox"])
def test_every_token_agrees_with_a_plain_forward(kind, tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    path = build(kind, tmp_path / kind)
    requests = uneven(40)
    # Fewer tokens per step than the longest sequence has, so that prompts are chunked too.
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
    """Several runs on one engine, an abandoned run, refusals, and nothing left behind."""
    path = build("llama", tmp_path / "llama")
    before, rss = set(descendants(os.getpid())), resident_bytes()
    engine = open_engine("auto", source_of(path), {"threads": 1, "max_batch_tokens": 77, "max_num_seqs": 64})
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
    masks = [np.arange(len(request.completion_ids)) % 3 != 1 for request in requests[:7]]
    with_context = [replace(request, scored=mask) for request, mask in zip(requests, masks, strict=False)]
    again = dict(engine.score(with_context))
    for index in range(7):
        np.testing.assert_allclose(again[index], got[index][masks[index]], atol=1e-4)
    assert list(engine.score([])) == []
    long = ScoringRequest(np.full(500, 5, np.int32), np.full(12, 5, np.int32))
    with pytest.raises(UserError, match="a context of 512 holds 511 at most"):
        next(engine.score([long]))
    assert set(descendants(os.getpid())) - before
    left = engine.score(requests)
    next(left)
    process = engine._process
    left.close()  # the caller abandons the run
    assert process.returncode == 0  # it ended by itself and was not killed
    assert set(descendants(os.getpid())) <= before
    assert resident_bytes() - rss < GIB // 2
    with pytest.raises(RunError, match="closed"):
        next(engine.score(requests))
    engine.close()


@needs_vllm
@forked
def test_a_sequence_longer_than_it_started_for_makes_it_start_again(tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    source = source_of(path := build("phi", tmp_path / "phi", max_position_embeddings=10_000))
    draw = np.random.default_rng(2)
    long = ScoringRequest(draw.integers(3, 320, 8300).astype(np.int32), draw.integers(3, 320, 40).astype(np.int32))
    requests = uneven(5)
    engine = open_engine("vllm", source)
    try:
        assert engine.context_length == 10_000  # the model's own limit, whatever length vLLM was started with
        for index, logps in engine.score(requests):
            np.testing.assert_allclose(logps, oracle(path, requests)[index], atol=1e-3, rtol=0)
        got = dict(engine.score([*requests, long]))
    finally:
        engine.close()
    ((_, expected),) = open_engine("transformers", source).score([long])
    np.testing.assert_allclose(got[5], expected, atol=1e-3, rtol=0)
    assert sorted(got) == list(range(6))


@needs_vllm
@forked
def test_a_text_seen_before_is_scored_in_full_with_prefix_caching_on(tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    """Completions that share a prefix of several cache blocks, and one that is requested twice."""
    path = build("llama", tmp_path / "llama")
    shared = np.random.default_rng(3).integers(3, 320, 300).astype(np.int32)
    requests = [ScoringRequest(shared[:20], np.append(shared[20:], np.int32(token))) for token in (5, 6, 7, 5)]
    engine = open_engine("vllm", source_of(path), {"enable_prefix_caching": True, "max_num_seqs": 1})
    try:
        # One after the other, and again: the later ones could read what the first leaves in the prefix cache.
        got, again = dict(engine.score(requests)), dict(engine.score(requests))
    finally:
        engine.close()
    for index, expected in enumerate(oracle(path, requests)):
        np.testing.assert_allclose(got[index], expected, atol=1e-3, rtol=0)
        np.testing.assert_allclose(again[index], expected, atol=1e-3, rtol=0)


@needs_vllm
def test_a_large_vocabulary_is_scored_within_the_memory_that_was_told(tmp_path, source_of) -> None:  # type: ignore[no-untyped-def]
    vocab = 151_936
    path = build("llama", tmp_path / "llama", vocab_size=vocab, max_position_embeddings=2048)
    draw = np.random.default_rng(4)
    requests = [
        ScoringRequest(draw.integers(3, vocab, 100).astype(np.int32), draw.integers(3, vocab, count).astype(np.int32))
        for count in (1800, 900, 900, 100, 100, 1)
    ]
    start = start_engine("vllm", source_of(path))
    expected = dict(open_engine("transformers", source_of(path)).score(requests))  # while vLLM starts
    engine = start.ready()
    try:
        told = re.search(r"(\d+) tokens a step, .* at most ([\d.]+) GiB", engine.notices[0])
        assert told is not None
        assert int(told[1]) < 1800
        before = peak_bytes(engine._process.pid)
        for index, logps in engine.score(requests):
            np.testing.assert_allclose(logps, expected[index], atol=1e-3, rtol=0)
        grown = peak_bytes(engine._process.pid) - before
    finally:
        engine.close()
    assert grown < (float(told[2]) + 0.5) * GIB  # and everything else that a first run uses


@needs_vllm
@pytest.mark.slow
def test_a_model_cut_in_two_gives_the_same_numbers(tmp_path, uneven, oracle, source_of, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Tensor parallel on two cores; vLLM needs explicit core numbers if both are on one memory node."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("this machine has one core")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[1]}")
    path = build("llama", tmp_path / "llama", num_key_value_heads=2)
    before = set(descendants(os.getpid()))
    engine = open_engine("vllm", source_of(path), {"tensor_parallel_size": 2, "threads": 1})
    assert len(set(descendants(os.getpid())) - before) >= 3
    requests = uneven(20)
    got = dict(engine.score(requests))
    engine.close()
    for index, expected in enumerate(oracle(path, requests)):
        np.testing.assert_allclose(got[index], expected, atol=1e-3, rtol=0)
    assert set(descendants(os.getpid())) <= before


@needs_vllm
def test_a_script_without_a_guard_can_score_with_an_adapter(tmp_path, plain) -> None:  # type: ignore[no-untyped-def]
    """The `mrpo` command is such a script. If the caller dies, the engine ends too."""
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
        from mrpo_pipeline.engines import ScoringRequest, open_engine, start_engine
        from mrpo_pipeline.models.source import ModelSource
        source = ModelSource(model={str(path)!r}, adapter={str(tmp_path / "adapter")!r}).named("tiny")
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
    assert done.stderr == ""  # vLLM's own output goes elsewhere
    deadline = time.monotonic() + 20
    while Path(f"/proc/{answer['pid']}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{answer['pid']}").exists()


@needs_vllm
@forked
def test_what_vllm_cannot_do_is_told_and_auto_goes_on(tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    path = build("recurrent_gemma", tmp_path / "model")
    requests = uneven(4)
    engine = open_engine("auto", source_of(path), {"max_num_seqs": 4})
    assert engine.name == "transformers"
    assert "since reference tiny: vLLM has no implementation of RecurrentGemmaForCausalLM" in engine.notices[0]
    for index, logps in engine.score(requests):
        np.testing.assert_allclose(logps, oracle(path, requests)[index], atol=1e-4, rtol=0)


@needs_vllm
@forked
def test_options_that_vllm_does_not_take_are_named_in_one_line(tmp_path, source_of) -> None:  # type: ignore[no-untyped-def]
    source = source_of(build("llama", tmp_path / "llama"))
    starts = [start_engine("auto", source, options) for options in ({"max_num_seq": 4}, {"max_num_seqs": "many"})]
    refused = start_engine("vllm", source, {"max_model_len": 100_000})
    with pytest.raises(UserError, match="Did you mean max_num_seqs"):
        starts[0].ready()
    with pytest.raises(UserError, match=r"scoring.max_num_seqs: 'many' found; vLLM says: .*integer"):
        starts[1].ready()
    with pytest.raises(RunError, match=r"reference tiny: vLLM failed: .*max_model_len.*100000") as caught:
        refused.ready()
    assert "Options given: max_model_len: 100000." in str(caught.value)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


@needs_vllm
def test_an_engine_given_up_before_it_is_ready_leaves_nothing(tmp_path, source_of) -> None:  # type: ignore[no-untyped-def]
    before = set(descendants(os.getpid()))
    start = start_engine("vllm", source_of(build("llama", tmp_path / "llama")))
    assert set(descendants(os.getpid())) - before
    start.close()
    assert set(descendants(os.getpid())) <= before
