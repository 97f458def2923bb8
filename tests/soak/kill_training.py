"""Kill and resume `mrpo train` repeatedly, and check the run that finishes.

A campaign is one output folder: trained with `--resume` from the start, killed several times, and finally trained to its
end. After every kill each checkpoint that counts as complete must be complete, and no earlier one may be missing unless a
later one replaced it. At the end the metrics of every step, the held-out metrics and the adapter must be those of an
undisturbed run, without partial files.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from cache_inspection import leftovers
from campaigns import Campaigns, Kill, another_end
from safetensors.torch import load_file
from tiny_references import plain_pairs, reference, write_pairs
from victims import SIGNALS, Aim, End, Victims

from mrpo_pipeline.policy.checkpoints import MARKER, checkpoints, read_marker

STEPS = 12
SAVE_STEPS = 2
# The state carried from step to step differs: none, a window of weights and a mean of rewards, draws.
METHODS: dict[str, dict[str, Any]] = {
    "adaptive": {},
    "window": {"weights": "sliding-window", "loss": "mpo"},
    "thompson": {"weights": "thompson", "weights_options": {"pairs": 4}},
}
_CLOCK = re.compile(r"runtime|per_second|flos")


@dataclass
class Trained:
    """The results of an undisturbed run."""

    seconds: float
    trace: Counter[str]
    steps: dict[int, dict[str, float]]
    held_out: list[dict[str, float]]
    results: dict[str, float]
    adapter: bytes


def steps_of(state: Path) -> tuple[dict[int, dict[str, float]], list[dict[str, float]]]:
    """The logged metrics by step, and of the held-out pairs, without times."""
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    plain = [{name: value for name, value in entry.items() if not _CLOCK.search(name)} for entry in history]
    return (
        {int(entry["step"]): entry for entry in plain if "learning_rate" in entry},
        [entry for entry in plain if "eval_loss" in entry],
    )


def results_of(folder: Path) -> dict[str, float]:
    """The results files, without times."""
    found: dict[str, float] = {}
    for split in ("train", "eval"):
        found |= json.loads((folder / f"{split}_results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in found.items() if not _CLOCK.search(name)}


def whole_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints that count as complete."""
    return [int(path.name.split("-")[1]) for path in checkpoints(folder) if read_marker(path) is not None]


