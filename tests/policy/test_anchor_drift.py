"""The policy's drift from the anchor: by hand, and of a trained policy from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policy import make_examples
from tiny_recipes import run_of
from tiny_references import pair, reference, write_pairs

from mrpo_pipeline.dataset.reference_logps import open_caches
from mrpo_pipeline.dataset.splits import examples_of, load_splits
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.policy.anchor_drift import DRIFT, anchor_drift
from mrpo_pipeline.policy.metrics import evaluation_metrics
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Method

TEXTS = ["It is.", "Ja, das heißt größer.", "日本語のテキスト。", "No 👨‍👩‍👧, never."]


def examples() -> Any:
    """Two pairs of 2 and 4, and of 5 and 1 tokens."""
    one = make_examples(2, seed=1)
    one.chosen_counts, one.rejected_counts = np.array([2, 5]), np.array([4, 1])
    one.chosen_bytes, one.rejected_bytes = np.array([8.0, 10.0]), np.array([16.0, 3.0])
    return one


def test_it_is_the_mean_over_pairs_of_what_the_policy_gives_beyond_the_anchor_by_token_and_by_byte() -> None:
    one = examples()
    chosen, rejected = one.anchor_chosen + np.array([1.0, -2.0]), one.anchor_rejected + np.array([-6.0, 0.5])
    assert anchor_drift(chosen, rejected, one) == pytest.approx(
        {
            "drift/chosen_per_token": (1 / 2 - 2 / 5) / 2,
            "drift/rejected_per_token": (-6 / 4 + 0.5 / 1) / 2,
            "drift/chosen_per_byte": (1 / 8 - 2 / 10) / 2,
            "drift/rejected_per_byte": (-6 / 16 + 0.5 / 3) / 2,
        }
    )
    found = evaluation_metrics(torch.tensor(chosen), torch.tensor(rejected), one, Method())
    assert {name: found[name] for name in DRIFT} == anchor_drift(chosen, rejected, one)
    assert anchor_drift(one.anchor_chosen, one.anchor_rejected, one) == dict.fromkeys(DRIFT, 0.0)


def test_without_an_anchor_there_is_none() -> None:
    one = examples()
    chosen, rejected = one.anchor
    one.anchor_chosen = one.anchor_rejected = None
    assert anchor_drift(chosen, rejected, one) == {}
    found = evaluation_metrics(torch.tensor(chosen), torch.tensor(rejected), one, Method())
    assert "accuracy/policy" in found and not [name for name in found if "anchor" in name or name.startswith("drift/")]


def test_a_trained_policys_drift_matches_its_texts_and_sums_with_and_without_cuts(tmp_path: Path) -> None:
    rows = [
        pair(f"Question {i}?", f"{i} {TEXTS[i % 4]} " * (1 + i % 3), f"{TEXTS[(i + 1) % 4]} {i}") for i in range(12)
    ]
    rows += [pair(f"Long {i}?", f"many {i} words go on " * 40, "brief") for i in range(6)]
    write_pairs(tmp_path / "pairs.jsonl", rows)
    models = {
        "base": reference(tmp_path / "base", "llama", "qwen"),
        "other": reference(tmp_path / "other", "phi", "llama2"),
    }
    run = run_of(
        tmp_path, models, pairs={"train": str(tmp_path / "pairs.jsonl"), "eval_fraction": 0.5}, limits={"max_length": 96},
        evaluation={"samples": 0},
    )  # fmt: skip
    train_recipe(run)
    found = evaluate_recipe(run)
    assert all(abs(found.before[name]) < 1e-5 for name in DRIFT)
    assert abs(found.after["drift/chosen_per_token"]) > 1e-2
    split = load_splits(run, open_caches(run), "eval")["eval"]
    one, _ = examples_of(split, run.method)
    # Sizes of the completions up to their cut.
    frame, cut = split.pairs.frame, 0
    for side in ("chosen", "rejected"):
        texts, cuts = frame[side].to_list(), frame[f"{side}_cut"].to_list()
        own = [at if at is not None else len(text.encode()) for text, at in zip(texts, cuts, strict=True)]
        assert getattr(one, f"{side}_bytes").tolist() == own
        assert (getattr(one, f"{side}_counts") <= np.array(own) + 1).all()
        cut += sum(at is not None for at in cuts)
    assert cut, "a completion that is cut counts up to the cut"
    written = json.loads((Path(run.output_dir) / "eval_results.json").read_text())
    assert {f"eval_{name}" for name in DRIFT} <= written.keys()
    assert written["eval_drift/rejected_per_byte"] == pytest.approx(found.after["drift/rejected_per_byte"], abs=1e-5)
    assert "drift/chosen_per_token" in found.table() and "nats a byte" in found.table()
