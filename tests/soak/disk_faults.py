"""Stage one and stage two on a full, read-only or removed disk, and with clocks that jump.

python tests/soak/disk_faults.py # every page of free space in stage one, 16 sizes in stage two
python tests/soak/disk_faults.py --count 3 # this number of sizes

Real commands run on a real small file system (tmpfs, mounted with a size). Each must end clearly: its last line is one
paragraph that begins with `mrpo:` and names the reason, with exit code 1 or 2 and no traceback. It may succeed if the data
that could not be written is not needed. No finished work may be lost, and the same command with room must succeed and equal
an undisturbed run: rows exact and log-probs within 1e-5, every logged loss the same. If nothing can be mounted, this is
reported and the run fails.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cache_inspection import CacheInspection, leftovers
from driver import parser_of, seen_lines, write_summary, wrong_lines
from jumping_clock import DAY, jumping_clock
from small_disk import PAGE, SmallDisk, can_mount
from tiny_references import plain_pairs, reference, write_pairs
from victims import End, Victims

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
from mrpo_pipeline.files.atomic import temporary_name
from mrpo_pipeline.policy.checkpoints import checkpoints, read_marker
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.scoring import score_references

REASONS = ("No space left", "Read-only file system", "removed", "lacks", "No such file", "not there")
STEPS = 4
# This process computes sums in another order than a new one.
NEAR = 1e-6


@dataclass
class DiskFaults:
    """Results. ``seen``: fault → how commands ended → how often; ``wrong``: violations."""

    folder: Path
    seed: int = 0
    count: int | None = None
    pairs: int = 60
    seen: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.victims = Victims(self.folder / "work")
        self.work = self.victims.folder
        self.model = reference(self.folder / "model", "llama", "qwen")
        self.file = write_pairs(self.folder / "pairs.jsonl", plain_pairs(self.pairs))
        recipe = self.recipe("sound", self.work / "sound", self.work / "sound-out")
        self.victims.undisturbed("score-refs", recipe)
        self.victims.undisturbed("train", recipe)
        parts = prepare_splits(parse_recipe(json.loads(Path(recipe).read_text())))
        self.wanted = wanted_completions(list(parts.values())).select("completion_id", "cut")
        self.rows = ReferenceCache.open(self.work / "sound", "base").rows(self.wanted)
        self.losses = losses(self.work / "sound-out")

    def recipe(self, name: str, cache: Path, out: Path) -> str:
        """The recipe's file."""
        path = self.folder / f"{name}.json"
        document: dict[str, Any] = {
            "pairs": {"train": str(self.file), "eval_fraction": 0.2},
            "policy": {"model": str(self.model), "lora": {"target_modules": "all-linear", "r": 16}},
            "references": {"base": {"model": str(self.model)}},
            "cache": str(cache),
            "scoring": {"engine": "transformers", "rows_per_shard": 16, "max_batch_tokens": 512, "threads": 1},
            "training": {
                "max_steps": STEPS,
                "logging_steps": 1,
                "save_steps": 1,
                "save_total_limit": 2,
                "learning_rate": 1e-2,
                "report_to": "none",
                "use_cpu": True,
            },
            "output_dir": str(out),
        }
        path.write_text(json.dumps(document))
        return str(path)

    # Checks after a command.

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what[:1200])

    def ended(self, fault: str, end: End, what: str, *, well: bool | None = None) -> None:
        """The end must be clear: one paragraph and exit code 1 or 2, or success. Args: well: whether it must succeed, or
        fail; None for either."""
        lines = [line for line in end.said.split("\n") if line.strip()]
        last = lines[-1] if lines else ""
        self.seen.setdefault(fault, Counter())[f"exit {end.code}"] += 1
        self.expect("Traceback" not in end.said, f"{what}: a traceback: {end.said[-900:]}")
        self.expect(end.code in (0, 1, 2), f"{what}: exit code {end.code}: {last}")
        self.expect(well is None or well == (end.code == 0), f"{what}: exit code {end.code}: {last}")
        if end.code:
            self.expect(last.startswith("mrpo: "), f"{what}: the last line is {last!r}")
            self.expect(any(reason in last for reason in REASONS), f"{what}: no reason in {last!r}")
            self.said.setdefault(f"{fault}, exit {end.code}", last)

    def scored(self, cache: Path, what: str) -> None:
        """The cache serves what an undisturbed one serves."""
        inspection = CacheInspection(cache, "base", self.wanted, self.rows)
        self.wrong += [f"{what}: {wrong}" for wrong in inspection.complete()]

    def trained(self, out: Path, what: str, near: float = 0.0) -> None:
        """The run has an undisturbed run's losses within ``near``, and wrote its adapter and results."""
        found = losses(out)
        same = len(found) == len(self.losses) and all(
            abs(a - b) <= near for a, b in zip(found, self.losses, strict=True)
        )
        self.expect(same, f"{what}: losses {found}, undisturbed {self.losses}")
        for name in (
            "adapter_model.safetensors",
            "README.md",
            "train_results.json",
            "eval_results.json",
            "recipe.yaml",
        ):
            self.expect((out / name).is_file(), f"{what}: no {name}")
        self.expect(not leftovers(out), f"{what}: {leftovers(out)} left behind")

    def sizes(self, most: int, count: int) -> list[int]:
        """Numbers of free pages to try: none, and others up to what is needed."""
        number = count if self.count is None else min(count, self.count)
        return sorted({0, *self.draw.sample(range(1, most), min(most - 1, number))})

    # Full disks.

    def full_scoring(self) -> None:
        """Stage one, from no room to almost enough: manifest, shards, and a run that resumes from some."""
        with SmallDisk(self.work / "measured") as disk:
            self.victims.undisturbed("score-refs", self.recipe("measured", disk.path / "cache", self.work / "x"))
            need = disk.used // PAGE
        for pages in self.sizes(need, 1000):
            with SmallDisk(self.work / "disk") as disk:
                cache = disk.path / "cache"
                recipe = self.recipe("disk", cache, self.work / "x")
                disk.leave(pages)
                what = f"stage one with {pages} of {need} pages free"
                self.ended("disk full, stage one", self.victims.start("score-refs", recipe).end(), what)
                before = {path: path.read_bytes() for path in cache.rglob("*.parquet")}
                self.expect(not leftovers(disk.path), f"{what}: {leftovers(disk.path)} left behind")
                disk.enlarge()
                self.ended("then with room, stage one", self.victims.start("score-refs", recipe).end(), what, well=True)
                self.expect(
                    all(path.read_bytes() == data for path, data in before.items()), f"{what}: a shard was lost"
                )
                self.scored(cache, f"{what}, then with room")

    def full_sums(self) -> None:
        """Stage two reads a cache on a disk without room: the sums can't be stored, and it succeeds."""
        with SmallDisk(self.work / "disk") as disk:
            shutil.copytree(self.work / "sound", disk.path / "cache", ignore=shutil.ignore_patterns("sums"))
            disk.leave(0)
            out = self.work / "out"
            end = self.victims.start("train", self.recipe("disk", disk.path / "cache", out)).end()
            self.ended("disk full, sums", end, "training from a cache without room", well=True)
            self.expect("can't be stored" in end.said, f"it was not told: {end.said[-500:]}")
            self.trained(out, "training from a cache without room")
            shutil.rmtree(out)

    def full_training(self) -> None:
        """Stage two: checkpoints, final adapter, logs and card; then resumed or restarted with room."""
        with SmallDisk(self.work / "measured") as disk:
            self.victims.undisturbed("train", self.recipe("measured", self.work / "sound", disk.path / "out"))
            need = disk.used // PAGE
        for at, pages in enumerate(self.sizes(need, 15)):
            with SmallDisk(self.work / "disk") as disk:
                out = disk.path / "out"
                recipe = self.recipe("disk", self.work / "sound", out)
                disk.leave(pages)
                what = f"stage two with {pages} of {need} pages free"
                self.ended("disk full, stage two", self.victims.start("train", recipe).end(), what)
                disk.enlarge()
                resume = ["--resume"] if at % 2 == 0 else []
                end = self.victims.start("train", recipe, *resume).end()
                self.ended("then with room, stage two", end, what, well=True)
                self.trained(out, f"{what}, then {resume or 'anew'} with room")

    def full_home(self) -> None:
        """No room in mrpo's own folder (cached pairs, file hashes): the commands succeed."""
        home = self.victims.environment["MRPO_HOME"]
        file = write_pairs(self.folder / "many.jsonl", plain_pairs(self.pairs))
        with file.open("a", encoding="utf-8") as more:  # the size from which pairs are cached
            more.write(" " * (5 << 20) + "\n")
        for pages in (0, 3, 100):
            with SmallDisk(self.work / "disk") as disk:
                self.victims.environment["MRPO_HOME"] = str(disk.path / "home")
                recipe = self.recipe("disk", self.work / "cache", self.work / "out")
                document = json.loads(Path(recipe).read_text())
                document["pairs"]["train"] = str(file)
                Path(recipe).write_text(json.dumps(document))
                disk.leave(pages)
                for command in ("score-refs", "train"):
                    end = self.victims.start(command, recipe).end()
                    self.ended("disk full, MRPO_HOME", end, f"{command} with {pages} pages for MRPO_HOME", well=True)
                self.trained(self.work / "out", f"{pages} pages for MRPO_HOME")
                self.expect(not leftovers(disk.path), f"MRPO_HOME: {leftovers(disk.path)} left behind")
                shutil.rmtree(self.work / "out")
                shutil.rmtree(self.work / "cache")
        self.victims.environment["MRPO_HOME"] = home

    # Read-only and removed disks.

    def read_only(self) -> None:
        """Commands that need no writing succeed; the others report the error."""
        with SmallDisk(self.work / "disk") as disk:
            cache, out = disk.path / "cache", self.work / "out"
            shutil.copytree(self.work / "sound", cache, ignore=shutil.ignore_patterns("sums"))
            sound = self.recipe("disk", cache, out)
            disk.read_only(True)
            end = self.victims.start("score-refs", sound).end()
            self.ended("read-only, all scored", end, "stage one with nothing to do", well=True)
            self.ended("read-only cache, training", self.victims.start("train", sound).end(), "training", well=True)
            self.trained(out, "training from a read-only cache")
            shutil.rmtree(out)
            there = self.recipe("there", self.work / "sound", disk.path / "out")
            end = self.victims.start("train", there).end()
            self.ended("read-only output, training", end, "training into a read-only folder", well=False)
            disk.read_only(False)
            shard = sorted((cache / "base" / "shards").glob("*.parquet"))[0]
            shard.unlink()
            disk.read_only(True)
            end = self.victims.start("score-refs", sound).end()
            self.ended("read-only, some to score", end, "stage one with something to do", well=False)
            end = self.victims.start("score-refs", self.recipe("fresh", disk.path / "fresh", out)).end()
            self.ended("read-only, a new cache", end, "stage one, a new cache", well=False)
            disk.read_only(False)
            end = self.victims.start("score-refs", sound).end()
            self.ended("then writable", end, "stage one", well=True)
            self.scored(cache, "writable again")
            end = self.victims.start("train", there).end()
            self.ended("then writable", end, "training", well=True)
            self.trained(disk.path / "out", "writable again")

    def vanished(self) -> None:
        """The cache's folder is removed, or its disk unmounted, during scoring and during training."""
        for how in ("removed", "unmounted"):
            recipe = self._vanished_while_scoring(how)
            self._vanished_while_training(how)
        end = self.victims.start("train", recipe).end()
        self.ended("cache gone before training", end, "training without a cache", well=False)

    def _vanished_while_scoring(self, how: str) -> str:
        disk = SmallDisk(self.work / "disk")
        cache = disk.path / "cache"
        recipe = self.recipe("disk", cache, self.work / "out")

        def some_shards() -> bool:
            return any((cache / "base").glob("shards/*.parquet"))

        what = f"cache {how} while scoring"
        self._when("score-refs", recipe, some_shards, lambda: vanish(disk, cache, how), what, well=False)
        end = self.victims.start("score-refs", recipe).end()
        self.ended("then scored again", end, f"cache {how}", well=True)
        self.scored(cache, f"cache {how}, scored again")
        disk.take_away()
        shutil.rmtree(disk.path)
        return recipe

    def _vanished_while_training(self, how: str) -> None:
        disk = SmallDisk(self.work / "disk")
        cache, out = disk.path / "cache", self.work / "out"
        shutil.copytree(self.work / "sound", cache)
        recipe = self.recipe("disk", cache, out)
        what = f"cache {how} while training"
        self._when(
            "train", recipe, lambda: any(out.glob("checkpoint-*")), lambda: vanish(disk, cache, how), what, well=True
        )
        self.trained(out, what)
        shutil.rmtree(out)
        disk.take_away()
        shutil.rmtree(disk.path)

    def _when(
        self, command: str, recipe: str, ready: Callable[[], bool], do: Callable[[], Any], what: str, *, well: bool
    ) -> None:
        """Start a command, and act once it has reached a point."""
        victim = self.victims.start(command, recipe)
        while victim.alive and not ready():
            time.sleep(0.002)
        do()
        self.ended(what, victim.end(), what, well=well)

    # Concurrent scorers.

    def two_scorers(self) -> None:
        """Two scorers at the same time, with room and with little: together they write what one writes."""
        for pages in (None, 6):
            with SmallDisk(self.work / "disk") as disk:
                recipe = self.recipe("disk", disk.path / "cache", self.work / "x")
                if pages is not None:
                    disk.leave(pages)
                both = [self.victims.start("score-refs", recipe) for _ in range(2)]
                fault = "two scorers at once" if pages is None else "two scorers at once, disk full"
                for victim in both:
                    self.ended(fault, victim.end(), fault, well=None if pages else True)
                disk.enlarge()
                self.ended("then once more", self.victims.start("score-refs", recipe).end(), fault, well=True)
                self.scored(disk.path / "cache", fault)

    # Clocks that jump.

    def clocks(self) -> None:
        """Both stages in this process with a clock that jumps; leftovers are known by their process, not by their age."""
        cache, out = self.work / "clocks", self.work / "clocks-out"
        recipe = parse_recipe(json.loads(Path(self.recipe("clocks", cache, out)).read_text()))
        shards = cache / "base" / "shards"
        shards.mkdir(parents=True)
        machine = temporary_name().partition("-")[0]
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        ages = {
            f"{machine}-{dead.pid}-00.partial": ("of a dead process, from the future", -5 * DAY, False),
            f"{machine}-{os.getpid()}-00.partial": ("of a living process, years old", 900 * DAY, True),
            f"{'0' * 12}-{dead.pid}-00.partial": ("of another machine, from the future", -500 * DAY, True),
            f"{'0' * 12}-{dead.pid}-01.partial": ("of another machine, years old", 900 * DAY, False),
        }
        for name, (_, age, _) in ages.items():
            (shards / name).write_bytes(b"half")
            os.utime(shards / name, (time.time() - age, time.time() - age))
        with jumping_clock(self.draw) as jumps:
            score_references(recipe)
            for shard in sorted(shards.glob("*.parquet"))[::3]:
                shard.unlink()
            score_references(recipe)
        for name, (whose, _, stays) in ages.items():
            self.expect((shards / name).exists() == stays, f"a leftover {whose} {'went' if stays else 'stayed'}")
            (shards / name).unlink(missing_ok=True)
            self.seen.setdefault("clock jumps, leftover", Counter())[f"{whose}: {'stays' if stays else 'goes'}"] += 1
        self.scored(cache, "stage one under a clock that jumps")
        with jumping_clock(self.draw) as more:
            train_recipe(recipe)
        self.trained(out, "stage two under a clock that jumps", NEAR)
        kept = [path.name for path in checkpoints(out) if read_marker(path) is not None]
        self.expect(f"checkpoint-{STEPS}" in kept, f"the newest checkpoint is gone: {kept}")
        # Stopped after the step before the last: it resumes from the newest checkpoint, whatever the files' times are.
        for path in (out / f"checkpoint-{STEPS}", out / "trainer_state.json", out / "train_results.json"):
            (shutil.rmtree if path.is_dir() else os.remove)(path)
        with jumping_clock(self.draw):
            train_recipe(recipe, resume=True)
        self.trained(out, "stage two resumed under a clock that jumps", NEAR)
        self.seen.setdefault("clock jumps", Counter())["jumps during both stages"] += len(jumps) + len(more)
        self.expect(len(jumps) > 3 and len(more) > 3, "the clock hardly jumped: nothing was shown")

    def run(self, only: Sequence[str] = ()) -> None:
        for step in (
            self.full_scoring, self.full_sums, self.full_training, self.full_home, self.read_only, self.vanished,
            self.two_scorers, self.clocks,
        ):  # fmt: skip
            if only and step.__name__ not in only:
                continue
            began = time.monotonic()
            step()
            print(f"  {step.__name__}: {time.monotonic() - began:.0f} s, {len(self.wrong)} wrong so far", flush=True)