def faults_of(checkpoint: Path, expected: Trained) -> list[str]:
    """Violations in a checkpoint that counts as complete: every file in it is opened."""
    step = int(checkpoint.name.split("-")[1])
    try:
        load_file(checkpoint / "adapter_model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.load(checkpoint / name, map_location="cpu", weights_only=False)
        steps, _ = steps_of(checkpoint / "trainer_state.json")
    except Exception as error:  # whatever a torn file raises in its reader
        return [f"{checkpoint.name} is taken for whole and is not: {error!r}"]
    if steps != {number: entry for number, entry in expected.steps.items() if number <= step}:
        return [f"{checkpoint.name} holds other figures than an undisturbed run's"]
    return []


@dataclass
class Training(Campaigns):
    """Kills of runs that train."""

    methods: tuple[str, ...] = tuple(METHODS)
    turns: int = 0
    steps_compared: int = 0
    steps_apart: int = 0
    adapters_compared: int = 0
    expected: dict[str, Trained] = field(default_factory=dict)

    def spend(self, count: int) -> None:
        """Use this many kills, the methods in turn."""
        self.prepare()
        for kills in self.shares(count):
            method = self.methods[self.turns % len(self.methods)]
            self.turns += 1
            self.campaign(method, kills)
            print(f"train ({method}): {len(self.kills)} of {count} kills, {self.turns} output folders", flush=True)

    def prepare(self) -> None:
        """References, their cache, and an undisturbed run of each method."""
        self.base = reference(self.folder / "base", "llama", "qwen")
        self.other = reference(self.folder / "other", "llama", "llama3", seed=1)
        self.file = write_pairs(self.folder / "train.jsonl", plain_pairs(60))
        self.victims.undisturbed("score-refs", self.recipe("adaptive"))
        for method in self.methods:
            out = self.folder / f"out-{len(self.expected)}"
            done = self.victims.undisturbed("train", self.recipe(method), "--output-dir", str(out))
            self.expected[method] = Trained(
                done.seconds,
                Counter(done.trace),
                *steps_of(out / "trainer_state.json"),
                results_of(out),
                (out / "adapter_model.safetensors").read_bytes(),
            )
        self.start = self.victims.undisturbed(
            "train", self.recipe(self.methods[-1]), "--output-dir", str(out), "--resume"
        ).seconds
        self.campaigns = len(self.expected) - 1

    def recipe(self, method: str) -> str:
        """The recipe's file."""
        path = self.folder / f"{method}.json"
        document = {
            "pairs": {"train": str(self.file), "eval_fraction": 0.2, "weights_fraction": 0.2},
            "policy": {"model": str(self.base), "lora": {"r": 4, "dropout": 0.3, "target_modules": "all-linear"}},
            "references": {"base": {"model": str(self.base)}, "other": {"model": str(self.other)}},
            "cache": str(self.folder / "cache"),
            "scoring": {"engine": "transformers", "max_batch_tokens": 512, "threads": 1},
            "method": METHODS[method],
            "training": {
                "max_steps": STEPS,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "eval_strategy": "steps",
                "eval_steps": 3,
                "save_steps": SAVE_STEPS,
                "save_total_limit": 2,
            },
        }
        path.write_text(json.dumps(document))
        return str(path)

    def campaign(self, method: str, kills: int) -> None:
        """Kill one output folder's runs this many times (fewer if a run finishes), then train it to its end."""
        self.campaigns += 1
        out = self.folder / f"out-{self.campaigns}"
        command = ["train", self.recipe(method), "--output-dir", str(out), "--resume"]
        if self.draw.random() < 0.5:
            # The references' sums are rebuilt, so that the kill may happen during that.
            for name in ("base", "other"):
                shutil.rmtree(self.folder / "cache" / name / "sums", ignore_errors=True)
        for _ in range(kills):
            if not self._kill(command, method, out):
                break
        self._finish(command, method, out)
        if not self.wrong:
            shutil.rmtree(out)

    def _drawn(self, method: str, out: Path) -> tuple[Kill, Aim | None]:
        name = self.draw.choices(["SIGKILL", "SIGTERM", "SIGINT"], [60, 20, 20])[0]
        how = self.draw.choices(["instant", "place", "torn", "beside"], [45, 25, 15, 15])[0]
        if how == "instant":
            return Kill(name, how), None
        trace = self.expected[method].trace
        left = (STEPS - max(whole_steps(out), default=0)) // SAVE_STEPS
        # The calls that write a checkpoint, and those at the end of the run.
        ending = left < 4
        places = {
            place: times for place, times in trace.items() if "/checkpoint-" in place or (ending and " out-" in place)
        }
        kill = Kill(name, how)
        return kill, self.aimed(kill, places, most=left, late=0.03)

    def _kill(self, command: list[str], method: str, out: Path) -> bool:
        """Whether the run was killed before it finished."""
        kill, aim = self._drawn(method, out)
        before = whole_steps(out)
        victim = self.victims.start(*command, aim=aim, number=SIGNALS[kill.signal])
        seconds = self.length(1 - max(before, default=0) / STEPS, self.expected[method].seconds)
        self.strike(victim, kill, aim, self.draw.uniform(0, seconds))
        end = victim.end()
        self._look(kill, end, method, out, before)
        if end.code == 0:
            self.ended += 1
            return False
        self.kills.append(kill)
        self.tell(another_end(kill, end), f"{kill} ended with {end.code}")
        return True

    def _look(self, kill: Kill, end: End, method: str, out: Path, before: list[int]) -> None:
        """Invariants after a kill."""
        after = whole_steps(out)
        wrong = []
        if before and (not after or max(after) < max(before)):
            wrong.append(f"the checkpoints of steps {before} were whole, and now those of {after} are")
        for step in after:
            wrong += faults_of(out / f"checkpoint-{step}", self.expected[method])
        if "Traceback" in end.said:
            wrong.append(f"a traceback: {end.said[-2500:]}")
        if found := re.search(r"Resuming from \S*checkpoint-(\d+)", end.said):
            if not before or int(found[1]) != max(before):
                wrong.append(f"it went on from {found[1]}, and {before} were whole")
        elif before:
            wrong += ["it began anew beside a whole checkpoint"] if "starting anew" in end.said else []
        self.tell(wrong, f"{kill}")

    def _finish(self, command: list[str], method: str, out: Path) -> None:
        done = self.victims.start(*command).end()
        if done.code:
            self.tell([f"ended with {done.code}: {done.said[-2500:]}"], f"the last run of {out.name}")
            return
        expected = self.expected[method]
        steps, held_out = steps_of(out / "trainer_state.json")
        apart = {number: entry for number, entry in expected.steps.items() if steps.get(number) != entry}
        self.steps_compared += len(expected.steps)
        self.steps_apart += len(apart)
        self.adapters_compared += 1
        wrong = [
            f"step {number} has {steps.get(number)}, expected {entry}" for number, entry in list(apart.items())[:2]
        ]
        wrong += [] if len(steps) == len(expected.steps) else [f"{len(steps)} steps were logged"]
        if held_out != expected.held_out:
            wrong.append("the held-out figures are not an undisturbed run's")
        if (out / "adapter_model.safetensors").read_bytes() != expected.adapter:
            wrong.append("the adapter is not an undisturbed run's")
        results = results_of(out)
        wrong += [
            f"{name} is {results.get(name)}, expected {value}"
            for name, value in expected.results.items()
            if abs(results.get(name, float("inf")) - value) > 1e-9 * abs(value)
        ]
        wrong += [f"{path} was left behind" for path in [*leftovers(out), *leftovers(self.folder / "cache")]]
        wrong += [f"{path.name} has no {MARKER}" for path in checkpoints(out) if read_marker(path) is None]
        self.tell(wrong, f"{out.name} ({method}) at its end")


def kill_training(
    folder: Path, victims: Victims, *, count: int, seed: int, methods: tuple[str, ...] = tuple(METHODS)
) -> Training:
    """Use this many kills on training runs, the methods in turn."""
    training = Training(folder, victims, random.Random(seed), methods=methods)
    training.spend(count)
    return training
