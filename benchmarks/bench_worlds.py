"""`mrpo compare` in two worlds whose truth is known (tests/compare/tiny_worlds.py), with real training.

    python benchmarks/bench_worlds.py [--quick]

In one world, each of two references knows half of the questions and is confident of wrong answers to the other half: several
references should be found better than any single one, and none recommended for dropping. In the other world, the second reference is
confident and mostly wrong: several should not be found better, and dropping that reference should be recommended.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import claim, describe_machine, machine, write_results

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "compare"))

# Multi-DPO is harmed by less than seeds differ, so the verdict on the best method may be "none"; the reference must be named.
WANTED = {"both_needed": (("better",), []), "second_harms": (("worse", "none"), ["braggart"])}

METHODS: dict[str, dict[str, Any]] = {
    "multi-dpo": {"name": "multi-dpo"},
    "mrpo": {},
    "mrpo-spans": {"aggregate_over": "span"},
    "geometric": {"aggregate": "geometric"},
    "arithmetic": {"aggregate": "arithmetic"},
    "arithmetic-spans": {"aggregate": "arithmetic", "aggregate_over": "span"},
    "hypo": {"loss": "hypo"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three seeds in place of five")
    seeds = 3 if parser.parse_args().quick else 5
    found = machine()
    worlds = {name: compare(name, seeds) for name in WANTED}
    right = sum(
        one["verdict"]["kind"] in WANTED[name][0] and one["verdict"]["drop"] == WANTED[name][1]
        for name, one in worlds.items()
    )
    parts = [
        "# `mrpo compare` in two worlds whose truth is known",
        f"{seeds} seeds; tiny Llamas; 48 questions, in four wordings to train on and in four others held out.",
        describe_machine(found),
    ]
    for name, one in worlds.items():
        parts.append(f"## {name}\n\n```\n{one['table']}\n```\n\n{one['seconds']:.0f} s, models and scoring included.")
    text = "\n\n".join(parts)
    claims = [claim("Worlds told apart, of 2", float(right), at_least=2, form="{:.0f}")]
    write_results("worlds", {"machine": found, "worlds": worlds, "claims": claims}, text)


def compare(world: str, seeds: int) -> dict[str, Any]:
    from mrpo_pipeline.compare import compare_recipe
    from mrpo_pipeline.scoring import score_references

    worlds: Any = importlib.import_module("tiny_worlds")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = worlds.recipe_of(
            folder,
            worlds.make_models(folder, world),
            compare={"seeds": list(range(seeds)), "processes": "auto", "methods": METHODS},
        )
        score_references(recipe)
        comparison = compare_recipe(recipe)
    document = comparison.as_dict()
    return {
        "verdict": document["verdict"],
        "methods": {one["name"]: one["metrics"]["accuracy/policy"] for one in document["methods"]},
        "table": comparison.table(),
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    main()