def vanish(disk: SmallDisk, cache: Path, how: str) -> None:
    """Remove the cache's folder, or take its disk away."""
    if how == "unmounted":
        disk.take_away()
        return
    while cache.exists():  # a file may be renamed under the removal
        shutil.rmtree(cache, ignore_errors=True)


def losses(out: Path) -> list[float]:
    """Logged losses of every step; empty if the run did not finish."""
    state = out / "trainer_state.json"
    history = json.loads(state.read_text())["log_history"] if state.is_file() else []
    return [entry["loss"] for entry in history if "learning_rate" in entry]


def table(told: dict[str, Any]) -> str:
    """The results as text."""
    said = [f"    {fault}: {said}" for fault, said in told["said"].items()]
    return "\n".join([*seen_lines(told["seen"], 36), "  what was said:", *said, *wrong_lines(told["wrong"])])


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=None, help="sizes of the full disk to try in each stage")
    parser.add_argument("--only", nargs="*", default=[], help="these parts: full_scoring, full_training, read_only, …")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"disk faults: seed {given.seed}, sizes {given.count or 'all'}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        refused = can_mount(Path(folder))
        if refused:
            print(f"no file system can be mounted here ({refused}): nothing was shown")
            return 1
        faults = DiskFaults(Path(folder), given.seed, given.count)
        faults.run(given.only)
        told = {
            "seed": given.seed,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(faults.victims.cpu_seconds(), 1),
            "seen": {fault: dict(seen) for fault, seen in faults.seen.items()},
            "said": {fault: said.replace(folder, "") for fault, said in faults.said.items()},
            "wrong": [wrong.replace(folder, "") for wrong in faults.wrong],
        }
    print(table(told))
    return write_summary(given.out, "disk_faults", told, held=not told["wrong"])


if __name__ == "__main__":
    raise SystemExit(main())
