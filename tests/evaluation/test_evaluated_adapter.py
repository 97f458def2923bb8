"""`mrpo evaluate --adapter X` uses the method with which X was trained, and writes to the given folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import run_of
from tiny_references import reference

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import load_recipe, parse_recipe

FEW = {"samples": 1, "max_new_tokens": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("evaluated")
    models = {name: reference(folder / name, "llama", "qwen", seed=seed) for seed, name in enumerate(("base", "other"))}
    run = run_of(
        folder, models, method={"name": "dpo", "loss": "hinge", "beta": 0.3}, evaluation=FEW,
        pairs={"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.3},
    )  # fmt: skip
    train_recipe(run)
    return run


def test_results_go_to_the_output_folder_by_the_adapter_s_own_method(trained: Any, tmp_path: Path) -> None:
    adapter, output = Path(trained.output_dir), tmp_path / "results"
    command = [
        sys.executable,
        "-m",
        "mrpo_cli.main",
        "evaluate",
        "--adapter",
        str(adapter),
        "--output-dir",
        str(output),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output.iterdir()} == {"evaluation.json", "samples.md", "recipe.yaml"}
    assert not (adapter / "evaluation.json").exists()
    found = json.loads((output / "evaluation.json").read_text())
    # An untrained margin of 0 has a hinge loss of 1; sigmoid's is ln 2.
    assert found["before"]["loss"] == pytest.approx(1, abs=1e-4)
    written = json.loads((adapter / "eval_results.json").read_text())
    assert found["after"]["loss"] == pytest.approx(written["eval_loss"], rel=1e-4)
    assert load_recipe(output / "recipe.yaml").method == trained.method


def test_another_recipe_s_method_gives_way_and_an_option_s_does_not(
    trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = trained.model_dump(mode="json")
    document["method"] = {"name": "dpo"}
    other, adapter = parse_recipe(document), Path(trained.output_dir)
    with caplog.at_level("INFO"):
        assert evaluate_recipe(other, adapter, output_dir=tmp_path).before["loss"] == pytest.approx(1, abs=1e-4)
        assert "not the one of the recipe given here" in caplog.text
        asked = {"method.loss": "sigmoid"}
        assert evaluate_recipe(other, adapter, output_dir=tmp_path, given=asked).before["loss"] < 0.9
        assert "which the adapter was trained with" in caplog.text


def test_an_adapter_of_another_base_is_refused(trained: Any, tmp_path: Path) -> None:
    document = trained.model_dump(mode="json")
    document["policy"]["model"] = document["references"]["other"]["model"]
    with pytest.raises(UserError, match=r"trained on .*base .* policy\.model is .*other, which has other weights"):
        evaluate_recipe(parse_recipe(document), Path(trained.output_dir), output_dir=tmp_path)


def test_another_adapter_s_folder_takes_no_results(trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.output_dir, tmp_path / "second")
    with pytest.raises(UserError, match="holds another adapter"):
        evaluate_recipe(trained, Path(trained.output_dir), output_dir=tmp_path / "second")
