"""Training continues from an adapter with added tokens, and its result still has them."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from tiny_policy import make_examples, write_policy
from transformers import AutoModelForCausalLM

from mrpo_pipeline.models.adapters import put_adapter
from mrpo_pipeline.policy.train import train_policy
from mrpo_pipeline.recipe import Method, Policy


def test_embeddings_that_the_adapter_brings_are_in_the_adapter_that_is_left(tmp_path):
    from peft import LoraConfig, get_peft_model

    base = write_policy(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(99, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "sft", save_embedding_layers=True)
    examples = make_examples(2)
    examples.chosen_ids[0][-1] = 98
    settings = Policy(model=str(base), adapter=str(tmp_path / "sft"))
    arguments = {"max_steps": 1, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "steps", "save_steps": 1}
    train_policy(settings, examples, None, Method(), arguments, tmp_path / "out")
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        again = put_adapter(AutoModelForCausalLM.from_pretrained(base), str(folder))
        for name, weight in (("embed_tokens", again.get_input_embeddings().weight), ("lm_head", model.lm_head.weight)):
            kept = load_file(folder / "adapter_model.safetensors")
            (key,) = [key for key in kept if name in key]
            assert torch.equal(kept[key], weight)
        assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
