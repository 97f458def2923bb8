"""`make reproduce`: a recipe from nothing to its report: references scored, audited, methods compared, tasks measured.

``demo`` makes its models first. ``paper`` is the paper's two settings (arXiv 2405.16388), the full one
and the data-scarce one, on one cache: DPO against each reference, Multi-DPO and MRPO, then GSM8K and TruthfulQA. What an
earlier call finished is not done again.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from mrpo_pipeline.demo.run import make_demo_world
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.recipe import Recipe, load_recipe, shipped_recipes
from mrpo_pipeline.terminal import guard_output, show_messages

SETTINGS = {"paper": ("paper", "paper-scarce")}


def reproduce(name: str) -> list[Path]:
    """Run a recipe that ships, or a recipe's file, to its report; the reports' paths.

    Raises:
        UserError: where the machine lacks what the recipe needs (all of it is named), or the recipe is wrong.
        RunError: where a step fails; what is finished is kept.
    """
    recipes = [_recipe(one) for one in SETTINGS.get(name, (name,))]
    if lacking := sorted({what for recipe in recipes for what in lacks(recipe)}):
        raise UserError(
            f"The recipe {name} can't be run on this machine: {'; '.join(lacking)}. Run it where these are at hand (one GPU of "
            "24 GB is enough for the paper's recipe; `mrpo plan` says what a recipe takes), or see the whole way on tiny models "
            "with `make reproduce RECIPE=demo`."
        )
    return [_run(recipe) for recipe in recipes]


def lacks(recipe: Recipe) -> list[str]:
    """What the recipe needs and this machine has not, in words: a GPU, models that can be had, the harness of the tasks."""
    found = []
    training = recipe.training
    half = next((key for key in ("fp16", "bf16") if training.get(key)), None)
    if half is not None and not _has_gpu():
        found.append(f"it shows no CUDA GPU, and training.{half} is set, which is for one")
    models = {source.model for source in recipe.sources()} | {recipe.required_policy().model}
    for model in sorted(models):
        if not Path(model).exists() and (reason := _out_of_reach(model)):
            found.append(f"the model {model} can't be had ({reason})")
    if recipe.evaluation.tasks and importlib.util.find_spec("lm_eval") is None:
        found.append("lm-evaluation-harness is not installed, which evaluation.tasks needs (pip install 'mrpo[tasks]')")
    return found


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _out_of_reach(model: str) -> str | None:
    """Why a hub model can't be had; None where it can, or lies in the local cache."""
    from huggingface_hub import auth_check, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return None
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "it is not in the local cache, and HF_HUB_OFFLINE is set"
    try:
        auth_check(model)
    except GatedRepoError:
        return "its licence has to be accepted on the hub, and HF_TOKEN set"
    except RepositoryNotFoundError:
        return "there is no such folder, nor a repository of that name on the hub that HF_TOKEN may read"
    except Exception as error:  # whatever a proxy, a resolver or the client's version makes of no network
        return f"the hub doesn't answer: {type(error).__name__}"
    return None


def _recipe(name: str) -> Recipe:
    if name == "demo":
        _heading("pairs and three tiny models, made here")
        return make_demo_world()
    return load_recipe(shipped_recipes().get(name, Path(name)))


def _run(recipe: Recipe) -> Path:
    from mrpo_pipeline.audit import audit_recipe
    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.report import write_report
    from mrpo_pipeline.scoring import score_references

    _heading(f"references scored, into {recipe.cache}")
    score_references(recipe)
    _heading("references audited, before any training")
    print(audit_recipe(recipe).table())
    _heading(f"methods compared, in {recipe.output_dir}")
    comparison = compare_recipe(recipe)
    print(f"\n{comparison.table()}")
    if recipe.evaluation.tasks:
        _heading(f"tasks: {', '.join(recipe.evaluation.tasks)}")
        _measure_tasks(recipe, comparison.folder, [method["name"] for method in comparison.as_dict()["methods"]])
    report = write_report(comparison.folder)
    _heading(f"the report: {report}")
    return report


def _measure_tasks(recipe: Recipe, folder: Path, names: list[str]) -> None:
    """Every adapter and its base on the recipe's tasks, into ``METHOD/seed-N/evaluation.json``, where it is not there."""
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
    """Run what is named (``demo`` where nothing is); the exit code is that of the ``mrpo`` command."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, before torch loads
    guard_output()
    given = sys.argv[1:] if arguments is None else arguments
    show_messages()
    try:
        reproduce(given[0] if given else "demo")
    except (UserError, RunError) as error:
        print(f"mrpo reproduce: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
