"""Small runs to plan: tiny references on disk, and pairs of random words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny_references import pair, reference, write_pairs

from mrpo_pipeline.recipe import Recipe, parse_recipe

WORDS = [
    f"{start}{end}"
    for start in ("th", "wa", "re", "me", "so", "li", "un", "co")
    for end in ("e", "ing", "ber", "st", "ough")
]


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words)) + "."


def made_pairs(count: int, *, seed: int = 0, longest: int = 60) -> list[dict[str, Any]]:
    """Pairs of varied lengths; some prompts have several pairs, some completions are in two pairs."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        prompt = f"{len(rows)}: {text(draw, 2 + int(longest * draw.random() ** 3))}"
        count_of_sides = draw.choice((2, 2, 2, 3, 4))
        sides = [f"{i} {text(draw, 1 + int(longest * draw.random() ** 2))}" for i in range(count_of_sides)]
        rows += [pair(prompt, sides[i], sides[i + 1]) for i in range(len(sides) - 1)]
    return rows[:count]


def run(folder: Path, rows: list[dict[str, Any]], *, references: int = 1, **settings: Any) -> Recipe:
    """A recipe for these pairs whose policy is the first reference."""
    made = [
        reference(folder / kind, kind, tokenizer)
        for kind, tokenizer in (("llama", "llama3"), ("qwen3", "qwen"))[:references]
    ]
    pairs = write_pairs(folder / "pairs.jsonl", rows)
    names = ("base", "other")
    document = {
        "pairs": {"train": str(pairs)},
        "policy": {"model": str(made[0]), "lora": {"target_modules": "all-linear", "r": 4}},
        "references": {name: {"model": str(model)} for name, model in zip(names, made, strict=False)},
        "cache": str(folder / "cache"),
        "limits": {"max_length": 256},
        "scoring": {"engine": "transformers"},
        "output_dir": str(folder / "output"),
    }
    for key, value in settings.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_recipe(document)
