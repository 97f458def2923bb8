"""The whole pipeline repeatedly in one process: nothing is lost or stale, and memory and open files do not grow.

python tests/soak/soak.py --minutes 30
python tests/soak/soak.py --rounds 40 --plant memory # shows that a leak would be found

Each round adds pairs and drops the oldest, kills a scorer (`kill -9`, at a random instant) and scores the remainder,
verifies the cache with recomputed numbers, sometimes flips a byte of a random shard and repairs it, audits, writes targets,
kills a training run and resumes it, and prunes. Code that must not leak runs in this process, through the library's own
functions; only killed runs use children. After each round memory, open files, threads, children, leftover files and disk
are counted.

The run fails unless every pair read is used or counted by reason; the pairs of the round before have the same targets; a
flipped byte is found and only the damaged rows are scored again; the resumed run reaches its last step; and memory, open
files, threads and children do not grow (see `flatness.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import logging
import mmap
import multiprocessing
import multiprocessing.util
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from driver import parser_of, write_summary
from flatness import Trend, trend

# Accepted growth per round. Memory in MiB; the others are counts, which should not change at all.
TOLERANCES = {
    "rss_mib": 0.25,
    "children_rss_mib": 0.25,
    "open_files": 0.02,
    "threads": 0.05,  # libraries start some on first use
    "children": 0.02,
    "leftovers": 0.02,
    "temporary_files": 0.02,
    "beside_shards_mib": 0.005,  # the sums of the rows that a round adds; nothing else on disk should grow
}
WINDOW = 72
ADDED = 6
STEPS = 3
PLANTED_BYTES = 1 << 20
_PRELOAD = ("torch", "mrpo_pipeline.scoring", "mrpo_pipeline.engines.transformers", "mrpo_pipeline.policy.run",
            "mrpo_pipeline.policy.trainer")  # fmt: skip
_kept: list[Any] = []


class SoakError(AssertionError):
    """A promise of the pipeline was broken."""


@dataclass
class Round:
    """The work of one round, and the counts after it."""

    number: int
    seconds: float = 0.0
    scored: int = 0
    killed_scoring: bool = False
    killed_training: bool = False
    flipped: bool = False
    rescored: int = 0
    resumed_from: int = 0
    pairs: int = 0
    rss_mib: float = 0.0
    children_rss_mib: float = 0.0
    open_files: int = 0
    threads: int = 0
    children: int = 0
    leftovers: int = 0
    temporary_files: int = 0
    disk_mib: float = 0.0
    beside_shards_mib: float = 0.0
    rows: int = 0

    def line(self) -> str:
        marks = "".join(
            mark if on else "-"
            for mark, on in (("S", self.killed_scoring), ("T", self.killed_training), ("F", self.flipped))
        )
        return (
            f"round {self.number:4d} {self.seconds:5.1f} s {marks} scored {self.scored:3d} rescored {self.rescored:3d} "
            f"resumed at {self.resumed_from} pairs {self.pairs:3d} rss {self.rss_mib:7.1f} children {self.children_rss_mib:7.1f} "
            f"MiB files {self.open_files:3d} threads {self.threads:2d} children {self.children} leftovers {self.leftovers} "
            f"temporary {self.temporary_files} disk {self.disk_mib:6.2f} MiB, "
            f"{self.beside_shards_mib:5.2f} beside shards, rows {self.rows}"
        )


@dataclass
class Soak:
    """One run of rounds in a folder."""

    folder: Path
    seed: int = 0
    plant: str = ""
    window: int = WINDOW
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        from tiny_references import reference

        self.draw = random.Random(self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        multiprocessing.util.get_temp_dir()  # the fork server's own, removed when this process ends
        self.temporary = self.folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        # For children too: their leftovers in the folder for temporary files are counted.
        os.environ["TMPDIR"], os.environ["MRPO_HOME"] = str(self.temporary), str(self.folder / "home")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tempfile.tempdir = str(self.temporary)
        self.models = {
            "base": reference(self.folder / "base", "llama", "qwen"),
            "other": reference(self.folder / "other", "gpt2", "t5", seed=1),
        }
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(_PRELOAD))
        ready = self.context.Process(target=_settle, args=(str(self.temporary),))
        ready.start()  # wait for the server's imports, which must not count as a child's time
        ready.join()
        ready.close()
        self.next_pair = 0
        self.rows: list[dict[str, Any]] = []
        self.targets: dict[str, list[float]] = {}
        self.seconds: dict[str, float] = {}

    def document(self) -> dict[str, Any]:
        """The recipe, the same in every round except for the content of its pairs file."""
        return {
            "pairs": {"train": str(self.folder / "pairs.jsonl"), "eval_fraction": 0.1},
            "policy": {"model": str(self.models["base"]), "lora": {"r": 4, "alpha": 8, "target_modules": "all-linear"}},
            "references": {name: {"model": str(path)} for name, path in self.models.items()},
            "cache": str(self.folder / "cache"),
            "limits": {"max_length": 200},
            "scoring": {"engine": "transformers", "rows_per_shard": 16, "max_batch_tokens": 512, "threads": 1},
            "training": {
                "max_steps": STEPS,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "logging_steps": 1,
                "save_steps": 1,
                "save_total_limit": 2,
                "eval_strategy": "no",
                "learning_rate": 1e-3,
            },
            "output_dir": str(self.folder / "out"),
        }

    def one_round(self) -> Round:
        """Everything once, in this process except for the killed runs."""
        from mrpo_pipeline.recipe import parse_recipe

        began = time.monotonic()
        done = Round(len(self.rounds) + 1)
        self._add_pairs()
        recipe = parse_recipe(self.document())
        # tokenizers (0.23) caches a tokenizer's words in the memory of the thread that split them, until that thread ends:
        # 30 KiB for 70 short texts, for every tokenizer ever loaded. So each round has its own thread, like a request of a
        # server, and tokenizers starts none (TOKENIZERS_PARALLELISM, below).
        with ThreadPoolExecutor(1, "round") as thread:
            for step in (self._score, self._verify, self._look, self._train, self._tidy):
                thread.submit(step, recipe, done).result()
        plant(self.plant)
        done.seconds = time.monotonic() - began
        measure(done, self.folder, self.temporary)
        self.rounds.append(done)
        return done

    def _add_pairs(self) -> None:
        from tiny_references import pair, write_pairs

        for _ in range(ADDED if self.rows else self.window):
            i = self.next_pair
            self.next_pair += 1
            words = " ".join(f"w{self.draw.randrange(999)}" for _ in range(self.draw.randrange(1, 12)))
            self.rows.append(pair(f"Question {i}: {words}?", f"Answer {i}, {words}.", f"No idea {i}.", id=f"p{i}"))
        self.rows = self.rows[-self.window :]
        write_pairs(self.folder / "pairs.jsonl", self.rows)

    def _child(self, work: Callable[[dict[str, Any], str], None], key: str) -> bool:
        """Start a child and kill it at a random instant of its usual duration; returns whether it was still alive.

        The first child is not killed: it measures the duration.
        """
        process = self.context.Process(target=work, args=(self.document(), str(self.temporary)))
        began = time.monotonic()
        process.start()
        if key in self.seconds:
            process.join(self.draw.uniform(0.0, 1.05) * self.seconds[key])
        else:
            process.join()
            self.seconds[key] = time.monotonic() - began
        alive = process.is_alive()
        if alive:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        code = process.exitcode
        process.close()
        if code not in (0, -signal.SIGKILL):
            raise SoakError(f"the child that was to {key} ended by itself with exit code {code}: expected 0")
        return alive

    def _score(self, recipe: Any, done: Round) -> None:
        from mrpo_pipeline.scoring import score_references

        if self.rounds:
            done.killed_scoring = self._child(score_in_child, "score")
        done.scored = sum(report.scored for report in score_references(recipe))
        again = sum(report.scored for report in score_references(recipe))
        if again:
            raise SoakError(f"{again} completions were scored again, though the cache had just been filled: expected 0")

    def _verify(self, recipe: Any, done: Round) -> None:
        from mrpo_pipeline.scoring.repair import repair_cache
        from mrpo_pipeline.verify import verify_cache

        if self.draw.random() < 0.35:
            done.flipped = True
            hit = self._flip()
            found = {name for one in verify_cache(recipe, check=0) for name in one.damaged}
            if found != {hit}:
                raise SoakError(f"a byte of {hit} was flipped; found damaged: {sorted(found)}")
            repaired = repair_cache(recipe)
            done.rescored = sum(one.rescored or 0 for one in repaired)
            if [list(one.damaged) for one in repaired] != [[hit]]:
                raise SoakError(f"a byte of {hit} was flipped; repaired: {repaired}")
        for one in verify_cache(recipe, check=2):
            if one.failures() or one.drift is None:
                raise SoakError(f"the cache of {one.reference} is not sound: {one.failures() or one.not_recomputed}")

    def _flip(self) -> str:
        shards = sorted((self.folder / "cache").glob("*/shards/*.parquet"))
        shard = self.draw.choice(shards)
        data = bytearray(shard.read_bytes())
        data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
        shard.write_bytes(data)
        return f"shards/{shard.name}"

    def _look(self, recipe: Any, done: Round) -> None:
        """Audit and targets: pairs in = pairs out + dropped, and earlier pairs have the same numbers as before."""
        import polars as pl

        from mrpo_pipeline.audit import audit_recipe
        from mrpo_pipeline.exports.targets_file import write_targets

        audit = audit_recipe(recipe)
        for split, counts in audit.pairs.items():
            if counts.read != counts.used + sum(counts.dropped.values()):
                raise SoakError(f"{split}: {counts}")
        path = self.folder / "targets.parquet"
        done.pairs = write_targets(recipe, path)
        frame = pl.read_parquet(path)
        found = dict(
            zip(frame["id"].to_list(), zip(frame["target_chosen"], frame["target_rejected"], strict=True), strict=True)
        )
        if len(found) != done.pairs or not all(abs(value) < 1e6 for row in found.values() for value in row):
            raise SoakError(f"{done.pairs} pairs have {len(found)} targets, or some that are no finite nats")
        for name in found.keys() & self.targets.keys():
            if any(abs(a - b) > 1e-3 for a, b in zip(found[name], self.targets[name], strict=True)):
                raise SoakError(f"pair {name} had the targets {self.targets[name]}, and now has {found[name]}")
        self.targets = {name: list(row) for name, row in found.items()}

    def _train(self, recipe: Any, done: Round) -> None:
        from mrpo_pipeline.policy.checkpoints import checkpoints, read_marker
        from mrpo_pipeline.policy.run import train_recipe

        output = Path(recipe.output_dir)
        shutil.rmtree(output, ignore_errors=True)
        if self.rounds:
            done.killed_training = self._child(train_in_child, "train")
        whole = [path for path in checkpoints(output) if read_marker(path) is not None]
        done.resumed_from = int(whole[-1].name.rpartition("-")[2]) if whole else 0
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            results = train_recipe(recipe, resume=True)
        state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
        steps = [entry["step"] for entry in state["log_history"] if "rewards/margins" in entry]
        if state["global_step"] != STEPS or steps != list(range(1, STEPS + 1)) or not 0 < results["train_loss"] < 100:
            raise SoakError(f"the resumed run logged steps {steps} and ended at {state['global_step']}, loss {results}")

    def _tidy(self, recipe: Any, done: Round) -> None:
        from mrpo_pipeline.cache import ReferenceCache

        shutil.rmtree(recipe.output_dir, ignore_errors=True)
        for name in self.models:
            cache = ReferenceCache.open(recipe.cache, name)
            cache.prune()
            done.rows += cache.stats().rows
            shutil.rmtree(self.folder / "cache" / name / "damaged", ignore_errors=True)


def measure(done: Round, folder: Path, temporary: Path) -> None:
    """Count the resources of this process, its children and the folder."""
    import psutil

    _give_back()
    here = psutil.Process()
    done.rss_mib = here.memory_info().rss / 2**20
    done.open_files, done.threads = here.num_fds(), here.num_threads()
    children = here.children(recursive=True)
    done.children = len(children)
    done.children_rss_mib = sum(child.memory_info().rss for child in children) / 2**20
    files = [path for path in folder.rglob("*") if path.is_file()]
    done.leftovers = sum(path.name.startswith(".") or path.suffix in {".tmp", ".partial"} for path in files)
    done.temporary_files = sum(1 for path in temporary.rglob("*") if path.is_file())
    sizes = {path: path.stat().st_size / 2**20 for path in files}
    done.disk_mib = sum(sizes.values())
    done.beside_shards_mib = sum(size for path, size in sizes.items() if path.parent.name != "shards")


def judge(rounds: Sequence[Round]) -> list[Trend]:
    """Whether each count is flat over the rounds."""
    return [trend(name, [getattr(one, name) for one in rounds], bound) for name, bound in TOLERANCES.items()]


def plant(leak: str) -> None:
    """Leak ``memory`` or ``files`` for one round; any other word leaks nothing."""
    if leak == "memory":
        memory = mmap.mmap(-1, PLANTED_BYTES)  # newly allocated from the system
        memory.write(os.urandom(PLANTED_BYTES))
        _kept.append(memory)
    elif leak == "files":
        _kept.append(open(os.devnull))  # noqa: SIM115


def score_in_child(document: dict[str, Any], temporary: str) -> None:
    """The function of a scorer that is killed."""
    from mrpo_pipeline.recipe import parse_recipe
    from mrpo_pipeline.scoring import score_references

    _settle(temporary)
    score_references(parse_recipe(document))


def train_in_child(document: dict[str, Any], temporary: str) -> None:
    """The function of a trainer that is killed."""
    from mrpo_pipeline.policy.run import train_recipe
    from mrpo_pipeline.recipe import parse_recipe

    _settle(temporary)
    train_recipe(parse_recipe(document))


def _give_back() -> None:
    """Let the allocator return free memory to the system (glibc only), so that only used memory is counted."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _settle(temporary: str) -> None:
    import torch

    tempfile.tempdir = temporary
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    logging.disable(logging.CRITICAL)


