"""`mrpo demo` and `make reproduce`: a recipe from its references to its report.

`demo` makes its own pairs and models below `runs/demo` in the current folder. `paper` is the paper's full and data-scarce setting
(arXiv 2405.16388) on one cache: DPO against each reference, Multi-DPO and MRPO, then GSM8K and TruthfulQA. Steps that an earlier
call finished are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.recipe import Recipe, load_recipe, method_for, shipped_recipes
from mrpo_pipeline.terminal import guard_output, show_messages

FOLDER = Path("runs/demo")
SETTINGS = {"paper": ("paper", "paper-scarce")}


def run_demo() -> Path:
    """Run the demo's recipe in the current folder and print MRPO's answers before and after training; returns the report's path."""
    from mrpo_pipeline.evaluation import evaluate_recipe

    recipe = _recipe("demo")
    report = run_recipe(recipe)
    _heading("MRPO before and after training, on held-out questions  (mrpo evaluate)")
    chosen = recipe.model_copy(update={"method": method_for(recipe, "mrpo")})
    print(evaluate_recipe(chosen, report.parent / "mrpo" / "seed-0").table())
    return report


def reproduce(name: str) -> list[Path]:
    """Run a shipped recipe, or a recipe's file, to its report; returns the reports' paths.

    Raises:
        UserError: if the machine lacks what the recipe needs (all of it is named), or the recipe is invalid.
        RunError: if a step fails; finished steps are kept.
    """
    recipes = [_recipe(one) for one in SETTINGS.get(name, (name,))]
    missing = sorted({one for recipe in recipes for one in requirements_missing(recipe)})
    if missing:
        raise UserError(
            f"The recipe {name} can't run on this machine: {'; '.join(missing)}. The paper's recipe needs one GPU of 24 GB (`mrpo plan` "
            "estimates others); `make reproduce RECIPE=demo` runs all steps on tiny models."
        )
    return [run_recipe(recipe) for recipe in recipes]


def run_recipe(recipe: Recipe) -> Path:
    """Score, audit, compare, and measure the recipe's tasks; returns the report's path."""
    from mrpo_pipeline.audit import audit_recipe
    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.report import write_report
    from mrpo_pipeline.scoring import score_references

    _heading(f"stage one: score the references into {recipe.cache}  (mrpo score-refs)")
    score_references(recipe)
    _heading("audit the references before training  (mrpo audit)")
    print(audit_recipe(recipe).table())
    _heading(f"stage two: train and compare the methods in {recipe.output_dir}  (mrpo compare)")
    comparison = compare_recipe(recipe)
    print(f"\n{comparison.table()}")
    if recipe.evaluation.tasks:
        _heading(f"tasks: {', '.join(recipe.evaluation.tasks)}  (mrpo evaluate --tasks)")
        _measure_tasks(recipe, comparison.folder, [method["name"] for method in comparison.as_dict()["methods"]])
    report = write_report(comparison.folder)
    _heading(f"report: {report}")
    return report


def requirements_missing(recipe: Recipe) -> list[str]:
    """What the recipe needs and this machine lacks: a GPU, available models, the evaluation harness."""
    found = []
    half = next((key for key in ("fp16", "bf16") if recipe.training.get(key)), None)
    if half is not None and not _has_gpu():
        found.append(f"training.{half} needs a CUDA GPU, and there is none")
    models = {source.model for source in recipe.sources()} | {recipe.required_policy().model}
    for model in sorted(models):
        if not Path(model).exists() and (reason := _why_unavailable(model)):
            found.append(f"the model {model} is not available ({reason})")
    if recipe.evaluation.tasks and importlib.util.find_spec("lm_eval") is None:
        found.append("evaluation.tasks needs lm-evaluation-harness (pip install 'mrpo[tasks]')")
    return found


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _why_unavailable(model: str) -> str | None:
    """Why a hub model can't be downloaded; None where it can, or is in the local cache."""
    from huggingface_hub import auth_check, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return None
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "not in the local cache, and HF_HUB_OFFLINE is set"
    try:
        auth_check(model)
    except GatedRepoError:
        return "accept its licence on the hub and set HF_TOKEN"
    except RepositoryNotFoundError:
        return "no such folder, nor a hub repository that HF_TOKEN may read"
    except Exception as error:  # whatever a proxy, a resolver or the client raises without a network
        return f"the hub does not answer: {type(error).__name__}"
    return None


def _recipe(name: str) -> Recipe:
    if name == "demo":
        from mrpo_pipeline.demo.data import write_demo_data
        from mrpo_pipeline.demo.models import knowledge_table, make_models

        _heading(
            "pairs and three tiny models of different architectures and tokenizers: base (the policy), abacus, atlas"
        )
        write_demo_data(FOLDER / "data")
        print(knowledge_table(make_models(FOLDER / "models")))
    return load_recipe(shipped_recipes().get(name, Path(name)))


def _measure_tasks(recipe: Recipe, folder: Path, names: list[str]) -> None:
    """Measure every adapter and its base on the recipe's tasks, into ``METHOD/seed-N/evaluation.json``, where that is missing."""
    from mrpo_pipeline.evaluation import evaluate_recipe
    from mrpo_pipeline.evaluation.staleness import has_measured

    for name in names:
        for seed in recipe.compare.seeds:
            adapter = folder / name / f"seed-{seed}"
            if not (adapter / "adapter_config.json").is_file() or has_measured(adapter, recipe.evaluation):
                continue
            print(f"\n{name}, seed {seed}\n{evaluate_recipe(recipe, adapter, tasks_only=True).table()}")


def _heading(text: str) -> None:
    print(f"\n── {text}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reproduce the named recipe (default: ``demo``); the exit code is that of the ``mrpo`` command."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, before torch loads
    guard_output()
    show_messages()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        reproduce(given[0] if given else "demo")
    except (UserError, RunError) as error:
        print(f"mrpo reproduce: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
