"""Run every malformed input: `mrpo` must report the fault in one paragraph, exit with 2 soon, and lose nothing.

python tests/soak/malformed/run.py [--count N] [--seed S] [--only KIND[/TEXT]] [--fuzz N] [--forked | --started] [--out
FOLDER] [--show]

Prints a table by kind, writes `malformed.json`, and exits with 1 for any violation.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from malformed import caches, fuzz, models, names, pairs, recipes, templates
from malformed.case import Case, Place
from malformed.checks import ADDED_MB, SECONDS, faults, said, snapshot
from malformed.server import Outcome, Server, start

KINDS = {
    "recipes": recipes.cases,
    "pairs": pairs.cases,
    "names": names.cases,
    "templates": templates.cases,
    "models": models.cases,
    "caches": caches.cases,
}
KILLED_AFTER = 20.0
# Seconds, if the libraries are imported again on a busy machine.
STARTED_WITHIN = 300.0


@dataclass(frozen=True)
class Result:
    """One case and its violations."""

    kind: str
    case: Case
    outcome: Outcome
    faults: tuple[str, ...]


def every_case(seed: int) -> list[tuple[str, Case]]:
    """(kind, case) of all lists. Raises ValueError for two of the same name."""
    found = [(kind, case) for kind, cases in KINDS.items() for case in cases(seed)]
    twice = {f"{kind}/{case.name}" for kind, case in found}
    if len(twice) != len(found):
        names_seen = [f"{kind}/{case.name}" for kind, case in found]
        raise ValueError(f"two cases of one name: {sorted({n for n in names_seen if names_seen.count(n) > 1})}")
    return found


@contextmanager
def prepared(folder: Path) -> Iterator[tuple[Server, Path]]:
    """The server, and the good files made by it: a tiny model, pairs, and their cache scored by `mrpo score-refs`."""
    world = folder / "world"
    world.mkdir(parents=True)
    (folder / "home").mkdir()
    with Server(folder / "home") as server:
        built = server.call("malformed.world:build_model", str(world), folder=world, seconds=60)
        place = Place(world, world, world)
        place.recipe()
        scored = server.run(["score-refs", "recipe.yaml"], world, seconds=60)
        for done in (built, scored):
            if done.code:
                raise RuntimeError(f"the good files could not be made:\n{done.stdout}{done.stderr}")
        (world / "recipe.yaml").unlink()
        yield server, world


def run_case(server: Server, world: Path, folder: Path, kind: str, case: Case) -> Result:
    """Write one case's files, run its command, and check both."""
    root = folder / "case"
    here = root / "work"
    here.mkdir(parents=True)
    try:
        case.make(Place(world, root, here))
        before = snapshot(root)
        outcome = server.run(case.command, here, seconds=KILLED_AFTER)
        wrong = faults(case, outcome, before, snapshot(root))
        if case.started:
            fresh = start(case.command, here, server.environment(), seconds=STARTED_WITHIN)
            wrong += [f"started: exit code {fresh.code}"] if fresh.code != 2 else []
            wrong += [f"started: {fault}" for fault in said(fresh, case.names)]
    finally:
        shutil.rmtree(root)
    return Result(kind, case, outcome, tuple(wrong))


def run(cases: Sequence[tuple[str, Case]], folder: Path, *, show: bool = False) -> list[Result]:
    """Run the cases in order; violations are printed as they are found."""
    results = []
    with prepared(folder) as (server, world):
        good = snapshot(world)
        for kind, case in cases:
            result = run_case(server, world, folder, kind, case)
            results.append(result)
            if len(results) % 100 == 0:
                print(f"{len(results)} of {len(cases)}", flush=True)
            if result.faults or show:
                print(f"{kind}/{case.name}: {'; '.join(result.faults) or 'ok'} [{result.outcome.seconds:.1f} s]")
                print("    " + (result.outcome.stderr or result.outcome.stdout)[-1500:].strip().replace("\n", "\n    "))
        if snapshot(world) != good:
            raise RuntimeError("a case changed the good files that all are made from")
    return results


