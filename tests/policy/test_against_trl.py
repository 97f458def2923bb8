"""Comparison with TRL's DPOTrainer on pairs without cuts: the same ids, log-probs and training.

The first loss alone proves nothing, because it is ln 2 for any ids. The later ones depend on the ids, log-probs, gradients,
clipping, optimizer and schedule of every earlier step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from tiny_references import HARD_TEXTS, pair, write_pairs

from mrpo_pipeline.dataset.reference_logps import open_caches
from mrpo_pipeline.dataset.splits import examples_of, load_splits
from mrpo_pipeline.policy.arguments import training_arguments
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.policy.trainer import PreferenceTrainer
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.scoring import score_references

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

STEPS, BATCH = 20, 4
BETA = 0.1
TOLERANCE = 1e-3
TRAINING: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "seed": 0,
}
SENTENCE = "River stone and water slowly turn the old mill wheel, which is why it does not last long"
# Like Llama 3's, but without a date, which TRL would print as today's, and without text after the end-of-turn token, which
# TRL would count as completion.
TEMPLATE = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)


def preference_pairs() -> list[dict[str, Any]]:
    """One pair for each place in each batch, of different lengths: single and several turns, system messages, hard text.
    Left out is text that the two read differently on purpose: control tokens as text, and text that would merge with the
    line break before it."""
    hard = [text for text in HARD_TEXTS if "<|" not in text and not text[0].isspace()]
    words = SENTENCE.split()
    rows = []
    for i in range(STEPS * BATCH):
        good = " ".join(words[(i + j) % len(words)] for j in range(2 + (5 * i + 3) % 9))
        bad = " ".join(words[(3 * i + 2 * j) % len(words)] for j in range(2 + (7 * i + 3) % 9))
        prompt: list[dict[str, str]] = [{"role": "user", "content": f"Question {i}: {hard[i % len(hard)]}"}]
        if i % 3 == 0:
            prompt = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}, *prompt]
        if i % 4 == 0:
            prompt = [{"role": "system", "content": "Be brief."}, *prompt]
        rows.append(pair(prompt, f"{good}. {hard[(i + 1) % len(hard)]}", f"{bad}?", id=f"pair-{i}"))
    return rows


@dataclass
class SideBySide:
    """Both trainers after the same run, and the sums (2, N) of each before and after it."""

    ours: PreferenceTrainer
    theirs: Any
    sums: dict[str, tuple[np.ndarray, np.ndarray]]

    def logged(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(STEPS,) of each."""
        histories = (self.ours.state.log_history, self.theirs.state.log_history)
        ours, theirs = (np.array([entry[name] for entry in log if "learning_rate" in entry]) for log in histories)
        assert ours.shape == theirs.shape == (STEPS,)
        return ours, theirs


def our_trainer(folder: Path, model: Path, pairs: Path) -> PreferenceTrainer:
    """Stage one, with the anchor as the only reference, and stage two up to the first step."""
    recipe = parse_recipe(
        {
            "pairs": {"train": str(pairs)},
            "policy": {
                "model": str(model),
                "dtype": "float32",
                "lora": {"r": 8, "alpha": 16, "target_modules": "all-linear"},
            },
            "references": {"anchor": {"model": str(model), "dtype": "float32"}},
            "cache": str(folder / "cache"),
            "limits": {"max_length": 512},
            "scoring": {"engine": "transformers"},
            "method": {"name": "mrpo", "beta": BETA},
            "output_dir": str(folder / "ours"),
        }
    )
    score_references(recipe)
    caches = open_caches(recipe)
    split = load_splits(recipe, caches, "train")["train"]
    assert split.counts.used == STEPS * BATCH
    assert split.counts.cut_prompts == split.counts.cut_completions == 0
    examples, _ = examples_of(split, recipe.method)
    torch.manual_seed(0)
    policy = load_policy(recipe.required_policy())
    arguments = training_arguments(TRAINING, recipe.output_dir, dtype="float32", evaluates=False)
    return PreferenceTrainer(policy, arguments, recipe.method, examples)


