"""`mrpo demo`: models and pairs made, references scored, methods trained and compared, a few answers shown.

All of it goes into `runs/demo` below the current folder, where the recipe `demo` has it; no repository is needed.
"""

from __future__ import annotations

import time
from pathlib import Path

from mrpo_pipeline.demo.data import write_demo_data
from mrpo_pipeline.recipe import Recipe, load_recipe, method_for, shipped_recipes

FOLDER = Path("runs/demo")


def make_demo_world() -> Recipe:
    """Make the demo's pairs and models where they are not there yet, print what each model knows; the recipe for them."""
    from mrpo_pipeline.demo.models import knowledge_table, make_models

    write_demo_data(FOLDER / "data")
    print(knowledge_table(make_models(FOLDER / "models")))
    return load_recipe(shipped_recipes()["demo"])


def run_demo() -> Path:
    """Run the demo's recipe in the current folder; what an earlier run finished is not done again.

    Returns:
        the report's path.
    """
    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.evaluation import evaluate_recipe
    from mrpo_pipeline.scoring import score_references

    began = time.monotonic()
    _heading("1 of 4", "three tiny models of three architectures and tokenizers: base (the policy), abacus, atlas")
    recipe = make_demo_world()

    _heading("2 of 4", "stage one: every completion scored by every reference, once  (mrpo score-refs demo)")
    score_references(recipe)

    _heading(
        "3 of 4",
        "stage two: five methods, three seeds each, on that cache; no reference in memory  (mrpo compare demo)",
    )
    comparison = compare_recipe(recipe)
    print(f"\n{comparison.table()}\n")

    _heading("4 of 4", "MRPO before and after, on questions it has not seen  (mrpo evaluate demo --adapter …)")
    adapter = comparison.folder / "mrpo" / "seed-0"
    chosen = recipe.model_copy(update={"method": method_for(recipe, "mrpo")})
    print(evaluate_recipe(chosen, adapter).table())
    print(f"\nDone in {time.monotonic() - began:,.0f} s. The reference cache is in {recipe.cache}.")
    return comparison.folder / "report.html"


def _heading(number: str, text: str) -> None:
    print(f"\n── {number} · {text}", flush=True)
