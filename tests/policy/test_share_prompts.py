"""A prompt shared by its two completions: the log-probs and gradients of two rows, or two rows and a notice."""

import logging

import numpy as np
import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from tiny_policy import make_examples

from mrpo_pipeline.models import shared_prompt_attention
from mrpo_pipeline.models.attention import exact_attention
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.models.input_layouts import plain_rows, shared_row
from mrpo_pipeline.policy.arguments import fast_paths, training_arguments
from mrpo_pipeline.policy.collate import lay_out_pairs
from mrpo_pipeline.policy.forward import PolicyForward
from mrpo_pipeline.policy.fused_lora import fuse_adapters
from mrpo_pipeline.policy.model import disable_config_dropout
from mrpo_pipeline.policy.share_prompts import share_prompts
from mrpo_pipeline.policy.trainer import PreferenceTrainer
from mrpo_pipeline.recipe import Method

SHARED = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3", "gpt2", "gpt_neox", "mixtral",
          "qwen2_moe", "cohere", "granite", "opt")  # fmt: skip
TWICE = ("bloom", "mamba", "recurrent_gemma", "falcon_h1")


def policy(kind, **lora):
    """A tiny model like stage two's, with an adapter away from its initial weights."""
    config = tiny_models.build_config(kind)
    disable_config_dropout(config)
    model = tiny_models.make(kind, **{name: value for name, value in vars(config).items() if "drop" in name})
    attention = exact_attention(model.config)
    if attention is not None:
        model.set_attn_implementation(attention)
    targets = {"mamba": ["in_proj", "x_proj"], "falcon_h1": ["q_proj", "in_proj", "down_proj"]}.get(kind, "all-linear")
    settings = {"r": 4, "target_modules": targets, "init_lora_weights": False, "fan_in_fan_out": kind == "gpt2"} | lora
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()


def forward_of(model):
    forward = PolicyForward(Head.of(model.get_base_model()))
    assert forward.head.notice is None
    return forward


def tried(model, examples):
    forward = forward_of(model)
    model.forward = forward
    reason = share_prompts(model, forward, [examples], [0, 1, 2], dtype="float32", device=torch.device("cpu"))
    del model.forward
    assert (reason is None) == forward.is_shared
    return forward, reason


def token_sums(model, batch):
    """(2B,) by full logits of each row alone, computed independently."""
    sums = []
    for prompt, completion in zip(batch["prompts"] * 2, batch["chosen"] + batch["rejected"], strict=True):
        ids = torch.tensor(np.concatenate([prompt, completion]), dtype=torch.long)[None]
        logps = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        start = len(prompt) - 1
        sums.append(logps[start : start + len(completion)].gather(-1, ids[0, start + 1 :, None]).sum())
    return torch.stack(sums)


def gradient(model, sums):
    """The gradient of a loss that weighs every completion differently, as one vector."""
    model.zero_grad()
    (sums * torch.linspace(-1, 2, len(sums), dtype=sums.dtype)).sum().backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def assert_equal(model, forward, inputs, batch):
    expected = token_sums(model, batch)
    by_expected = gradient(model, expected)
    found = forward(**inputs)
    by_found = gradient(model, found)
    forward.release()
    assert float((found - expected).detach().abs().max()) <= 1e-4
    assert float((by_found - by_expected).norm() / by_expected.norm()) <= 1e-5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", SHARED)
def test_log_probs_and_gradients_of_a_shared_row_are_those_of_full_logits(kind, fused):
    # Rows longer than the sliding window of 16 of mistral, gemma2 and gemma3.
    examples = make_examples(6, longest=30, seed=1)
    model = policy(kind)
    forward, reason = tried(model, examples)
    assert reason is None
    if fused:
        assert fuse_adapters(model) > 0 or kind == "gpt2"
    batch = examples.__getitems__([4, 0, 3])
    assert_equal(model, forward, lay_out_pairs(batch, shared_row), batch)


@pytest.mark.parametrize("kind", TWICE)
def test_a_model_that_does_not_support_shared_rows_runs_two_with_a_notice(kind):
    examples = make_examples(6, longest=30, seed=1)
    model = policy(kind)
    own = model.get_base_model().config._attn_implementation
    forward, reason = tried(model, examples)
    assert reason is not None
    assert "\n" not in reason
    assert model.get_base_model().config._attn_implementation == own
    batch = examples.__getitems__([4, 0, 3])
    assert_equal(model, forward, forward.inputs(batch), batch)


def test_two_rows_are_those_of_full_logits_as_well():
    examples = make_examples(4, longest=30)
    model = policy("llama")
    batch = examples.__getitems__([0, 1, 3])
    assert_equal(model, forward_of(model), lay_out_pairs(batch, plain_rows), batch)


