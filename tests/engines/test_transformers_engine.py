"""The transformers engine gives the numbers of a plain forward pass, whatever the batch, and never full logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import build, make

from mrpo_pipeline.engines import ScoringRequest, open_engine
from mrpo_pipeline.engines.transformers import TransformersEngine
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models import head_logps as head_logits
from mrpo_pipeline.models.attention import exact_attention

KINDS = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3", "gpt2", "gpt_neox",
    "mixtral", "qwen2_moe", "cohere", "granite", "opt", "bloom", "mamba", "recurrent_gemma", "falcon_h1",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_agrees_with_a_plain_forward(kind, tmp_path, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    path = build(kind, tmp_path / kind)
    requests = uneven(9)
    engine = open_engine("transformers", source_of(path), {"max_batch_tokens": 200})
    assert engine.dtype == "float32"
    assert engine.notices == []
    got = dict(engine.score(requests))
    assert sorted(got) == list(range(9))
    for index, expected in enumerate(oracle(path, requests)):
        assert got[index].dtype == np.float32
        assert got[index].shape == requests[index].completion_ids.shape
        np.testing.assert_allclose(got[index], expected, atol=1e-4, rtol=0)
    engine.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    return build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("budget", [1, 64, 109, 100_000])
def test_the_budget_does_not_change_the_numbers(budget, llama, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    requests = uneven(12)
    requests += [requests[4], requests[4]]  # the same request again gets the same answer
    engine = TransformersEngine(source_of(llama), {"max_batch_tokens": budget})
    got = dict(engine.score(requests))
    for index, expected in enumerate(oracle(llama, requests)):
        np.testing.assert_allclose(got[index], expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(got[12], got[4], atol=1e-5)


def test_context_is_read_and_not_scored(llama, uneven, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    draw = np.random.default_rng(2)
    requests = []
    for request in uneven(12):
        scored = draw.random(len(request.completion_ids)) < 0.5
        scored[-1] = True
        requests.append(replace(request, scored=scored))
    engine = TransformersEngine(source_of(llama), {"max_batch_tokens": 150})
    got = dict(engine.score(requests))
    for index, expected in enumerate(oracle(llama, requests)):
        np.testing.assert_allclose(got[index], expected[requests[index].scored], atol=1e-4, rtol=0)
    nothing = replace(requests[0], scored=np.zeros(len(requests[0].completion_ids), np.bool_))
    with pytest.raises(UserError, match="request 0: its completion has no tokens"):
        list(engine.score([nothing]))


def test_the_longest_come_first_and_one_batch_at_a_time(llama, uneven, source_of, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    requests = uneven(30)
    engine = TransformersEngine(source_of(llama), {"max_batch_tokens": 120})
    batches = []
    real = engine._run
    monkeypatch.setattr(engine, "_run", lambda batch, of: batches.append(len(batch)) or real(batch, of))
    results = engine.score(requests)
    first = next(results)[0]
    assert len(requests[first]) == max(map(len, requests))
    assert len(batches) <= 2  # one given out, one waiting
    lengths = [len(requests[index]) for index, _ in results]
    assert lengths == sorted(lengths, reverse=True)


def test_a_sequence_that_fills_the_context_is_scored_and_one_more_token_is_refused(llama, oracle, source_of) -> None:  # type: ignore[no-untyped-def]
    draw = np.random.default_rng(1)
    engine = TransformersEngine(source_of(llama))
    assert engine.context_length == 512
    full = ScoringRequest(draw.integers(3, 320, 500).astype(np.int32), draw.integers(3, 320, 11).astype(np.int32))
    ((_, got),) = engine.score([full])
    np.testing.assert_allclose(got, oracle(llama, [full])[0], atol=1e-4, rtol=0)
    too_long = ScoringRequest(full.prompt_ids, np.append(full.completion_ids, np.int32(5)))
    with pytest.raises(UserError, match="request 0: 500 prompt and 12 completion tokens"):
        list(engine.score([too_long]))


def test_logits_are_only_made_of_completion_positions_and_by_chunks(llama, uneven, source_of, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Every (rows, vocabulary) result of any operation is within a chunk, and all together they have one row per token."""
    from torch.utils._python_dispatch import TorchDispatchMode

    vocab, rows = 320, 16
    monkeypatch.setattr(head_logits, "FEWEST_ROWS", rows)
    monkeypatch.setattr(head_logits, "CPU_CHUNK_BYTES", rows * vocab * 4)
    requests = uneven(20)
    engine = TransformersEngine(source_of(llama), {"max_batch_tokens": 1000})
    list(engine.score(requests))  # the trial of shared prompts
    projected = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            if function.overloadpacket is torch.ops.aten.t:  # the transposed weight, a view without memory
                return result
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (vocab,) and tensor.numel() > vocab:
                    assert tensor.numel() <= rows * vocab, (function, tensor.shape)
                    if function.overloadpacket is torch.ops.aten.mm:
                        projected.append(tensor.shape[0])
            return result

    with Watch():
        list(engine.score(requests))
    assert sum(projected) == sum(len(request.completion_ids) for request in requests)


