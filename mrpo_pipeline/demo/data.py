"""The demo's preference pairs: `python -m mrpo_pipeline.demo.data data` writes the shipped files.

The output is byte for byte reproducible on every machine: a test compares it with the shipped files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any, Literal

from mrpo_pipeline.demo.questions import draw_prompt
from mrpo_pipeline.files.atomic import whole_file

TRAIN_FILE = "demo_train.jsonl"
EVAL_FILE = "demo_eval.jsonl"

# pairs of each kind
COUNTS: dict[Literal["train", "eval"], dict[str, int]] = {
    "train": {"arithmetic": 230, "geography": 230, "spelling": 120, "units": 140, "format": 140, "manners": 140},
    "eval": {"arithmetic": 68, "geography": 68, "spelling": 38, "units": 42, "format": 42, "manners": 42},
}
SEED = 20240526


def demo_pairs(part: Literal["train", "eval"]) -> list[dict[str, Any]]:
    """The demo's pairs of one part, shuffled: `id`, `prompt`, `chosen`, `rejected` (messages) and `meta` (`kind`).

    No question occurs twice, in one part or in both: see `mrpo_pipeline.demo.questions.part_of`.
    """
    rng = Random(f"{SEED} {part}")
    rows: list[dict[str, Any]] = []
    asked: set[str] = set()
    for kind, count in COUNTS[part].items():
        made = 0
        while made < count:
            prompt, question = draw_prompt(kind, part, rng)
            if question.text in asked:
                continue
            asked.add(question.text)
            made += 1
            rows.append(
                {
                    "id": f"{part}-{kind}-{made:03d}",
                    "prompt": prompt,
                    "chosen": [{"role": "assistant", "content": question.right}],
                    "rejected": [{"role": "assistant", "content": question.wrong}],
                    "meta": {"kind": kind},
                }
            )
    rng.shuffle(rows)
    return rows


def demo_file(part: Literal["train", "eval"]) -> bytes:
    """The shipped file of one part: JSON lines in UTF-8."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in demo_pairs(part)).encode()


def write_demo_data(folder: Path) -> list[Path]:
    """Write both files to `folder`, unless they are there; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / TRAIN_FILE, folder / EVAL_FILE]
    for path, data in zip(paths, (demo_file("train"), demo_file("eval")), strict=True):
        if not path.is_file() or path.read_bytes() != data:
            with whole_file(path) as temporary:
                temporary.write_bytes(data)
    return paths


if __name__ == "__main__":
    for path in write_demo_data(Path(sys.argv[1] if len(sys.argv) > 1 else "data")):
        print(f"{path}: {path.stat().st_size:,} bytes")
