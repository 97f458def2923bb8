"""`make demo`: models made, references scored, methods trained and compared, a few answers shown."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.terminal import guard_output, show_messages


def run_demo(models: Path = Path("runs/demo/models")) -> None:
    """Run the demo's recipe from the project's root; what an earlier run finished is not done again."""
    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.demo.models import knowledge_table, make_models
    from mrpo_pipeline.evaluation import evaluate_recipe
    from mrpo_pipeline.recipe import load_recipe, method_for, shipped_recipes
    from mrpo_pipeline.scoring import score_references

    began = time.monotonic()
    _heading("1 of 4", "three tiny models of three architectures and tokenizers: base (the policy), abacus, atlas")
    print(knowledge_table(make_models(models)))

    recipe = load_recipe(shipped_recipes()["demo"])
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
    print(
        f"\nDone in {time.monotonic() - began:,.0f} s. The report: "
        f"{comparison.folder / 'report.html'}; the cache: {recipe.cache}."
    )


def _heading(number: str, text: str) -> None:
    print(f"\n── {number} · {text}", flush=True)


def main() -> int:
    """Run the demo; the exit code is that of the `mrpo` command."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, before torch loads
    guard_output()
    show_messages()
    try:
        if not Path("data/demo_train.jsonl").is_file():
            raise UserError("data/demo_train.jsonl is not here: run the demo from the project's root (`make demo`).")
        run_demo()
    except (UserError, RunError) as error:
        print(f"mrpo demo: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