def test_a_log_prob_that_is_not_finite_names_the_request(tmp_path, uneven, source_of) -> None:  # type: ignore[no-untyped-def]
    model = make("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    requests = [
        ScoringRequest(np.array([5, 6], np.int32), np.array([7, 8], np.int32)),
        ScoringRequest(np.array([5, 77], np.int32), np.array([7, 8], np.int32)),
    ]
    with pytest.raises(RunError, match="request 1: "):
        list(TransformersEngine(source_of(tmp_path / "broken")).score(requests))


def test_an_adapter_is_part_of_the_reference(tmp_path, uneven, plain, source_of) -> None:  # type: ignore[no-untyped-def]
    from peft import LoraConfig, get_peft_model

    path = build("llama", tmp_path / "llama")
    adapted = get_peft_model(
        make("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    requests = uneven(5)
    engine = TransformersEngine(source_of(path, adapter=str(tmp_path / "adapter")))
    got = dict(engine.score(requests))
    for index, request in enumerate(requests):
        np.testing.assert_allclose(got[index], plain(adapted.eval(), request), atol=1e-4, rtol=0)


def test_weights_are_scored_in_the_dtype_that_is_named(tmp_path, uneven, source_of) -> None:  # type: ignore[no-untyped-def]
    path = build("llama", tmp_path / "llama", dtype="bfloat16")
    engine = TransformersEngine(source_of(path, dtype="bfloat16"))
    assert engine.dtype == "bfloat16"
    wide = TransformersEngine(source_of(path, dtype="float32"))
    assert wide.dtype == "float32"
    requests = uneven(6)
    narrow, exact = dict(engine.score(requests)), dict(wide.score(requests))
    for index in range(6):
        np.testing.assert_allclose(narrow[index], exact[index], atol=0.3)


def test_attention_caps_are_never_dropped(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tiny_models import build_config

    assert exact_attention(build_config("gemma2")) == "eager"
    assert exact_attention(build_config("gemma2"), "flash_attention_2") == "flash_attention_2"
    assert exact_attention(build_config("llama")) is None
    with pytest.raises(UserError, match="attn_logit_softcapping"):
        exact_attention(build_config("gemma2"), "sdpa")


def test_options_and_quantizations_that_do_not_exist_are_refused(llama, source_of) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="Did you mean max_batch_tokens"):
        TransformersEngine(source_of(llama), {"max_batch_token": 3})
    with pytest.raises(UserError, match="nf4 and int8"):
        TransformersEngine(source_of(llama, quantization="q4_k_m"))
    with pytest.raises(UserError, match="cannot be loaded"):
        TransformersEngine(source_of(llama / "nothing", dtype="float32"))


def test_threads_are_given_back_and_a_closed_engine_says_so(llama, uneven, source_of) -> None:  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    engine = TransformersEngine(source_of(llama), {"threads": before + 1})
    assert torch.get_num_threads() == before + 1
    engine.close()
    engine.close()
    assert torch.get_num_threads() == before
    with pytest.raises(RunError, match="closed"):
        list(engine.score(uneven(1)))
    assert engine.versions().keys() >= {"torch", "transformers"}
