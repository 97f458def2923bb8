"""Every kind of adapter and of start trains like peft alone: fast paths on or off, the same losses."""

import json

import pytest
import torch
from test_policy_loss import trainer_for
from tiny_policy import load_base, make_examples, plain_sums, write_policy

from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.lora import add_adapter
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.policy.train import train_policy
from mrpo_pipeline.recipe import Lora, Method, Policy
from mrpo_pipeline.recipe.training import FastPaths

SLOW = {
    "share_prompt": False,
    "group_by_prompt": False,
    "micro_batch_tokens": "off",
    "fused_lora": False,
    "chunked_head": False,
}
QUICK = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
QUICK |= {"learning_rate": 1e-2, "save_strategy": "no"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("llama"))


def losses(policy, output_dir, examples, *, anchor=None, **training):
    train_policy(policy, examples, None, Method(beta=0.3), QUICK | training, output_dir, anchor=anchor)
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "learning_rate" in entry]


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    ],
    ids=["all-linear", "lm_head", "rslora", "dora"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_kind_of_adapter_trains_as_without_the_fast_paths(llama, tmp_path, lora, checkpointing):
    policy = Policy(model=str(llama), lora=Lora(r=4, alpha=8, **lora))
    fast = losses(policy, tmp_path / "fast", make_examples(12), gradient_checkpointing=checkpointing)
    plain = losses(policy, tmp_path / "plain", make_examples(12), **SLOW)
    assert len(fast) == 3 and fast[2] != pytest.approx(fast[0], abs=1e-3)
    assert fast == pytest.approx(plain, rel=2e-5)


def test_a_start_from_an_adapter_scores_like_the_merged_model(llama, tmp_path):
    moved = add_adapter(load_base(llama), Lora(r=3, alpha=6, target_modules=["k_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    moved.save_pretrained(tmp_path / "adapter")
    merged = moved.merge_and_unload()
    examples = make_examples(8, base=merged)
    start = Policy(model=str(llama), adapter=str(tmp_path / "adapter"))
    found = losses(start, tmp_path / "out", examples, anchor=AnchorStart())
    assert found[0] == pytest.approx(0.6931472, abs=1e-5)
    assert found[2] < found[0] - 1e-3
    # The saved adapter is the trained one over the base, not over the merged model.
    after = load_policy(Policy(model=str(llama), adapter=str(tmp_path / "out")))
    assert set(after.active_peft_config.target_modules) == {"k_proj", "up_proj"}
    chosen, _ = plain_sums(after, examples)
    assert abs(chosen - examples.anchor_chosen).max() > 0.05


def test_a_bfloat16_base_trains_with_a_float32_adapter_near_the_float32_losses(llama, tmp_path):
    examples = make_examples(12)
    runs = {
        dtype: losses(
            Policy(model=str(llama), dtype=dtype, lora=Lora(target_modules="all-linear")),
            tmp_path / dtype,
            examples,
        )
        for dtype in ("float32", "bfloat16")
    }
    # Eight significant bits: sums of about 20 tokens are off by tenths.
    assert runs["bfloat16"] == pytest.approx(runs["float32"], abs=0.1)
    assert runs["bfloat16"] != runs["float32"]


def test_quantization_is_refused_by_name_where_it_cannot_be(llama, monkeypatch):
    with pytest.raises(UserError, match=r"policy\.quantization is 'int8': expected nf4"):
        load_policy(Policy(model=str(llama), quantization="int8"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"policy\.quantization is nf4.*a CUDA device") as caught:
        load_policy(Policy(model=str(llama), quantization="nf4"))
    assert "\n" not in str(caught.value)


def test_the_fast_paths_that_are_switched_off_above_are_all_there_are():
    assert SLOW.keys() == set(FastPaths.model_fields)


def test_a_trainer_with_checkpointing_shares_prompts_all_the_same(llama, tmp_path):
    trainer = trainer_for(llama, tmp_path, make_examples(8), gradient_checkpointing=True)
    trainer.train()
    assert trainer.policy_forward.is_shared