def run(
    folder: Path,
    *,
    minutes: float,
    rounds: int | None,
    seed: int,
    leak: str = "",
    window: int = WINDOW,
    verbose: bool = True,
) -> dict[str, Any]:
    """Run rounds until the time is over, or this many; returns the summary with ``ok``."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    began = time.monotonic()
    soak = Soak(folder, seed, leak, window)
    failure = ""
    try:
        while len(soak.rounds) < rounds if rounds is not None else time.monotonic() - began < 60 * minutes:
            done = soak.one_round()
            if verbose:
                print(done.line(), flush=True)
    except SoakError as error:
        failure = f"round {len(soak.rounds) + 1}: {error}"
    finally:
        logging.disable(logging.NOTSET)
    trends = judge(soak.rounds)
    grown = [one.name for one in trends if one.verdict != "flat"]
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seed": seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "rounds": len(soak.rounds),
        "killed_scoring": sum(one.killed_scoring for one in soak.rounds),
        "killed_training": sum(one.killed_training for one in soak.rounds),
        "flipped": sum(one.flipped for one in soak.rounds),
        "scored": sum(one.scored for one in soak.rounds),
        "rescored": sum(one.rescored for one in soak.rounds),
        "cpu_seconds": round(sum(one.ru_utime + one.ru_stime for one in usage)),
        "failure": failure,
        "grown": grown,
        "trends": [one.as_dict() for one in trends],
        "lines": [one.line() for one in trends],
        "each": [asdict(one) for one in soak.rounds],
        "ok": not (failure or grown),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, help="so many rounds, whatever time they take")
    parser.add_argument(
        "--plant", choices=("memory", "files"), default="", help="leak 1 MiB, or one open file, a round"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"soak: seed {options.seed}, {options.rounds or f'{options.minutes:g} minutes of'} rounds", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=options.out) as folder:
        summary = run(
            Path(folder), minutes=options.minutes, rounds=options.rounds, seed=options.seed, leak=options.plant
        )
    counts = ("rounds", "minutes", "killed_scoring", "killed_training", "flipped", "scored", "rescored", "cpu_seconds")
    print("\n" + ", ".join(f"{name.replace('_', ' ')} {summary[name]}" for name in counts))
    print(f"{'a round':24s} {'after warm-up':>12s} {'at the end':>12s} {'slope':>12s} 95% interval")
    print("\n".join(summary["lines"]))
    if summary["failure"]:
        print(f"FAILED in {summary['failure']}")
    for name in summary["grown"]:
        print(f"not shown to be flat: {name}")
    print("ok" if summary["ok"] else "not ok")
    return write_summary(options.out, "soak", summary, held=summary["ok"])


if __name__ == "__main__":
    raise SystemExit(main())
