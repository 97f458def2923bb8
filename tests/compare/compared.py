"""A small comparison with real models: two references scored, a few steps of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.scoring import score_references

TRAINING = {
    "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1,
    "learning_rate": 1e-2, "save_strategy": "no",
}  # fmt: skip


def scored(folder: Path) -> dict[str, Any]:
    """A recipe as plain data, its models made and its cache filled."""
    write_pairs(folder / "train.jsonl", plain_pairs(16))
    write_pairs(folder / "eval.jsonl", plain_pairs(26)[16:])
    models = {
        "base": reference(folder / "base", "llama", "qwen"),
        "other": reference(folder / "other", "llama", "qwen", seed=1),
    }
    document: dict[str, Any] = {
        "pairs": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
        "policy": {"model": str(models["base"]), "lora": {"target_modules": "all-linear"}},
        "references": {name: {"model": str(path)} for name, path in models.items()},
        "cache": str(folder / "cache"),
        "scoring": {"engine": "transformers"},
        "limits": {"max_length": 128},
        "training": TRAINING,
        "compare": {"processes": 1},
    }
    score_references(parse_recipe(document))
    return document


def recipe_of(document: dict[str, Any], output: Path, **changes: Any) -> Any:
    """The recipe with some keys changed; mappings are merged."""
    made = {**document, "output_dir": str(output)}
    for key, value in changes.items():
        made[key] = {**made[key], **value} if isinstance(made.get(key), dict) else value
    return parse_recipe(made)
