"""A merged checkpoint is the adapted model: head, embeddings, shared or not, whole modules, every kind of delta."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_adapters import adapted
from tiny_models import build, make

from mrpo_pipeline.engines.merging import EXPECTED, NotMergeableError, merge, probe_ids


def merged(folder: Path, dtype: str = "float32") -> Any:
    from transformers import AutoModelForCausalLM

    (folder / "merged").mkdir()
    settings = {"model": str(folder / "base"), "revision": None, "adapter": str(folder / "adapter"), "dtype": dtype}
    merge(settings | {"trust_remote_code": False, "folder": str(folder / "merged")})
    return AutoModelForCausalLM.from_pretrained(folder / "merged", attn_implementation="eager").eval()


@pytest.mark.parametrize(
    ("kind", "lora", "tied"),
    [
        ("llama", {"target_modules": ["q_proj", "lm_head"]}, False),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, False),
        ("llama", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}, False),
        ("phi", {"target_modules": ["v_proj"], "bias": "lora_only", "lora_bias": True}, False),
        ("llama", {"target_modules": ["v_proj"], "trainable_token_indices": {"embed_tokens": [5, 9]}}, False),
        ("qwen2", {"target_modules": ["q_proj", "lm_head"]}, False),
        ("qwen2", {"target_modules": ["embed_tokens"]}, False),
        ("qwen2", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, None),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ("gpt2", {"target_modules": ["c_attn"], "use_dora": True}, True),
    ],
)
def test_merged_and_unmerged_agree_and_ties_are_kept_where_nothing_parted_them(
    kind, lora, tied, tmp_path, uneven, plain
) -> None:  # type: ignore[no-untyped-def]
    before = adapted(kind, tmp_path, **lora)
    after = merged(tmp_path)
    for request in uneven(4):
        np.testing.assert_allclose(plain(after, request), plain(before, request), atol=1e-4, rtol=1e-5)
    assert np.abs(plain(after, uneven(4)[3]) - plain(make(kind), uneven(4)[3])).max() > 0.05
    if tied is not None:
        assert after.config.tie_word_embeddings == tied
    ids = probe_ids(320)
    assert len(set(ids.tolist())) == 16
    row = torch.from_numpy(ids.astype(np.int64))
    logps = torch.log_softmax(before(input_ids=row[None]).logits[0, :-1], -1).gather(-1, row[1:, None])[:, 0]
    expected = json.loads((tmp_path / "merged" / EXPECTED).read_text())
    np.testing.assert_allclose(expected, logps.detach().numpy(), atol=1e-4)


def test_a_16_bit_model_is_rounded_once_and_stays_16_bit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """W + scale · B A in float32, then one rounding: what adding in 16 bits would not give."""
    model = adapted("llama", tmp_path, dtype="bfloat16", target_modules=["lm_head"], lora_alpha=1)
    after = merged(tmp_path, "bfloat16")
    head = model.base_model.model.lm_head
    delta = (head.lora_B["default"].weight @ head.lora_A["default"].weight) * 0.25
    wide = make("llama").lm_head.weight.bfloat16().float() + delta
    assert after.lm_head.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in after.parameters()} == {torch.bfloat16}
    assert torch.equal(after.lm_head.weight, wide.bfloat16())
    assert not torch.equal(after.lm_head.weight, make("llama").lm_head.weight.bfloat16() + delta.bfloat16())


def test_an_adapter_that_changes_no_weights_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from peft import PromptTuningConfig, get_peft_model

    build("llama", tmp_path / "base")
    get_peft_model(make("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        tmp_path / "adapter"
    )
    with pytest.raises(NotMergeableError, match="PROMPT_TUNING changes no weights"):
        merged(tmp_path)


def test_a_bias_for_a_layer_that_has_none_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    adapted("llama", tmp_path, target_modules=["v_proj"], lora_bias=True)
    with pytest.raises(NotMergeableError, match="no bias"):
        merged(tmp_path)
