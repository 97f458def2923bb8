"""An empty run is not a success: exit 1 with the counted reason, and the matching advice."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from mrpo_command import mrpo
from tiny_recipes import QUICK, recipe
from tiny_references import pair, plain_pairs, reference, write_pairs

from mrpo_pipeline.audit import audit_recipe
from mrpo_pipeline.compare import compare_recipe
from mrpo_pipeline.dataset.drop_reasons import advice
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.exports.targets_file import write_targets
from mrpo_pipeline.plan import plan_run
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.scoring import score_references


def run_of(folder: Path, references: dict[str, Path], rows: list[dict[str, Any]], **more: Any) -> Any:
    document = recipe(folder, references, write_pairs(folder / "pairs.jsonl", rows)).model_dump(mode="json")
    document["pairs"]["on_bad_row"] = "skip"
    return parse_recipe(document | {"training": QUICK, "output_dir": str(folder / "out"), **more})


def long_pairs(count: int, words: int = 60) -> list[dict[str, Any]]:
    return [pair(f"Number {i}?", "yes " * words + str(i), "no " * words + str(i)) for i in range(count)]


def commands(run: Any, folder: Path) -> dict[str, Any]:
    return {
        "plan": lambda: plan_run(run, gpu="none"),
        "score-refs": lambda: score_references(run),
        "train": lambda: train_recipe(run),
        "audit": lambda: audit_recipe(run),
        "targets": lambda: write_targets(run, folder / "targets.parquet"),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "base": reference(folder / "base", "llama", "qwen"),
        "short": reference(folder / "short", "llama", "qwen", seed=1, max_position_embeddings=64),
    }


def test_a_template_that_drops_answers_is_the_reason_and_the_advice(models: dict[str, Path], tmp_path: Path) -> None:
    template = tmp_path / "drops.jinja"
    # Like DeepSeek-R1's: it removes the reasoning from every answer.
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    )
    rows = [pair(f"Number {i}?", f"<think>Hm.</think>Yes, {i}.", f"<think>Hm.</think>No, {i}.") for i in range(3)]
    policy = {"model": str(models["base"]), "template": str(template)}
    run = run_of(tmp_path, {"base": models["base"]}, rows, policy=policy)
    for command, call in commands(run, tmp_path).items():
        if command in ("train", "audit", "targets"):
            continue  # these need a cache, which does not exist: see below
        with pytest.raises(
            RunError, match=r"0 are left: 3 dropped \(the policy's template.*another template \(policy\.template\)"
        ):
            call()
    scored = run_of(tmp_path, {"base": models["base"]}, rows)
    score_references(scored)
    for command, call in commands(run, tmp_path).items():
        with pytest.raises(RunError, match="another template") as error:
            call()
        assert "max_length" not in str(error.value), command


def test_the_error_for_a_context_too_short_for_all_names_the_length_that_keeps_them(
    models: dict[str, Path], tmp_path: Path
) -> None:
    run = run_of(tmp_path, models, long_pairs(3), limits={"max_length": 1024})
    plan = plan_run(run, gpu="none")
    assert plan.pairs_left == 0
    (told,) = plan.short_contexts
    assert re.match(r"short reads 64 tokens, limits\.max_length is 1024: 3 of 3 pairs are left out; --max-length", told)
    for command, call in commands(run, tmp_path).items():
        if command != "plan":
            with pytest.raises(
                RunError, match=r"3 dropped \(do not fit the context of short\).*--max-length \d+ keeps them"
            ) as error:
                call()
            assert "Raise" not in str(error.value)


@pytest.mark.parametrize(
    "limits", [{"max_length": 1024}, {"max_length": None}, {"max_length": 512, "max_prompt_length": 100}]
)
def test_the_length_that_is_named_keeps_every_pair(
    models: dict[str, Path], tmp_path: Path, limits: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*long_pairs(4), *plain_pairs(3)]
    run = run_of(tmp_path, models, rows, limits=limits)
    plan = plan_run(run, gpu="none")
    assert plan.pairs_left == 3
    (told,) = plan.short_contexts
    assert "4 of 7 pairs are left out" in told
    with caplog.at_level(logging.WARNING):
        score_references(run)
        assert caplog.text.count(told) == 2  # before anything is scored, and after everything is
        caplog.clear()
        train_recipe(run)
    assert f"{told}." in caplog.text
    options = dict(re.findall(r"--(max-length|max-prompt-length) (\d+)", told))
    lower = {name.replace("-", "_"): int(value) for name, value in options.items()}
    if "max_prompt_length" not in lower and limits.get("max_prompt_length"):
        lower["max_prompt_length"] = limits["max_prompt_length"]
    again = run_of(tmp_path, models, rows, limits=lower)
    kept = plan_run(again, gpu="none")
    assert (kept.pairs_left, kept.short_contexts) == (7, [])


def test_the_policy_s_own_context_is_known_too(models: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path, {"base": models["base"]}, long_pairs(2), policy={"model": str(models["short"])})
    score_references(run)
    with pytest.raises(UserError, match=r"The policy reads 64 tokens.*2 of 2 pairs are longer; --max-length"):
        train_recipe(run)


def test_files_without_a_usable_row(models: dict[str, Path], tmp_path: Path) -> None:
    bad = [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2
    run = run_of(tmp_path, {"base": models["base"]}, bad)
    with pytest.raises(RunError, match="No pair is left from 2 rows: chosen equals rejected 2"):
        score_references(run)
    done = mrpo(
        *("plan", "--train-file", tmp_path / "pairs.jsonl", "--on-bad-row", "skip"),
        *("--model", models["base"], "--reference", f"base={models['base']}"),
        cwd=tmp_path,
    )
    assert (done.returncode, "No pair is left" in done.stderr) == (1, True), done.stderr


def test_an_evaluation_of_a_handful_is_reported(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tmp_path, {"base": models["base"]}, plain_pairs(12))
    run = run.model_copy(update={"pairs": run.pairs.model_copy(update={"eval_fraction": 0.3})})
    score_references(run)
    train_recipe(run)
    assert re.search(r"Only (\d) held-out pairs are left of \1: one pair is \d\d% of an accuracy", caplog.text)


def test_a_comparison_without_held_out_pairs_left_ends(models: dict[str, Path], tmp_path: Path) -> None:
    held_out = write_pairs(tmp_path / "eval.jsonl", long_pairs(2))
    run = run_of(tmp_path, models, plain_pairs(4))
    run = run.model_copy(update={"pairs": run.pairs.model_copy(update={"eval": str(held_out)})})
    score_references(run)
    with pytest.raises(RunError, match=r"Of 2 eval pairs read, 0 are left.*--max-length \d+ keeps them"):
        compare_recipe(run)


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("prompt does not fit max_prompt_length", "Raise limits.max_prompt_length"),
        ("prompt leaves no room within max_length", "Raise limits.max_length"),
        ("a side is empty after the cut", "Raise limits.max_length"),
        ("the sides are equal after the cut", "Raise limits.max_length"),
        ("do not fit the context of atlas", "Lower limits.max_length"),
        ("are not written by the template of atlas", "references.atlas.template"),
        ("the policy's template does not write it", "policy.template"),
        ("tie", "known to be better"),
    ],
)
def test_each_reason_has_its_own_advice(reason: str, says: str) -> None:
    assert says in advice({reason: 5, "another reason": 1}, {})
