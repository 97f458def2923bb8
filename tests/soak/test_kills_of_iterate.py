"""`mrpo iterate`, killed at random instants, ends byte for byte like an undisturbed call."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_references import plain_pairs, reference, write_pairs
from victims import SIGNALS, Victims

ROUNDS, KILLS = 3, 5
CLOCK = re.compile(r"runtime|per_second|flos")


def recipe(folder: Path) -> str:
    """Two references with different tokenizers, dropout in the adapters, held-out pairs, checkpoints."""
    base = reference(folder / "base", "llama", "qwen")
    other = reference(folder / "other", "phi", "llama2", seed=1)
    path = folder / "recipe.json"
    document = {
        "pairs": {"train": str(write_pairs(folder / "pairs.jsonl", plain_pairs(12))), "eval_fraction": 0.25},
        "policy": {"model": str(base), "lora": {"r": 4, "dropout": 0.2, "target_modules": "all-linear"}},
        "references": {"base": {"model": str(base)}, "other": {"model": str(other)}},
        "scoring": {"engine": "transformers", "threads": 1},
        "training": {
            "max_steps": 4, "learning_rate": 2e-3, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1,
        },
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return str(path)


def left_by(folder: Path) -> dict[str, Any]:
    """The results of every round, without times; and the names of the shards, which contain their checksums."""
    found: dict[str, Any] = {"scored": sorted(path.name for path in folder.glob("cache/*/shards/*.parquet"))}
    for place in sorted(folder.glob("rounds/round-*")):
        found[f"{place.name} adapter"] = (place / "adapter_model.safetensors").read_bytes()
        for name in ("train_results.json", "eval_results.json"):
            figures = json.loads((place / name).read_text())
            found[f"{place.name} {name}"] = {key: value for key, value in figures.items() if not CLOCK.search(key)}
        history = json.loads((place / "trainer_state.json").read_text())["log_history"]
        found[f"{place.name} steps"] = [
            {key: value for key, value in entry.items() if not CLOCK.search(key)}
            for entry in history
            if "learning_rate" in entry
        ]
    return found


@pytest.mark.slow
def test_killed_rounds_end_as_undisturbed_ones(tmp_path: Path) -> None:
    seed = int(os.environ.get("MRPO_KILL_SEED", time.time_ns() % 10**6))
    print(f"MRPO_KILL_SEED={seed}")
    draw, victims = random.Random(seed), Victims(tmp_path / "iterate")
    file = recipe(victims.folder)

    def command(name: str) -> list[str]:
        place = victims.folder / name
        return [
            "iterate",
            file,
            "--rounds",
            str(ROUNDS),
            "--cache",
            f"{place}/cache",
            "--output-dir",
            f"{place}/rounds",
        ]

    expected = victims.undisturbed(*command("left alone"))
    kills = tries = 0
    while kills < KILLS and tries < 3 * KILLS:
        tries += 1
        victim = victims.start(*command("killed"))
        # Short enough for three kills if the machine is now twice as fast as when the undisturbed call was timed.
        if victim.wait(draw.uniform(0.05, 0.25) * expected.seconds):
            break  # it finished
        victim.send(SIGNALS["SIGKILL"])
        kills += victim.end().code == -SIGNALS["SIGKILL"]
    done = victims.start(*command("killed")).end()
    assert done.code == 0, f"seed {seed}: {done.said[-2000:]}"
    print(f"{kills} kills")
    assert kills >= 3, f"seed {seed}: {kills} kills"
    assert left_by(victims.folder / "killed") == left_by(victims.folder / "left alone"), f"seed {seed}"
