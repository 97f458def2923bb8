"""Training and evaluation with `method.reference: none`: no cache, no references in the recipe, SimPO like TRL's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mrpo_command import mrpo
from tiny_policy import plain_sums
from tiny_recipes import QUICK
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.audit.run import audit_recipe
from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.compare import compare_recipe
from mrpo_pipeline.dataset.reference_logps import caches_of_method
from mrpo_pipeline.dataset.splits import check_method, examples_of, load_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.exports.targets_file import write_targets
from mrpo_pipeline.losses.functional import LOSSES
from mrpo_pipeline.policy.metrics import ANCHOR_METRICS, pair_losses
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.recipe.without_effect import ignored_settings
from mrpo_pipeline.scoring import score_references

SIMPO: dict[str, Any] = {"reference": "none", "loss": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "normalize": "token"}
# Losses that use only the difference of both sides, by hand, from the policy's sums ℓ and token counts n.
MARGIN, PER_TOKEN_LOSSES = (lambda w, r, n, m: w - r), (lambda w, r, n, m: w / n - r / m)
BY_HAND: dict[str, tuple[dict[str, Any], Any]] = {
    "sigmoid": ({}, lambda w, r, n, m: np.log1p(np.exp(-0.3 * MARGIN(w, r, n, m)))),
    "hinge": ({}, lambda w, r, n, m: np.maximum(0, 1 - 0.3 * MARGIN(w, r, n, m))),
    "ipo": ({}, lambda w, r, n, m: (PER_TOKEN_LOSSES(w, r, n, m) - 1 / 0.6) ** 2),
    "sigmoid-norm": ({}, lambda w, r, n, m: np.log1p(np.exp(-0.3 * PER_TOKEN_LOSSES(w, r, n, m)))),
    "sft": ({}, lambda w, r, n, m: -w / n),
    "simpo": ({"simpo_gamma": 0.6}, lambda w, r, n, m: np.log1p(np.exp(0.6 - 0.3 * PER_TOKEN_LOSSES(w, r, n, m)))),
}


def free(folder: Path, method: dict[str, Any] = SIMPO, **changes: Any) -> Recipe:
    """A recipe without references and cache."""
    model = folder / "base"
    if not model.exists():
        reference(model, "llama", "qwen")
        write_pairs(folder / "pairs.jsonl", plain_pairs(12))
    document = {
        "pairs": {"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.3},
        "policy": {"model": str(model), "lora": {"target_modules": "all-linear"}},
        "limits": {"max_length": 400},
        "method": method,
        "training": QUICK,
        "evaluation": {"samples": 1, "max_new_tokens": 2},
        "output_dir": str(folder / "out"),
    }
    return parse_recipe({**document, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("free")


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a cache was opened")

    monkeypatch.setattr(ReferenceCache, "open", refuse)


def test_train_plan_evaluate_and_merge_need_no_reference_in_the_recipe(folder: Path) -> None:
    recipe = free(folder)
    recipe.write(folder / "written")
    file = folder / "written" / "recipe.yaml"
    planned = mrpo("plan", file, cwd=folder)
    assert planned.returncode == 0, planned.stderr
    assert "Nothing is to be scored" in planned.stdout and "score-refs" not in planned.stdout + planned.stderr
    for arguments in (["train", file], ["evaluate", file], ["merge", recipe.output_dir, "--output", "merged"]):
        done = mrpo(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert (folder / "merged" / "model.safetensors").is_file() and not list(folder.rglob("manifest.json"))
    out = Path(recipe.output_dir)
    figures = json.loads((out / "train_results.json").read_text()) | json.loads((out / "eval_results.json").read_text())
    logged = json.loads((out / "trainer_state.json").read_text())["log_history"][0]
    evaluation = json.loads((out / "evaluation.json").read_text())
    for found in (figures, logged, evaluation["before"], evaluation["after"]):
        assert not [name for name in found if "refs/" in name or name.removeprefix("eval_") in ANCHOR_METRICS]
        assert "rewards/margins" in found or "eval_rewards/margins" in found
    card = (out / "README.md").read_text()
    assert "without a reference" in card and "## References" not in card and "anchor" not in card.split("## Recipe")[0]
    assert "Without a reference; simpo loss with simpo gamma 0.6, β 2 on nats per token." in card


@pytest.mark.parametrize("command", ["score-refs", "audit", "targets", "compare"])
def test_commands_about_references_report_that_there_are_none(folder: Path, command: str) -> None:
    free(folder).write(folder / "written")
    found = mrpo(command, folder / "written" / "recipe.yaml", cwd=folder)
    assert found.returncode == 2
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("mrpo: ")]
    assert "method.reference is none: the recipe trains without references" in line and "Traceback" not in found.stderr


def test_the_held_out_loss_is_trls_simpo_of_plain_log_probs(folder: Path, tmp_path: Path, no_cache: None) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    cpo = pytest.importorskip("trl.experimental.cpo", reason="this trl has no CPOTrainer")
    recipe = free(folder, {**SIMPO, "simpo_gamma": 6.0}, output_dir=str(tmp_path))
    train_recipe(recipe)
    after = evaluate_recipe(recipe).after
    examples, _ = examples_of(load_splits(recipe, [], "eval")["eval"], recipe.method)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    chosen, rejected = plain_sums(PeftModel.from_pretrained(base, tmp_path).eval(), examples)
    means = torch.tensor(chosen / examples.chosen_counts), torch.tensor(rejected / examples.rejected_counts)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), beta=2.0, loss_type="simpo", simpo_gamma=6.0, label_smoothing=0.0, alpha=0.0
    )  # fmt: skip
    losses, up, down = cpo.CPOTrainer.cpo_loss(trainer, *means)
    assert after["loss"] == pytest.approx(float(losses.mean()), rel=0, abs=1e-6)
    assert after["rewards/margins"] == pytest.approx(float((up - down).mean()), rel=0, abs=1e-5)
    assert after["loss"] > 0.1, "far from where every loss is 0"


@pytest.mark.parametrize("name", BY_HAND)
def test_a_loss_of_the_difference_only_is_its_formula_with_log_pi_0(folder: Path, name: str, no_cache: None) -> None:
    settings, formula = BY_HAND[name]
    recipe = free(folder, {"reference": "none", "loss": name, "beta": 0.3, **settings})
    check_method(recipe, recipe.method)
    examples, _ = examples_of(load_splits(recipe, caches_of_method(recipe), "train")["train"], recipe.method)
    lengths = examples.chosen_counts, examples.rejected_counts
    random = np.random.default_rng(0)
    chosen, rejected = (-3 * length + random.normal(0, 2, len(length)) for length in lengths)
    counts = torch.from_numpy(np.concatenate(lengths))
    found = pair_losses(
        torch.tensor(chosen), torch.tensor(rejected), counts, examples.columns(), recipe.method
    ).losses.numpy()
    np.testing.assert_allclose(found, formula(chosen, rejected, *lengths), rtol=0, atol=1e-6)


def test_every_other_loss_is_refused_for_what_it_reads_of_the_reference(folder: Path) -> None:
    fit = {*BY_HAND, "robust", "exo", "discopop"}
    for name in LOSSES:
        recipe = free(
            folder, {"reference": "none", "loss": name, "label_smoothing": 0.1 if name in ("exo", "robust") else 0}
        )
        if name in fit:
            check_method(recipe, recipe.method)
        else:
            with pytest.raises(UserError, match=rf"The loss {name} \(method\.loss\) .* method\.reference is none"):
                check_method(recipe, recipe.method)
    diverging = free(folder, {"reference": "none", "f_divergence_type": "forward_kl"})
    with pytest.raises(UserError, match=r"f_divergence_type"):
        check_method(diverging, diverging.method)


def test_references_that_are_named_are_not_read_and_what_is_about_them_is_reported(
    tmp_path: Path, no_cache: None
) -> None:
    recipe = free(
        tmp_path,
        {**SIMPO, "name": "dpo", "aggregate": "single:nobody", "weights": "thompson", "trust_region": {"kind": "fixed"}},
        references={"base": {"model": "absent"}},
        policy={"model": str(tmp_path / "base"), "check_anchor": False},
        cache="elsewhere",
    )  # fmt: skip
    assert set(ignored_settings(recipe)) == {
        "method.name", "method.aggregate", "method.weights", "method.trust_region.kind", "references", "cache", "policy.check_anchor",
    }  # fmt: skip
    assert train_recipe(recipe)["eval_loss"] > 0


def test_checkpoints_are_not_chosen_by_what_compares_with_the_anchor(folder: Path) -> None:
    chooses = {
        "metric_for_best_model": "accuracy/anchor",
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "save_strategy": "steps",
    }
    with pytest.raises(UserError, match=r"metric_for_best_model is accuracy/anchor, which compares with the anchor"):
        train_recipe(free(folder, training={**QUICK, **chooses}))


def test_naming_references_does_not_make_any_to_score_or_to_write_targets_of(folder: Path, tmp_path: Path) -> None:
    recipe = free(folder, references={"base": {"model": str(folder / "base")}})
    for work in (
        score_references,
        audit_recipe,
        compare_recipe,
        lambda run: write_targets(run, tmp_path / "targets.parquet"),
    ):
        with pytest.raises(UserError, match=r"method\.reference is none: the recipe trains without references"):
            work(recipe)
    assert not list(tmp_path.iterdir())
