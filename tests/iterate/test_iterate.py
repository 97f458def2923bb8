"""`mrpo iterate`: each round's anchor is the previous round's policy, and finished rounds are not repeated."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mrpo_cli.commands import app
from safetensors.torch import load_file
from tiny_references import plain_pairs, reference, write_pairs
from typer.testing import CliRunner

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.iterate import iterate_recipe
from mrpo_pipeline.iterate.run import round_recipe
from mrpo_pipeline.recipe import load_recipe, parse_recipe

TRAINING = {
    "max_steps": 4,
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 2,
    "save_strategy": "no",
    "logging_steps": 1,
}


def document(folder: Path, **more: Any) -> dict[str, Any]:
    """Two references with different tokenizers, dropout in the adapters, held-out pairs; paths are relative to the working folder."""
    if not (folder / "pairs.jsonl").exists():
        write_pairs(folder / "pairs.jsonl", plain_pairs(24))
        reference(folder / "base", "llama", "qwen")
        reference(folder / "other", "phi", "llama2", seed=1)
    return {
        "pairs": {"train": "pairs.jsonl", "eval_fraction": 0.25},
        "policy": {"model": "base", "lora": {"r": 4, "dropout": 0.2, "target_modules": "all-linear"}},
        "references": {"base": {"model": "base"}, "other": {"model": "other"}},
        "cache": "cache",
        "scoring": {"engine": "transformers"},
        "training": TRAINING,
        "output_dir": "rounds",
        **more,
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three rounds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with contextlib.chdir(folder):
        Path("recipe.yaml").write_text(yaml.safe_dump(document(folder)))
        iterate_recipe(load_recipe("recipe.yaml"), 3)
    return folder


def times(folder: Path) -> dict[str, int]:
    """Modification times of all files of the rounds and of the cache."""
    files = [*folder.glob("rounds/**/*"), *folder.glob("cache/*/shards/*")]
    return {str(path): path.stat().st_mtime_ns for path in files if path.is_file() and path.name != ".mrpo-lock"}


def test_the_anchor_of_a_round_is_the_policy_of_the_one_before(undisturbed: Path) -> None:
    from mrpo_pipeline.cache import ReferenceCache

    recipes = [load_recipe(undisturbed / f"rounds/round-{number}/recipe.yaml") for number in (1, 2, 3)]
    assert [list(one.references)[1:] for one in recipes] == [["other"]] * 3
    assert recipes[0].policy.adapter is None and next(iter(recipes[0].references)) == "base"
    for number, one in enumerate(recipes[1:], 1):
        name, anchor = next(iter(one.references.items()))
        assert anchor.adapter == one.policy.adapter == f"rounds/round-{number}"
        assert name.startswith(f"round-{number}-")
        assert ReferenceCache.open(undisturbed / "cache", name).fingerprint()["adapted"] == "yes"
        # The log-probs before the first step were compared with the new anchor's.
        assert "their log-probs agreed" in (undisturbed / f"rounds/round-{number + 1}/README.md").read_text()
    # Each round continues to train the same adapter, so that it works on the base alone.
    tensors = [load_file(undisturbed / f"rounds/round-{number}/adapter_model.safetensors") for number in (1, 2, 3)]
    assert all(tensors[0].keys() == one.keys() for one in tensors)
    assert len({bytes(next(iter(one.values())).numpy().data) for one in tensors}) == 3


def test_the_drift_of_all_rounds_is_that_of_the_last_policy_from_the_first_anchor(undisturbed: Path) -> None:
    from mrpo_pipeline.evaluation import evaluate_recipe

    with contextlib.chdir(undisturbed):
        recipe = load_recipe("recipe.yaml", {"evaluation.samples": 0})
        done = iterate_recipe(recipe, 3)
        measured = evaluate_recipe(recipe, Path("rounds/round-3"), output_dir=Path("measured"))
    assert len(done[-1].drift) == 4
    for name, value in done[-1].drift.items():
        assert abs(value) > 1e-4
        assert value == pytest.approx(measured.after[name], abs=1e-5)
        assert done[0].drift[name] == done[0].metrics[f"eval_{name}"] != value
    assert done[-1].metrics["eval_accuracy/policy"] == measured.after["accuracy/policy"]


def test_a_second_call_does_nothing_and_more_rounds_go_on(undisturbed: Path) -> None:
    before = times(undisturbed)
    with contextlib.chdir(undisturbed):
        told = CliRunner().invoke(app, ["iterate", "recipe.yaml", "--rounds", "3"])
    assert told.exit_code == 0, told.output
    assert times(undisturbed) == before
    assert told.stderr.count("nothing is trained again") == 3
    rows = [line.split()[0] for line in told.stdout.splitlines() if re.match(r"round|-|\d", line)]
    assert rows == ["round", "-----", "1", "2", "3"]
    assert "drift/chosen_per_token (first anchor)" in told.stdout
    assert "rounds/round-1 … round-3" in told.stderr and "mrpo merge rounds/round-3" in told.stderr
    with contextlib.chdir(undisturbed):
        done = iterate_recipe(load_recipe("recipe.yaml"), 4)
    assert len(done) == 4 and before.items() <= times(undisturbed).items()
    assert (undisturbed / "rounds/round-4/complete.json").is_file()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method.beta": 0.2}, r"method\.beta \(was 0\.1, now 0\.2\)"),
        ({"method.trust_region.kind": "off"}, r"method\.trust_region\.kind was adaptive, and is off now"),
        ({"training.learning_rate": 0.02}, r"training\.learning_rate \(was 0\.002, now 0\.02\)"),
        ({"pairs.eval_fraction": 0.3}, r"pairs\.eval_fraction was 0\.25, and is 0\.3 now"),
    ],
)
def test_a_recipe_changed_in_between_is_refused_with_the_field(
    undisturbed: Path, changes: dict[str, Any], named: str
) -> None:
    before = times(undisturbed)
    with contextlib.chdir(undisturbed), pytest.raises(UserError, match=named) as refused:
        iterate_recipe(load_recipe("recipe.yaml", changes), 3)
    assert "Round 1 in rounds/round-1" in str(refused.value) and "another --output-dir" in str(refused.value)
    assert times(undisturbed) == before


def test_pairs_changed_in_between_are_refused(undisturbed: Path) -> None:
    pairs = undisturbed / "pairs.jsonl"
    whole = pairs.read_bytes()
    write_pairs(pairs, plain_pairs(20))
    try:
        with contextlib.chdir(undisturbed), pytest.raises(UserError, match="their cached numbers have changed"):
            iterate_recipe(load_recipe("recipe.yaml"), 3)
    finally:
        pairs.write_bytes(whole)


def test_the_method_follows_the_anchor_by_its_new_name(undisturbed: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(undisturbed)
    plain = document(undisturbed)
    methods = {"aggregate": "single:base"}, {"weights": {"column": "base", "code": "base", "other": "other"}}
    single, column = (round_recipe(parse_recipe({**plain, "method": method}), 2) for method in methods)
    name = next(iter(single.references))
    assert single.method.aggregate == f"single:{name}"
    assert column.method.weights == {"column": "base", "code": name, "other": "other"}
    other = round_recipe(parse_recipe({**plain, "method": {"aggregate": "single:other"}}), 2)
    assert other.method.aggregate == "single:other"
    objective = {"weight": 0.2, "tuned": "other", "base": "base"}
    modpo = parse_recipe({**plain, "method": {"loss": "modpo", "modpo": {"harm": objective}}})
    with pytest.raises(UserError, match="names the anchor base"):
        round_recipe(modpo, 2)


def test_without_references_there_is_nothing_to_refresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    free = parse_recipe(document(tmp_path, method={"reference": "none", "loss": "simpo"}))
    with pytest.raises(UserError, match=r"method\.reference is none"):
        iterate_recipe(free, 2)
