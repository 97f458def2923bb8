"""Recipes over tiny references and a few pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_references import plain_pairs, write_pairs

from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.scoring import score_references


def recipe(folder: Path, references: dict[str, Any], pairs: Path, **more: Any) -> Any:
    names = list(references)
    document = {
        "pairs": {"train": str(pairs)},
        "policy": {"model": str(references[names[0]])},
        "references": {name: {"model": str(path)} for name, path in references.items()},
        "cache": str(folder / "cache"),
        "limits": {"max_length": 400},
        "scoring": {"engine": "transformers"},
        **more,
    }
    return parse_recipe(document)


QUICK = {"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2, "save_strategy": "no"}


def run_of(folder: Path, references: dict[str, Path], **more: Any) -> Any:
    """A recipe over a few pairs, scored, with an adapter on every linear layer."""
    pairs = folder / "pairs.jsonl"
    if not pairs.exists():
        write_pairs(pairs, plain_pairs(12))
    document = recipe(folder, references, pairs).model_dump(mode="json")
    document["policy"]["lora"]["target_modules"] = "all-linear"
    document |= {"training": QUICK, "output_dir": str(folder / "out"), **more}
    run = parse_recipe(document)
    score_references(run)
    return run