def table(results: Sequence[Result]) -> list[dict[str, object]]:
    """One line per kind: how many, how many failed, the worst seconds and megabytes."""
    found: list[dict[str, object]] = []
    for kind in KINDS:
        own = [result for result in results if result.kind == kind]
        if own:
            slowest = max(own, key=lambda one: one.outcome.seconds)
            fattest = max(own, key=lambda one: one.outcome.added_mb)
            found.append(
                {
                    "kind": kind,
                    "cases": len(own),
                    "started": sum(one.case.started for one in own),
                    "tracebacks": sum("a traceback" in one.faults for one in own),
                    "other exits": sum(one.outcome.code != 2 for one in own),
                    "faults": sum(bool(one.faults) for one in own),
                    "seconds": round(slowest.outcome.seconds, 2),
                    "slowest": slowest.case.name,
                    "MB": round(fattest.outcome.added_mb),
                    "fattest": fattest.case.name,
                }
            )
    return found


def sample(cases: Sequence[tuple[str, Case]], count: int, seed: int) -> list[tuple[str, Case]]:
    """A sample in order, with a share of every kind."""
    chance = random.Random(seed)
    chosen: set[int] = set()
    for kind in KINDS:
        own = [at for at, (other, _) in enumerate(cases) if other == kind]
        chosen.update(chance.sample(own, min(len(own), max(1, round(count * len(own) / len(cases))))))
    return [one for at, one in enumerate(cases) if at in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, help="so many cases, of each kind its share; all where not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="KIND[/TEXT]", help="cases whose kind/name begins so")
    parser.add_argument("--fuzz", type=int, default=300, metavar="N", help="random changes to each parser's good input")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), metavar="FOLDER")
    parser.add_argument("--forked", action="store_true", help="leave out the real starts beside the forked ones")
    parser.add_argument("--started", action="store_true", help="those cases alone that are really started as well")
    parser.add_argument("--show", action="store_true", help="print every message")
    given = parser.parse_args()
    cases = [one for one in every_case(given.seed) if f"{one[0]}/{one[1].name}".startswith(given.only)]
    if given.started:
        cases = [one for one in cases if one[1].started]
    if given.forked:
        cases = [(kind, replace(case, started=False)) for kind, case in cases]
    if given.count:
        cases = sample(cases, given.count, given.seed)
    print(f"{len(cases)} malformed inputs, seed {given.seed}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        results = run(cases, Path(scratch), show=given.show)
        fuzzed = fuzz.run(Path(scratch), given.seed, given.fuzz) if given.fuzz and not given.only else []
    rows = table(results)
    cpu = sum(one.outcome.cpu for one in results)
    print(
        f"\n{'kind':12}{'cases':>7}{'started':>9}{'tracebacks':>12}{'other exits':>13}{'faults':>8}{'worst s':>9}{'worst MB':>10}"
    )
    for row in rows:
        print(
            f"{row['kind']:12}{row['cases']:>7}{row['started']:>9}{row['tracebacks']:>12}{row['other exits']:>13}"
            f"{row['faults']:>8}{row['seconds']:>9}{row['MB']:>10}   (slowest: {row['slowest']}; fattest: {row['fattest']})"
        )
    print(f"{'all':12}{len(results):>7}   in {time.monotonic() - began:.0f} s ({cpu:.0f} s of CPU in the commands)")
    for one in fuzzed:
        print(
            f"fuzz {one['parser']:22}{one['inputs']:>6} inputs: {one['refused']} refused, {one['read']} read, {one['faults']} faults"
        )
    failed = [f"{one.kind}/{one.case.name}: {'; '.join(one.faults)}" for one in results if one.faults]
    given.out.mkdir(parents=True, exist_ok=True)
    summary = {
        "seed": given.seed, "cases": len(results), "limits": {"seconds": SECONDS, "MB": ADDED_MB}, "by kind": rows,
        "fuzz": fuzzed, "failed": failed,
    }  # fmt: skip
    (given.out / "malformed.json").write_text(
        json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    bad = len(failed) + sum(int(str(one["faults"])) for one in fuzzed)
    print("every promise held" if not bad else f"{bad} did not hold")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
