"""`mrpo evaluate --tasks`: the harness's own numbers for base and adapter, paired by document."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from local_tasks import write_tasks
from tiny_references import reference

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.evaluation.task_changes import task_changes
from mrpo_pipeline.evaluation.tasks import TaskScores, check_tasks
from mrpo_pipeline.recipe import parse_recipe

pytest.importorskip("lm_eval")

DOCUMENTS = 24
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter that changes it strongly, both tasks, and the results of `mrpo evaluate`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tasks")
    base = reference(folder / "base", "llama", "qwen")
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    write_tasks(folder / "tasks", DOCUMENTS)
    from mrpo_cli.commands import app
    from typer.testing import CliRunner

    done = CliRunner().invoke(
        app,
        [
            "evaluate", "--model", str(base), "--adapter", str(folder / "adapter"), "--tasks", "tiny_choice,tiny_generated",
            "--include-path", str(folder / "tasks"), "--tasks-batch-size", "4", "--reference", f"base={base}",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "tiny_choice" in done.stdout and "95 %" in done.stdout
    return folder


def changes(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    document = json.loads((folder / "adapter" / "evaluation.json").read_text())
    return {(change["task"], change["metric"]): change for change in document["tasks"]}


@pytest.mark.slow
def test_the_numbers_of_the_adapter_are_exactly_those_of_the_harness_command(evaluated: Path) -> None:
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained=base,dtype=float32,peft=adapter",
        "--tasks", "tiny_choice,tiny_generated", "--include_path", "tasks", "--batch_size", "4", "--device", "cpu",
        "--output_path", "harness", "--log_samples",
    ]  # fmt: skip
    environment = {**os.environ, **OFFLINE}
    done = subprocess.run(
        command, cwd=evaluated, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (evaluated / "harness").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]
    ours = changes(evaluated)
    assert {task for task, _ in ours} == {"tiny_choice", "tiny_generated"}
    for (task, metric), change in ours.items():
        assert change["after"] == theirs[task][f"{metric},none"]
    for task in ("tiny_choice", "tiny_generated"):
        (samples,) = (evaluated / "harness").rglob(f"samples_{task}_*.jsonl")
        expected = {row["doc_id"]: row["filtered_resps"] for row in map(json.loads, samples.read_text().splitlines())}
        answers = pl.read_parquet(evaluated / "adapter" / "tasks" / f"{task}.parquet").filter(model="after")
        found = dict(answers.select("doc_id", "answer").iter_rows())
        if task == "tiny_choice":  # log-likelihoods of the three choices
            found = {at: [list(choice) for choice in ast.literal_eval(text)] for at, text in found.items()}
            numbers = [float(choice[0]) for choices in found.values() for choice in choices]
            assert numbers == [float(choice[0]) for at in found for choice in expected[at]]
        else:
            assert found == {at: text for at, (text,) in expected.items()} and any(found.values())
        assert found.keys() == expected.keys() == set(range(DOCUMENTS))


def test_the_numbers_of_the_base_are_exactly_those_of_the_harness(evaluated: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    theirs = simple_evaluate(
        model="hf",
        model_args=f"pretrained={evaluated / 'base'},dtype=float32",
        tasks=["tiny_choice", "tiny_generated"],
        batch_size=4,
        device="cpu",
        task_manager=TaskManager(include_path=str(evaluated / "tasks"), include_defaults=False),
    )
    for (task, metric), change in changes(evaluated).items():
        assert change["before"] == theirs["results"][task][f"{metric},none"]


def test_both_moments_are_asked_through_the_tokenizer_of_the_adapter_that_the_policy_starts_from(
    evaluated: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    start = shutil.copytree(evaluated / "adapter", tmp_path / "start")
    tokenizer = AutoTokenizer.from_pretrained(evaluated / "base")
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(start)
    tasks = {
        "tasks": ["tiny_choice"],
        "include_path": str(evaluated / "tasks"),
        "tasks_limit": 2,
        "chat_template": True,
    }
    run = parse_recipe({"policy": {"model": str(evaluated / "base"), "adapter": str(start)}, "evaluation": tasks})
    evaluate_recipe(run, evaluated / "adapter", tasks_only=True, output_dir=tmp_path / "out")
    asked = pl.read_parquet(tmp_path / "out" / "tasks" / "tiny_choice.parquet")
    assert set(asked["model"]) == {"before", "after"}
    assert asked["prompt"].str.starts_with("[user] ").all()


def test_the_two_differ_and_the_difference_is_paired_over_documents(evaluated: Path) -> None:
    change = changes(evaluated)["tiny_choice", "acc"]
    assert change["documents"] == DOCUMENTS
    assert change["difference"] == change["after"] - change["before"]
    frame = pl.read_parquet(evaluated / "adapter" / "tasks" / "tiny_choice.parquet")
    sides = [frame.filter(model=name).sort("doc_id")["acc"].to_numpy() for name in ("before", "after")]
    paired = sides[1] - sides[0]
    assert np.abs(paired).sum() > 2  # the adapter does change answers
    assert paired.mean() == pytest.approx(change["difference"], abs=1e-12)
    # Student's t on the differences, by hand, except for the half pair that the interval adds on each side.
    error = np.sqrt(paired.var(ddof=1) / DOCUMENTS + 1 / DOCUMENTS**2)
    assert change["high"] - change["low"] == pytest.approx(2 * 2.0687 * error, rel=1e-3)
    assert change["low"] < change["difference"] < change["high"]


def test_a_figure_that_is_no_mean_over_documents_has_no_interval(evaluated: Path) -> None:
    bleu = changes(evaluated)["tiny_generated", "bleu"]
    assert bleu["low"] is None and bleu["p"] is None and isinstance(bleu["before"], float)


def settings(folder: Path, *tasks: str) -> Any:
    return parse_recipe({"evaluation": {"tasks": list(tasks), "include_path": str(folder)}}).evaluation


def test_an_unknown_task_is_told_with_the_nearest_names(tmp_path: Path) -> None:
    write_tasks(tmp_path, 2)
    check_tasks(settings(tmp_path, "gsm8k", "tiny_choice", str(tmp_path / "tiny_generated.yaml")))
    with pytest.raises(UserError, match="gsm8k"):
        check_tasks(settings(tmp_path, "gms8k"))
    with pytest.raises(UserError, match="mmlu_pro_math"):
        check_tasks(settings(tmp_path, "mmlu_pro_maths"))
    with pytest.raises(UserError, match="tiny_choice"):
        check_tasks(settings(tmp_path, "tiny_choise"))
    with pytest.raises(UserError, match="no folder"):
        check_tasks(settings(tmp_path / "nowhere", "gsm8k"))


def test_tasks_may_be_written_as_one_string() -> None:
    recipe = parse_recipe({"evaluation": {"tasks": "gsm8k, truthfulqa_mc2"}})
    assert recipe.evaluation.tasks == ["gsm8k", "truthfulqa_mc2"]


def test_other_documents_are_not_paired() -> None:
    def scores(text: str) -> TaskScores:
        figure = ("t", "acc", "none")
        about = {"t": {"version": 1, "num_fewshot": 0, "documents": 1}}
        return TaskScores({figure: 1.0}, documents={figure: {(0, text): 1.0}}, about=about)

    assert task_changes(scores("a"), scores("a"))[0].difference == 0
    with pytest.raises(RunError, match="other documents"):
        task_changes(scores("a"), scores("b"))
