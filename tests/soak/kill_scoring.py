"""Kill `mrpo score-refs` repeatedly, with one writer or two at the same time, and check the cache after each kill.

A campaign is one cache: it is started, killed several times at drawn instants and places, and finally scored to its end.
After every kill every shard must be complete, each completion served once and with an undisturbed run's numbers, and all
earlier rows kept. The rows lost are at most one shard's of each killed writer, and none after SIGTERM or SIGINT, which end
it cleanly.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from cache_inspection import CacheInspection, largest_difference, leftovers
from campaigns import CLEAN, Campaigns, Kill, another_end, is_of_a_file
from tiny_references import hard_pairs, plain_pairs, reference, write_pairs
from victims import SIGNALS, UNIT, Aim, End, Victim, Victims

from mrpo_pipeline.cache import ReferenceCache

ROWS_PER_SHARD = 16


@dataclass
class Scoring(Campaigns):
    """Kills of runs that score. Attributes: late: runs that succeeded although a signal came."""

    pairs: int = 100
    sums_kills: list[Kill] = field(default_factory=list)
    late: int = 0
    rows_scored: int = 0
    largest: float = 0.0
    shared: list[int] = field(default_factory=list)
    scored_twice: int = 0
    wanted: pl.DataFrame = field(default_factory=pl.DataFrame)

    def prepare(self) -> None:
        """A tiny reference, pairs, and what an undisturbed run makes of them."""
        self.model = reference(self.folder / "model", "llama", "qwen")
        self.file = write_pairs(self.folder / "pairs.jsonl", [*hard_pairs(), *plain_pairs(self.pairs)])
        done = self.victims.undisturbed("score-refs", self.recipe("cache-0"))
        self.seconds = done.seconds
        self.trace = Counter(done.trace)
        from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
        from mrpo_pipeline.recipe import load_recipe

        parts = prepare_splits(load_recipe(Path(self.recipe("cache-0")), {}))
        self.wanted = wanted_completions(list(parts.values())).select("completion_id", "cut")
        self.expected = ReferenceCache.open(self.folder / "cache-0", "base").rows(self.wanted)
        inspection = CacheInspection(self.folder / "cache-0", "base", self.wanted)
        self.wrong += inspection.complete()
        targets = self.victims.undisturbed(
            "targets", self.recipe("cache-0"), "--output", str(self.folder / "t.parquet")
        )
        self.sums_trace = Counter(label for label in targets.trace if "/sums" in label)
        self.targets = pl.read_parquet(self.folder / "t.parquet")
        self.sums = ReferenceCache.open(self.folder / "cache-0", "base").sums(self.wanted)
        self.start = self.victims.undisturbed("score-refs", self.recipe("cache-0")).seconds

    def spend(self, one: int, two: int) -> None:
        """Use this many kills on runs of one writer, and this many on runs of two at once."""
        self.prepare()
        if two:
            self.share()
        for writers, count in ((1, one), (2, two)):
            before = len(self.kills)
            for kills in self.shares(count):
                self.campaign(writers, kills)
                spent = len(self.kills) - before
                print(f"score-refs, {writers} at once: {spent} of {count} kills, {self.campaigns} caches", flush=True)

    def share(self) -> None:
        """Two undisturbed writers: each must do its share, and few completions may be scored by both."""
        recipe = self.recipe("cache-shared")
        ends = [victim.end() for victim in [self.victims.start("score-refs", recipe) for _ in range(2)]]
        inspection = CacheInspection(self.folder / "cache-shared", "base", self.wanted, self.expected)
        self.tell(inspection.complete(), "two writers at once")
        self.shared = [len(end.rows) for end in ends]
        self.scored_twice = sum(self.shared) - self.wanted.height
        self.tell([f"ended with {end.code}: {end.said[-800:]}" for end in ends if end.code], "two writers at once")
        # What each had begun when it saw the other, and what both are scoring when they meet.
        if self.scored_twice > 4 * UNIT:
            self.tell([f"{self.scored_twice} completions were scored by both"], "two writers at once")

    def recipe(self, cache: str) -> str:
        """The recipe's file, for a cache of this name."""
        path = self.folder / f"{cache}.json"
        document: dict[str, Any] = {
            "pairs": {"train": str(self.file)},
            "policy": {"model": str(self.model)},
            "references": {"base": {"model": str(self.model)}},
            "cache": str(self.folder / cache),
            # It cuts some completions, so that some rows are not complete.
            "limits": {"max_length": 60},
            "scoring": {
                "engine": "transformers",
                "rows_per_shard": ROWS_PER_SHARD,
                "max_batch_tokens": 512,
                "threads": 1,
            },
        }
        path.write_text(json.dumps(document))
        return str(path)

    def campaign(self, writers: int, kills: int) -> None:
        """Kill one cache's runs this many times (fewer if a run finishes), then score it to its end."""
        self.campaigns += 1
        cache = f"cache-{self.campaigns}"
        recipe = self.recipe(cache)
        inspection = CacheInspection(self.folder / cache, "base", self.wanted, self.expected)
        spent = 0
        while spent < kills:
            room = kills - spent
            number = self._kill_one(recipe, inspection) if writers == 1 else self._kill_of_two(recipe, inspection, room)
            spent += number
            if not number:
                break
        self._finish(recipe, inspection)
        if self.campaigns % 3 == 0:
            self._kill_sums(recipe, inspection)
        if not self.wrong:
            shutil.rmtree(self.folder / cache)

    # Drawing a kill.

    def _drawn(self, inspection: CacheInspection) -> tuple[Kill, Aim | None]:
        """A signal, and a place for it; None for a random instant."""
        name = self.draw.choices(["SIGKILL", "SIGTERM", "SIGINT"], [70, 15, 15])[0]
        begun = (self.folder / inspection.root.name / "base" / "manifest.json").exists()
        how = self.draw.choices(["instant", "place", "torn", "beside"], [45, 20, 20, 15])[0]
        if how == "instant":
            return Kill(name, how), None
        there = "/shards" if begun or self.draw.random() < 0.4 else ""
        places = {
            place: times for place, times in self.trace.items() if there in place and (there or "/shards" not in place)
        }
        kill = Kill(name, how)
        return kill, self.aimed(kill, places, most=6, late=0.02)

    def _length(self, inspection: CacheInspection) -> float:
        """Seconds that a run would take now: fewer, the more is cached."""
        return self.length(1 - len(inspection.ids) / self.wanted.height, self.seconds)

    def _let_loose(self, recipe: str, kill: Kill, aim: Aim | None) -> Victim:
        return self.victims.start("score-refs", recipe, aim=aim, number=SIGNALS[kill.signal])

    def _kill_one(self, recipe: str, inspection: CacheInspection) -> int:
        kill, aim = self._drawn(inspection)
        victim = self._let_loose(recipe, kill, aim)
        self.strike(victim, kill, aim, self.draw.uniform(0, self._length(inspection)))
        return self._judge([(kill, victim.end())], inspection)

    def _kill_of_two(self, recipe: str, inspection: CacheInspection, room: int) -> int:
        """Two writers at the same time: one is killed and the other finishes, or both are killed, one after the other."""
        both = room > 1 and self.draw.random() < 0.7
        drawn = [self._drawn(inspection) for _ in range(2)]
        # Two at once share the processor.
        instants = sorted(self.draw.uniform(0, 1.5 * self._length(inspection)) for _ in range(2))
        victims = [
            self._let_loose(recipe, kill, aim if at == 0 or both else None) for at, (kill, aim) in enumerate(drawn)
        ]
        self.strike(victims[0], *drawn[0], instants[0])
        if both:
            self.strike(victims[1], *drawn[1], instants[1] - instants[0])
        # A reader, while the other one may still be writing.
        self.tell(inspection.look(at_work=True), "while a writer is at work")
        ends = [(kill, victim.end()) for (kill, _), victim in zip(drawn, victims, strict=True)]
        for kill, _ in ends:
            kill.writers = 2
        return self._judge(ends, inspection)

    # Invariants after a kill.

    def _judge(self, ends: list[tuple[Kill, End]], inspection: CacheInspection) -> int:
        """The number of kills among these ends; records violations."""
        self.tell(inspection.look(), f"after {[kill for kill, _ in ends]}")
        count = 0
        for kill, end in ends:
            self.rows_scored += len(end.rows)
            kill.lost = inspection.lost(end.rows)
            what = f"{kill} ended with {end.code}"
            if "Traceback" in end.said:
                self.tell([f"a traceback: {end.said[-1500:]}"], what)
            if end.code == 0:
                self.ended += not end.signalled
                self.late += end.signalled
                self.tell(not_heard(kill, end), what)
                self.tell([f"{kill.lost} rows lost"] if kill.lost else [], what)
                continue
            count += 1
            self.kills.append(kill)
            if kill.signal in CLEAN:
                self.tell([f"{kill.lost} rows in hand were not written"] if kill.lost else [], what)
            else:
                too_many = kill.lost > ROWS_PER_SHARD
                self.tell([f"{kill.lost} rows lost, of shards of {ROWS_PER_SHARD}"] if too_many else [], what)
            self.tell(another_end(kill, end), what)
        return count

    def _finish(self, recipe: str, inspection: CacheInspection) -> None:
        done = self.victims.start("score-refs", recipe).end()
        self.rows_scored += len(done.rows)
        self.tell([] if done.code == 0 else [f"the last run ended with {done.code}: {done.said[-1500:]}"], recipe)
        self.tell(inspection.complete(), f"at the end of {recipe}")
        served = ReferenceCache.open(inspection.root, "base").rows(self.wanted)
        if served.height == self.expected.height:
            key = "completion_id"
            self.largest = max(self.largest, largest_difference(served.sort(key), self.expected.sort(key)))
        if self.campaigns % 4 == 0:
            again = self.victims.undisturbed("score-refs", recipe)
            self.tell([f"{len(again.rows)} rows were scored again"] if again.rows else [], recipe)

    def _kill_sums(self, recipe: str, inspection: CacheInspection) -> None:
        """Kill `mrpo targets` while it builds the sums; what reads them next must have an undisturbed run's."""
        label = self.draw.choice(sorted(self.sums_trace))
        torn = is_of_a_file(label) and self.draw.random() < 0.5
        output = ["--output", str(inspection.root / "targets.parquet")]
        kill = Kill("SIGKILL", "torn" if torn else "place", 1, label)
        victim = self.victims.start("targets", recipe, *output, aim=Aim(label, torn=torn))
        end = victim.end()
        self.tell([] if end.code == -signal.SIGKILL else [f"ended with {end.code}: {end.said[-800:]}"], f"{kill}")
        self.sums_kills.append(kill)
        sums = ReferenceCache.open(inspection.root, "base").sums(self.wanted)
        exact = ["completion_id", "cut", "tokens"]
        same = sums.select(exact).equals(self.sums.select(exact))
        if not same or float((sums["logps"] - self.sums["logps"]).abs().max() or 0) > 1e-3:  # type: ignore[arg-type]
            self.tell(["the sums are not an undisturbed run's"], f"{kill}")
        self.victims.undisturbed("targets", recipe, *output)
        targets = pl.read_parquet(inspection.root / "targets.parquet")
        if not targets["pair_id"].equals(self.targets["pair_id"]):
            self.tell(["the targets are not an undisturbed run's"], f"{kill}")
        self.tell([f"{path} was left behind" for path in leftovers(inspection.root)], f"{kill}")


def not_heard(kill: Kill, end: End) -> list[str]:
    """Whether a run continued to its end after a signal that came well before."""
    if kill.signal not in CLEAN or end.rows_before is None:
        return []
    more = len(end.rows) - end.rows_before
    return [f"it took {more} more rows after the signal, and went on to its end"] if more > 2 * ROWS_PER_SHARD else []


def kill_scoring(folder: Path, victims: Victims, *, one: int, two: int, seed: int, pairs: int = 100) -> Scoring:
    """Use this many kills on runs of one writer and of two at once."""
    scoring = Scoring(folder, victims, random.Random(seed), pairs=pairs)
    scoring.spend(one, two)
    return scoring
