"""Adapters with another vocabulary than the base's, and files that do not fit: against peft on a base resized by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, make

from mrpo_pipeline.models.adapters import put_adapter, saves_embeddings

VOCABULARY = 320


def write_adapter(folder: Path, kind: str, rows: int, **lora: Any) -> Any:
    """Write a base of 320 tokens and an adapter of it over `rows` tokens; returns the adapted model as an oracle."""
    from peft import LoraConfig, get_peft_model

    build(kind, folder / "base")
    torch.manual_seed(1)
    model = make(kind)
    model.name_or_path = str(folder / "base")
    model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(
        model, LoraConfig(**({"r": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | lora))
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder / "adapter")
    return adapted.eval()


def logps(model: Any, rows: int) -> torch.Tensor:
    ids = torch.cat([torch.arange(3, 30), torch.arange(rows - 6, rows)])[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.double().log_softmax(-1)


@pytest.mark.parametrize(
    ("kind", "rows", "lora"),
    [
        ("llama", 323, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama", 323, {"target_modules": ["q_proj"]}),  # peft then saves the embeddings of the base
        ("llama", 311, {"target_modules": ["q_proj"]}),  # padding that was removed
        ("llama", 323, {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}),
        (
            "phi",
            323,
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        ),  # its head has a bias
        (
            "qwen2",
            323,
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        ),
        ("qwen2", 323, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 320, 321, 322]}),
        ("gpt2", 323, {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]}),
    ],
)
def test_an_adapter_of_another_vocabulary_is_served_and_saved_again(kind, rows, lora, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    before = write_adapter(tmp_path, kind, rows, **lora)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = put_adapter(base, str(tmp_path / "adapter"), is_trainable=True)
    assert adapted.get_input_embeddings().weight.shape[0] == rows == adapted.config.vocab_size
    torch.testing.assert_close(logps(adapted, rows), logps(before, rows), atol=1e-5, rtol=0)
    adapted.save_pretrained(tmp_path / "again", save_embedding_layers=saves_embeddings(adapted))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    again = put_adapter(base, str(tmp_path / "again"))
    torch.testing.assert_close(logps(again, rows), logps(before, rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("lora", "lost"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "lm_head"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [320, 321, 322]}, "lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ],
)
def test_rows_of_added_tokens_that_no_file_holds_are_not_drawn_at_random(lora, lost, tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_adapter(tmp_path, "llama", 323, **lora)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(
        {k: v for k, v in tensors.items() if not k.endswith((f"{lost}.weight", f"{lost}.base_layer.weight"))}, path
    )
    with pytest.raises(ValueError, match=f"adds 3 tokens to the 320 of the base.*{lost}"):
        put_adapter(make("llama"), str(tmp_path / "adapter"))


def test_a_weight_without_a_place_in_the_model_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """An adapter of a deeper model, otherwise of the same shape: peft ignores weights for missing layers."""
    from peft import LoraConfig, get_peft_model

    deeper = get_peft_model(make("llama", num_hidden_layers=3), LoraConfig(r=4, target_modules=["q_proj"]))
    deeper.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"2 weights that have no place in the model .*layers\.2\."):
        put_adapter(make("llama"), str(tmp_path / "adapter"))


def test_embeddings_of_two_sizes_are_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_adapter(tmp_path, "llama", 323, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.weight"] = tensors["base_model.model.lm_head.weight"][:322].clone()
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"different sizes.*323.*322|different sizes.*322.*323"):
        put_adapter(make("llama"), str(tmp_path / "adapter"))


def test_the_head_of_an_adapter_with_the_base_vocabulary_is_untouched(tmp_path) -> None:  # type: ignore[no-untyped-def]
    before = write_adapter(tmp_path, "llama", VOCABULARY, target_modules=["q_proj", "lm_head", "embed_tokens"])
    adapted = put_adapter(make("llama"), str(tmp_path / "adapter"))
    torch.testing.assert_close(logps(adapted, VOCABULARY), logps(before, VOCABULARY), atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
