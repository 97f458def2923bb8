"""Adapters in the real vLLM: a supported one is a LoRA request, one that vLLM would not apply fully is merged, and both are right."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
from tiny_adapters import adapted
from tiny_models import make

from mrpo_pipeline.engines import open_engine
from mrpo_pipeline.engines.vllm.adapters import UnsupportedError, adapt, why_not_served
from mrpo_pipeline.engines.vllm.engine import VllmUnsupportedError

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("forked_vllm")]


@pytest.fixture
def merged_folders(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """Merged models' folders that still exist; they would be created in this one."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return lambda: list((tmp_path / "tmp").glob("mrpo-merged-*"))


@pytest.mark.parametrize(
    ("kind", "lora", "why"),
    [
        (
            "llama",
            {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
            "a delta of lm_head, a whole model.embed_tokens, which vLLM leaves out",
        ),
        ("qwen2", {"target_modules": ["v_proj", "lm_head"]}, "a delta of lm_head"),  # its head is its embeddings
    ],
)
def test_what_vllm_would_leave_out_is_merged(
    kind, lora, why, tmp_path, uneven, plain, source_of, merged_folders
) -> None:  # type: ignore[no-untyped-def]
    model = adapted(kind, tmp_path, **lora)
    engine = open_engine("vllm", source_of(tmp_path / "base", adapter=str(tmp_path / "adapter")))
    try:
        assert why in engine.notices[0] and "was merged" in engine.notices[0]
        assert merged_folders() == []  # removed after it has been read
        for index, logps in engine.score(requests := uneven(20)):
            np.testing.assert_allclose(logps, plain(model, requests[index]), atol=1e-3, rtol=0)
    finally:
        engine.close()
    assert np.abs(plain(model, requests[0]) - plain(make(kind), requests[0])).max() > 0.05


def test_many_texts_with_a_lora_adapter_and_prefix_caching(tmp_path, uneven, plain, source_of, merged_folders) -> None:  # type: ignore[no-untyped-def]
    model = adapted("llama", tmp_path, target_modules="all-linear", rank_pattern={"q_proj": 3}, use_rslora=True)
    source = source_of(tmp_path / "base", adapter=str(tmp_path / "adapter"))
    engine = open_engine("vllm", source, {"enable_prefix_caching": True, "max_num_seqs": "16"})
    try:
        assert not any("merged" in notice for notice in engine.notices)
        for index, logps in engine.score(requests := uneven(40)):
            np.testing.assert_allclose(logps, plain(model, requests[index]), atol=1e-3, rtol=0)
    finally:
        engine.close()
    assert merged_folders() == []


@pytest.mark.slow
def test_an_adapter_that_vllm_refuses_is_merged_after_all(tmp_path, uneven, plain, source_of, merged_folders) -> None:  # type: ignore[no-untyped-def]
    """vLLM supports no LoRA for GPT-2, which shows only on its start."""
    model = adapted("gpt2", tmp_path, target_modules=["c_attn"])
    engine = open_engine("vllm", source_of(tmp_path / "base", adapter=str(tmp_path / "adapter")))
    try:
        assert "GPT2LMHeadModel does not support LoRA" in engine.notices[0]
        for index, logps in engine.score(requests := uneven(8)):
            np.testing.assert_allclose(logps, plain(model, requests[index]), atol=1e-3, rtol=0)
    finally:
        engine.close()
    assert merged_folders() == []


@pytest.mark.slow
def test_a_head_that_vllm_does_not_have_is_left_to_transformers(
    tmp_path, uneven, plain, source_of, merged_folders
) -> None:  # type: ignore[no-untyped-def]
    """vLLM's Gemma 2 computes logits from the embeddings, whatever the configuration says."""
    model = adapted("gemma2", tmp_path, target_modules=["q_proj", "lm_head"])
    engine = open_engine("auto", source_of(tmp_path / "base", adapter=str(tmp_path / "adapter")), {"max_num_seqs": 4})
    assert engine.name == "transformers"
    assert "no module or parameter named 'lm_head' in Gemma2" in engine.notices[0]
    model.get_base_model().set_attn_implementation("eager")  # the one that caps attention
    for index, logps in engine.score(requests := uneven(4)):
        np.testing.assert_allclose(logps, plain(model, requests[index]), atol=1e-3, rtol=0)
    assert merged_folders() == []


@pytest.mark.parametrize(
    ("lora", "why"),
    [
        ({"target_modules": ["q_proj"], "r": 16, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"q_proj": 3}}, None),
        ({"target_modules": "all-linear", "use_rslora": True}, None),
        ({"target_modules": r".*(lm_head|q_proj)"}, "a delta of lm_head"),
        ({"target_modules": ["embed_tokens"]}, "a delta of model.embed_tokens"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]}, "a whole model.norm"),
        (
            {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5]}},
            "a whole model.embed_tokens",
        ),
        ({"target_modules": ["q_proj"], "use_dora": True}, "DoRA"),
        ({"target_modules": ["q_proj"], "r": 600}, "its rank is 600"),
    ],
)
def test_what_vllm_serves_by_what_the_adapter_holds(lora, why, tmp_path) -> None:  # type: ignore[no-untyped-def]
    adapted("llama", tmp_path, **lora)
    said = why_not_served(str(tmp_path / "adapter"), 320, lora.get("r", 4))
    assert said is None if why is None else why in str(said)


def test_a_quantized_model_is_not_merged_into(tmp_path, source_of) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoConfig

    adapted("llama", tmp_path, target_modules=["lm_head"])
    source = source_of(tmp_path / "base", adapter=str(tmp_path / "adapter"), quantization="fp8")
    with pytest.raises(VllmUnsupportedError, match=r"a delta of lm_head.*quantized weights"):
        open_engine("vllm", source)
    config = AutoConfig.from_pretrained(tmp_path / "base")
    config.quantization_config = {"quant_method": "gptq"}  # the checkpoint's own
    settings = {"model": "m", "revision": None, "adapter": source.adapter, "quantization": None, "merge_because": None}
    with pytest.raises(UnsupportedError, match="it would be rounded"):
        adapt(settings, config)
