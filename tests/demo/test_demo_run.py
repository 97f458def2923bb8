"""`make reproduce`: one paragraph names everything that the machine lacks, before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrpo_pipeline.demo.run import main, requirements_missing
from mrpo_pipeline.evaluation.staleness import adapter_content, has_measured, how_asked
from mrpo_pipeline.recipe import Evaluation, load_recipe, shipped_recipes


def test_the_paper_s_recipes_are_one_comparison_in_two_settings() -> None:
    full, scarce = (load_recipe(shipped_recipes()[name]) for name in ("paper", "paper-scarce"))
    assert (full.pairs.eval_fraction, scarce.pairs.eval_fraction) == (0.1, 0.99)
    assert full.cache == scarce.cache and full.output_dir != scarce.output_dir
    assert {"dpo", "multi-dpo", "mrpo"} <= set(full.compare.methods) and full.evaluation.tasks == [
        "gsm8k",
        "truthfulqa_mc2",
    ]
    changed = {"pairs": full.pairs, "output_dir": full.output_dir}
    assert scarce.model_copy(update=changed) == full


def test_a_missing_gpu_and_hub_are_one_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert main(["paper"]) == 2
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0 and "Traceback" not in message
    for named in (
        "training.fp16 needs a CUDA GPU",
        "meta-llama/Llama-2-7b-chat-hf",
        "teknium/OpenHermes-2.5-Mistral-7B",
        "RECIPE=demo",
    ):
        assert named in message
    assert list(tmp_path.iterdir()) == []


def test_a_missing_recipe_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-recipe"]) == 2
    assert "no-such-recipe is not there" in capsys.readouterr().err


def test_a_recipe_of_local_models_without_16_bits_lacks_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = str(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"policy": {"model": model}, "references": {"base": {"model": model}}}))
    assert requirements_missing(load_recipe(recipe)) == []
    assert requirements_missing(load_recipe(recipe, {"references.base.model": "no/such-model-here"})) != []


def test_tasks_are_measured_once(tmp_path: Path) -> None:
    asked = Evaluation(tasks=["gsm8k"])
    assert not has_measured(tmp_path, asked)
    weights, evaluation = tmp_path / "adapter_model.safetensors", tmp_path / "evaluation.json"
    weights.write_bytes(b"as trained first")
    found = {"tasks": [{"task": "gsm8k"}], "asked": how_asked(asked), "adapter": adapter_content(tmp_path)}
    evaluation.write_text(json.dumps(found))
    assert has_measured(tmp_path, asked) and has_measured(tmp_path, asked.model_copy(update={"samples": 9}))
    for other in ({"tasks": ["gsm8k", "truthfulqa_mc2"]}, {"num_fewshot": 3}, {"tasks_limit": 10}):
        assert not has_measured(tmp_path, asked.model_copy(update=other))
    weights.write_bytes(b"as trained again")
    assert not has_measured(tmp_path, asked)
    evaluation.write_text("{")
    assert not has_measured(tmp_path, asked)
