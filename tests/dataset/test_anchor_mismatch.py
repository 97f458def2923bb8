"""The policy's start is compared with the anchor for any weights; a start that is meant to be elsewhere is reported
everywhere."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_recipes import run_of
from tiny_references import reference

from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart, start_differences, start_notice
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.plan.run import plan_run
from mrpo_pipeline.policy.anchor_check import compare_start
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.scoring import score_references


def changed(run: Recipe, **policy: Any) -> Recipe:
    document = run.model_dump(mode="json")
    document["policy"] |= policy
    return parse_recipe(document)


@pytest.fixture
def run(tmp_path: Path) -> Recipe:
    training = {"max_steps": 2, "save_steps": 1, "learning_rate": 1e-2, "report_to": "none"}
    return run_of(tmp_path, {"base": reference(tmp_path / "base", "llama", "qwen")}, training=training)


def test_a_policy_with_other_weights_is_stopped_with_the_cause_unless_that_is_meant(
    run: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mrpo")
    elsewhere = changed(run, model=str(reference(tmp_path / "tuned", "llama", "qwen", seed=1)))
    match = r"on pair \w+, (chosen|rejected) side, \d+ tokens, .* nats per token .* The cause: policy\.model is .*tuned and .*base"
    with pytest.raises(UserError, match=match):
        train_recipe(elsewhere)
    score_references(elsewhere)
    assert "The policy is not the anchor base" in caplog.text
    assert "policy.check_anchor: false" in plan_run(elsewhere).table()

    meant = changed(elsewhere, check_anchor=False)
    caplog.clear()
    score_references(meant)
    assert caplog.text.count("The policy does not start at the anchor base") == 1
    assert plan_run(meant).notices == (start_notice(meant),)
    train_recipe(meant)
    assert caplog.text.count("The policy does not start at the anchor base") == 2
    card = (Path(meant.output_dir) / "README.md").read_text()
    assert "The policy does not start at the anchor base: policy.model is" in card
    assert "starting point" not in card

    # Evaluating such a start against the anchor is refused too.
    document = elsewhere.model_dump(mode="json")
    document["pairs"]["eval"] = document["pairs"]["train"]
    with pytest.raises(UserError, match=r"does not agree with the cached anchor.*12 pairs"):
        evaluate_recipe(parse_recipe(document))


def test_the_same_weights_elsewhere_are_the_anchor(
    run: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mrpo")
    copied = changed(run, model=str(shutil.copytree(tmp_path / "base", tmp_path / "copy")))
    assert start_notice(copied) is None
    train_recipe(copied)
    assert "agrees with the cached anchor" in caplog.text
    assert "log-probs agreed within" in (Path(copied.output_dir) / "README.md").read_text()

    # A resumed run is compared at its start, not at the checkpoint.
    shutil.rmtree(Path(copied.output_dir) / "checkpoint-2")
    (Path(copied.output_dir) / "complete.json").unlink()
    caplog.clear()
    train_recipe(copied, resume=True)
    assert "checkpoint-1" in caplog.text
    assert "agrees with the cached anchor" in caplog.text


@pytest.mark.parametrize(
    ("policy", "clause"),
    [
        ({"adapter": "a"}, "policy.adapter is a and the anchor's not set"),
        ({"quantization": "nf4"}, "policy.quantization is nf4"),
    ],
)
def test_what_makes_the_start_another_model_is_named(policy: dict[str, Any], clause: str) -> None:
    run = parse_recipe({"policy": {"model": "org/m", **policy}, "references": {"base": {"model": "org/m"}}})
    assert len(start_differences(run)) == 1
    assert clause in str(start_notice(run))
    assert (
        start_differences(parse_recipe({"policy": {"model": "org/m"}, "references": {"base": {"model": "org/m"}}}))
        == []
    )


def test_a_start_whose_sums_are_0_is_compared_too() -> None:
    from tiny_policy import make_examples

    examples = make_examples(3)
    none = np.zeros(3)
    with pytest.raises(UserError, match="3 pairs"):
        compare_start(examples, none, none, AnchorStart(), "float32")