def their_trainer(folder: Path, model: Path, rows: list[dict[str, Any]], start: dict[str, torch.Tensor]) -> Any:
    """TRL's DPOTrainer on the same files, with the same initial adapter weights."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    columns = ("prompt", "chosen", "rejected")
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.DPOConfig(
            output_dir=str(folder / "theirs"), beta=BETA, max_length=512, gradient_checkpointing=False, **TRAINING
        ),
        train_dataset=datasets.Dataset.from_list([{name: row[name] for name in columns} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.remove_callback(PrinterCallback)
    assert get_peft_model_state_dict(trainer.model).keys() == start.keys()
    set_peft_model_state_dict(trainer.model, start)
    return trainer


def our_sums(trainer: PreferenceTrainer) -> np.ndarray:
    return torch.stack(trainer.policy_sums(trainer.train_dataset)).numpy()


def their_sums(trainer: Any) -> np.ndarray:
    """TRL's own computation of a reference's sums, with the current policy as the reference."""
    trainer.model.eval()
    trainer.ref_model = trainer.model
    try:
        batches = torch.utils.data.DataLoader(trainer.train_dataset, BATCH, collate_fn=trainer.data_collator)
        sides = zip(*(trainer.compute_ref_log_probs(trainer.model, batch) for batch in batches), strict=True)
        return torch.stack([torch.cat(side) for side in sides]).double().numpy()
    finally:
        trainer.ref_model = None


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    folder = tmp_path_factory.mktemp("against-trl")
    rows = preference_pairs()
    pairs = write_pairs(folder / "pairs.jsonl", rows)
    tokenizer = tiny_tokenizers.llama3(TEMPLATE)
    model = tiny_models.build("llama", folder / "model", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(model)

    ours = our_trainer(folder, model, pairs)
    start = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(ours.model).items()}
    theirs = their_trainer(folder, model, rows, start)
    sums = {"before": (our_sums(ours), their_sums(theirs))}
    theirs.train()
    ours.train()
    sums["after"] = (our_sums(ours), their_sums(theirs))
    return SideBySide(ours, theirs, sums)


def test_both_read_the_same_token_ids(both: SideBySide) -> None:
    examples = both.ours.train_dataset
    assert len(both.theirs.train_dataset) == len(examples) == STEPS * BATCH
    for i, row in enumerate(both.theirs.train_dataset):
        assert row["prompt_ids"] == examples.prompt_ids[i].tolist()
        assert row["chosen_ids"] == examples.chosen_ids[i].tolist()
        assert row["rejected_ids"] == examples.rejected_ids[i].tolist()


@pytest.mark.parametrize("when", ["before", "after"])
def test_both_give_every_pair_the_same_logps(both: SideBySide, when: str) -> None:
    ours, theirs = both.sums[when]
    assert ours.shape == (2, STEPS * BATCH)
    assert ours.std() > 10  # nats: they differ between pairs
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def test_the_cached_anchor_is_the_reference_that_trl_scores(both: SideBySide) -> None:
    examples = both.ours.train_dataset
    _, theirs = both.sums["before"]  # a new adapter changes nothing: the policy is its reference
    cached = np.stack([examples.reference_chosen[:, 0], examples.reference_rejected[:, 0]])
    np.testing.assert_allclose(cached, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "name", ["loss", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected", "rewards/margins"]
)
def test_both_log_the_same_over_twenty_steps(both: SideBySide, name: str) -> None:
    ours, theirs = both.logged(name)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


def test_gradients_and_learning_rates_are_the_same(both: SideBySide) -> None:
    for name in ("grad_norm", "learning_rate", "num_tokens"):
        ours, theirs = both.logged(name)
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, err_msg=name)


def test_the_loss_went_far_from_where_any_rendering_starts(both: SideBySide) -> None:
    losses, _ = both.logged("loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-5:].mean() < math.log(2) - 0.2
