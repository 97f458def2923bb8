"""A merged checkpoint equals the adapted model: head, embeddings, tied or not, complete modules, every kind of delta."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import adapted
from tiny_models import build, make

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.models import merging
from mrpo_pipeline.models.merge_check import NotMergeableError
from mrpo_pipeline.models.merging import EXPECTED, NOT_MERGEABLE, compare, merge, probe_ids
from mrpo_pipeline.models.source import ModelSource

IDS = torch.cat([torch.arange(3, 40), torch.arange(300, 320)])[None]


def logps(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.double().log_softmax(-1)


def merged(folder: Path, dtype: str = "float32") -> Any:
    """The merged model as a user loads it, after the command's comparison."""
    from transformers import AutoModelForCausalLM

    (folder / "merged").mkdir()
    source = ModelSource(model=str(folder / "base"), adapter=str(folder / "adapter"), dtype=dtype).named("tiny")
    before = merge(source, folder / "merged")
    assert compare(before, folder / "merged").agree
    return AutoModelForCausalLM.from_pretrained(folder / "merged").eval()


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
        ("gpt2", {"target_modules": ["c_attn", "wte", "lm_head"]}, False),
        ("qwen2", {"target_modules": ["v_proj"], "trainable_token_indices": [5, 9]}, True),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
        (
            "qwen2",
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
            True,
        ),
        ("gemma3", {"target_modules": ["q_proj", "embed_tokens"]}, False),  # scales the output of its embedding
        ("cohere", {"target_modules": ["q_proj", "lm_head"]}, False),
        ("mixtral", {"target_modules": ["q_proj", "gate"]}, None),  # its experts are stored apart, loaded as one tensor
        ("llama", {"target_modules": "all-linear", "bias": "all"}, False),
    ],
)
def test_merged_and_unmerged_agree_and_ties_are_kept_where_nothing_separated_them(kind, lora, tied, tmp_path) -> None:  # type: ignore[no-untyped-def]
    before = adapted(kind, tmp_path, **lora)
    after = merged(tmp_path)
    torch.testing.assert_close(logps(after), logps(before), atol=2e-4, rtol=2e-5)
    assert float((logps(after) - logps(make(kind))).abs().max()) > 0.05
    if tied is not None:
        assert after.config.tie_word_embeddings == tied


def test_a_16_bit_model_is_rounded_once_and_stays_16_bit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """W + scale · B A in float32, then one rounding, unlike an addition in 16 bits."""
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


def test_a_merged_folder_that_is_another_model_once_loaded_is_found(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A head that the adapter untied from the embeddings is tied again on loading: no tensor is missing, but the model differs."""
    adapted("qwen2", tmp_path, target_modules=["embed_tokens"])
    (tmp_path / "merged").mkdir()
    source = ModelSource(model=str(tmp_path / "base"), adapter=str(tmp_path / "adapter")).named("tiny")
    before = merge(source, tmp_path / "merged")
    path = tmp_path / "merged" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(RunError, match=r"configuration is another one.*tie_word_embeddings"):
        compare(before, tmp_path / "merged")
    path.write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(RunError, match=r"configuration is another one.*rms_norm_eps"):
        compare(before, tmp_path / "merged")
    path.write_text(json.dumps(config))
    assert compare(before, tmp_path / "merged").apart < 1e-4
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    weights["lm_head.weight"][7, 0] += 1e-6
    save_file(weights, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"1 tensors differ, lm_head\.weight"):
        compare(before, tmp_path / "merged")


def test_a_layer_that_is_merged_wrongly_is_found_below_the_noise_of_16_bits(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from peft.tuners.lora.layer import Linear

    adapted("llama", tmp_path, dtype="bfloat16", target_modules=["q_proj"], lora_alpha=0.05)
    delta = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: delta(self, adapter) * 0.5)
    with pytest.raises(NotMergeableError, match=r"layers\.0\.self_attn\.q_proj into another layer"):
        merged(tmp_path, "bfloat16")


@pytest.mark.parametrize("kind", ["LoHaConfig", "IA3Config", "OFTConfig", "VeraConfig", "LNTuningConfig"])
def test_other_kinds_that_peft_merges(kind, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import peft

    build("llama", tmp_path / "base")
    settings = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    if kind == "IA3Config":
        settings["feedforward_modules"] = ["down_proj"]
    if kind == "LNTuningConfig":
        settings["target_modules"] = ["input_layernorm"]
    if kind == "OFTConfig":
        settings |= {"oft_block_size": 32}
    if kind == "BOFTConfig":
        settings |= {"boft_block_size": 4}
    torch.manual_seed(1)
    model = peft.get_peft_model(make("llama"), getattr(peft, kind)(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "adapter")
    after = merged(tmp_path)
    torch.testing.assert_close(logps(after), logps(model), atol=1e-3, rtol=1e-4)
    assert float((logps(after) - logps(make("llama"))).abs().max()) > 0.02


def test_a_quantized_base_is_refused_by_its_method(tmp_path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    adapted("llama", tmp_path, target_modules=["lm_head"])
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    given = {"model": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter"), "folder": str(tmp_path)}
    monkeypatch.setattr(sys, "argv", ["merging", json.dumps(given)])
    with pytest.raises(SystemExit) as left:
        merging.main()
    assert left.value.code == NOT_MERGEABLE and "quantized (gptq)" in capsys.readouterr().err


def test_in_a_process_of_its_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """As the vLLM engine runs it: returns the folder, and log-probs of a short text before merging for comparison."""
    model = adapted("llama", tmp_path, target_modules=["lm_head"])
    (tmp_path / "merged").mkdir()
    given = {
        "model": str(tmp_path / "base"),
        "revision": None,
        "adapter": str(tmp_path / "adapter"),
        "dtype": "float32",
    }
    given |= {"trust_remote_code": False, "folder": str(tmp_path / "merged")}
    command = [sys.executable, "-m", "mrpo_pipeline.models.merging", json.dumps(given)]
    assert subprocess.run(command, check=False).returncode == 0
    expected = json.loads((tmp_path / "merged" / EXPECTED).read_text())
    ids = torch.from_numpy(probe_ids(expected["vocab_size"]).astype("int64"))
    assert len(set(ids.tolist())) == 16
    with torch.no_grad():
        every = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(
        torch.tensor(expected["logps"]), every.gather(-1, ids[1:, None])[:, 0], atol=1e-4, rtol=0
    )