def test_completions_that_see_each_other_are_noticed(monkeypatch):
    """A causal mask over the whole row is the result of a model that ignores segments."""

    def careless(module, query, key, value, mask, scaling=None, **_):
        key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for t in (key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return attended.transpose(1, 2), None

    monkeypatch.setattr(shared_prompt_attention, "attend", careless)
    _, reason = tried(policy("llama"), make_examples(6, longest=30))
    assert reason is not None
    assert "nats per token" in reason


def test_a_window_that_only_the_longest_pair_shows_is_noticed(monkeypatch):
    """An attention without the window is correct on every pair of the first batch, all shorter than it."""
    whole = shared_prompt_attention.attend

    def without_window(*args, sliding_window=None, **given):
        return whole(*args, **given)

    monkeypatch.setattr(shared_prompt_attention, "attend", without_window)
    examples = make_examples(6, longest=3)
    assert tried(policy("mistral"), examples)[1] is None
    examples.chosen_ids[5] = np.arange(20, 50, dtype=np.int32)
    examples.__post_init__()
    assert "nats per token" in tried(policy("mistral"), examples)[1]


def trainer_of(model, examples, folder, **training):
    # A log of every step would be printed.
    settings = {
        "per_device_train_batch_size": 3,
        "max_steps": 2,
        "disable_tqdm": True,
        "save_strategy": "no",
    } | training
    arguments = training_arguments(settings, folder, dtype="float32", evaluates=False)
    return PreferenceTrainer(model, arguments, Method(beta=0.3), examples, fast=fast_paths(training))


@pytest.mark.parametrize("kind", ["bloom", "llama"])
def test_a_run_logs_in_one_line_that_prompts_are_not_shared(kind, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="mrpo"):
        trainer_of(policy(kind), make_examples(6), tmp_path).train()
    said = [record.getMessage() for record in caplog.records if record.name == "mrpo"]
    assert len(said) == (1 if kind == "bloom" else 0)
    assert not said or ("BloomForCausalLM" in said[0] and "\n" not in said[0])


SWITCHES = ({"share_prompt": False}, {"fused_lora": False}, {"micro_batch_tokens": "off"}, {"micro_batch_tokens": 40},
            {"chunked_head": False}, {"gradient_checkpointing": True})  # fmt: skip


@pytest.mark.parametrize(("kind", "switches"), [("llama", SWITCHES), ("gemma2", SWITCHES[:1] + SWITCHES[-1:])])
def test_every_fast_path_can_be_switched_off_and_changes_nothing(kind, switches, tmp_path):
    examples = make_examples(12, longest=30, seed=2)
    logged = []
    for switch in ({}, *switches):
        model = policy(kind)
        trainer = trainer_of(model, examples, tmp_path, logging_steps=1, learning_rate=1e-2, **switch)
        trainer.train()
        logged.append([entry for entry in trainer.state.log_history if "learning_rate" in entry])
        assert model.get_base_model().config._attn_implementation != shared_prompt_attention.NAME
    assert len(logged[0]) == 2
    for other in logged[1:]:
        for ours, theirs in zip(logged[0], other, strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)


def test_a_step_in_many_micro_batches_runs_fewer_tokens_than_the_pairs_have_with_their_prompts_twice(tmp_path):
    examples = make_examples(12, longest=30, seed=2)
    trainer = trainer_of(policy("llama"), examples, tmp_path, gradient_accumulation_steps=2, logging_steps=1)
    assert trainer.get_total_train_batch_size(trainer.args) == 6
    trainer.train()
    tokens = trainer.state.log_history[0]["num_tokens"], trainer.state.num_input_tokens_seen
    assert tokens[0] < tokens[1] == int((examples.shared_lengths + examples.prompt_lengths).sum())
    assert trainer.tokens_run == int((examples.shared_lengths - 2).sum())


def test_evaluation_leaves_the_models_own_attention_in_place(tmp_path):
    examples = make_examples(6, longest=30)
    trainer = trainer_of(policy("llama"), examples, tmp_path)
    own = trainer.head.model.config._attn_implementation
    chosen, rejected = trainer.policy_sums(examples)
    assert trainer.policy_forward.is_shared
    assert trainer.head.model.config._attn_implementation == own != shared_prompt_attention.NAME
    del trainer.model.forward
    with torch.no_grad():
        expected = token_sums(trainer.model.eval(), examples.__getitems__(list(range(6))))
    assert torch.allclose(torch.cat([chosen, rejected]), expected, atol=1e-4)


@pytest.mark.parametrize("training", [{"micro_batch_tokens": 0}, {"micro_batch_tokens": True}, {"fused_lora": "yes"}])
def test_switches_that_cannot_be_are_refused_by_name(training):
    from mrpo_pipeline.errors import UserError

    with pytest.raises(UserError, match=next(iter(training))):
        fast_paths(training)
