"""A cache is never used for another reference than the one that it was scored by, and never refused without need.

python tests/soak/stale.py --out FOLDER # every change, the real commands
python tests/soak/stale.py --out FOLDER --count 5 # five of each kind, drawn by --seed

Each change is applied to a real tiny reference that was scored by ``mrpo score-refs`` and read again a few seconds later,
so that the hashes of its files are memoised. A change that alters the numbers must be refused by ``score-refs``, ``train``,
``audit`` and ``plan``: exit 2, with the field, both values and the remedy, and an unchanged cache. Any other change must be
accepted by all of them, with nothing scored again. If this machine can score the changed reference, it does so into another
cache: whether a change alters the numbers is measured and not assumed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from driver import parser_of, write_summary
from stale_changes import ALTERING, HARMLESS, Change
from stale_worlds import WORLDS, World

IMPORTS = ("torch", "mrpo_cli.main", "mrpo_pipeline.scoring", "mrpo_pipeline.engines.transformers", "mrpo_pipeline.audit",
           "mrpo_pipeline.plan", "mrpo_pipeline.policy.run", "mrpo_pipeline.policy.train", "mrpo_pipeline.policy.anchor_check",
           "transformers.models.llama.modeling_llama", "transformers.models.mistral.modeling_mistral",
           "peft.tuners.lora")  # fmt: skip
SETTLED = 2.5  # seconds after which a file's hash may be cached
PATIENCE = 180.0
SAME = 1e-4  # nats a token: rounding


@dataclass
class Row:
    """The outcome of one change: ``told`` by command, ``moved`` the largest change of a log-prob in nats, if measured."""

    what: str
    altering: bool
    expected: str
    told: dict[str, str]
    moved: str
    faults: list[str]


@dataclass
class Case:
    change: Change
    world: World
    altering: bool
    state: Any = None


class Commands:
    """Runs ``mrpo``, each time in a child of its own, forked from a server with the imports done."""

    def __init__(self, home: Path) -> None:
        self._home = home
        # The server's own environment: these are read when libraries are imported.
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(home / "modules"), "OMP_NUM_THREADS": "1"}
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(IMPORTS))

    def run(self, world: World, *arguments: str) -> tuple[int, str]:
        """Exit code, and all that was printed."""
        environment = {"MRPO_HOME": str(self._home)}
        environment |= {name: value.replace("@", str(world.folder)) for name, value in world.environment.items()}
        said = world.folder / "said.txt"
        said.unlink(missing_ok=True)
        process = self._context.Process(target=_command, args=(list(arguments), str(said), environment))
        process.start()
        process.join(PATIENCE)
        code = process.exitcode
        if code is None:
            process.kill()
        return (-1 if code is None else code), said.read_text(errors="replace")


def _command(arguments: list[str], said: str, environment: dict[str, str]) -> None:
    import huggingface_hub.constants
    import torch

    os.environ.update(environment)
    # What the libraries read from the environment on import.
    huggingface_hub.constants.HF_HUB_CACHE = os.environ.get("HF_HUB_CACHE", huggingface_hub.constants.HF_HUB_CACHE)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    output = os.open(said, os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["mrpo", *arguments]
    from mrpo_cli.main import main

    main()


def make_worlds(folder: Path, names: Sequence[str], commands: Commands) -> dict[str, World]:
    """The worlds, scored."""
    worlds = {}
    for name in names:
        worlds[name] = world = WORLDS[name](folder / name)
        code, said = commands.run(world, "score-refs", str(world.write()))
        if code:
            raise RuntimeError(f"the world {name} could not be scored: {said}")
    return worlds


def fingerprints(world: World) -> dict[str, dict[str, str]]:
    """Fingerprints of the caches on disk, by reference."""
    manifests = (world.folder / "cache").glob("*/manifest.json")
    return {path.parent.name: json.loads(path.read_text())["fingerprint"] for path in manifests}


def contents(folder: Path) -> dict[str, str]:
    """Digests of every number in the cache and of its sources."""
    files = [*folder.rglob("manifest.json"), *folder.rglob("shards/*")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def faults_of_refusal(change: Change, recorded: dict[str, dict[str, str]], said: str) -> list[str]:
    """Missing parts of a refusal: the fields, both values, the remedies."""
    if change.says:
        return [] if change.says in said else [f"it does not say {change.says!r}"]
    told = " ".join(said.split())
    lacking = []
    for field in change.fields:
        # `X` is OLD in the cache and NEW in this run
        found = [value for value in {one.get(field, "none") or "(empty)" for one in recorded.values()}
                 if f"`{field}` is {value} in the cache and " in told]  # fmt: skip
        if not found:
            lacking.append(f"`{field}` and what the cache has are not named")
            continue
        after = told.split(f"`{field}` is {found[0]} in the cache and ", 1)[1]
        if " in this run" not in after or after.startswith(f"{found[0]} in this run"):
            lacking.append(f"the run's `{field}` is not named")
    remedies = ("Set the reference to", "another name under `references:`", "mrpo cache prune")
    return lacking + [f"the remedy {remedy!r} is not named" for remedy in remedies if remedy not in told]


def numbers(cache: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Token ids and log-probs of each completion, by the first reference."""
    import pyarrow.parquet as pq

    rows = [
        row
        for path in (cache / "base" / "shards").glob("*.parquet")
        for row in pq.read_table(path, use_threads=False).to_pylist()
    ]
    return {row["completion_id"]: (row["token_ids"], row["logprobs"]) for row in rows}


def moved(case: Case, before: dict[str, tuple[list[int], list[float]]], commands: Commands) -> str:
    """How far the changed reference's own numbers are from the cached ones."""
    world = case.world
    if not case.change.moves or case.change.train_only or world.more.get("scoring", {}).get("engine") == "auto":
        return "not measured"
    original, world.more = world.more, {**world.more, "cache": "@/fresh"}
    code, said = commands.run(world, "score-refs", str(world.write()), "--only", "base")
    world.more = original
    world.write()
    if code:
        return f"FAILED: {said.strip()[-200:]}"
    after = numbers(world.folder / "fresh")
    if after.keys() != before.keys():
        return "other completions"
    if any(after[key][0] != before[key][0] for key in before):
        return "other token ids"
    largest = max(abs(a - b) for key in before for a, b in zip(after[key][1], before[key][1], strict=True))
    return f"{largest:.1e}"


def try_change(case: Case, commands: Commands) -> Row:
    """Make the change, run the commands, and check their output."""
    change, world = case.change, case.world
    recorded, untouched, before = fingerprints(world), contents(world.folder / "cache"), numbers(world.folder / "cache")
    change.make(world, *([case.state] if change.before else []))
    recipe = str(world.write())
    told: dict[str, str] = {}
    faults: list[str] = []
    names = ("train", "audit") if change.train_only else ("score-refs", "train", "audit", "plan")
    for name in names:
        # `plan` reports a broken template as something it cannot plan; it reads no number.
        if name == "plan" and change.says:
            continue
        code, said = commands.run(world, name, recipe, *(["--json"] if name == "score-refs" else []))
        if case.altering:
            lacking = faults_of_refusal(change, recorded, said) if code == 2 else []
            told[name] = "refused" if code == 2 else f"TAKEN (exit {code})"
            faults += [f"{name}: {what}" for what in lacking] + ([] if code == 2 else [f"{name}: exit {code}"])
            faults += [f"{name}: a traceback"] if "Traceback" in said else []
            continue
        told[name] = "taken" if code == 0 else f"REFUSED (exit {code})"
        faults += [f"{name}: exit {code}: {said.strip()[-300:]}"] if code else []
        if name == "score-refs" and code == 0:
            reports = json.loads(said[said.index("[\n") :])
            again = {one["name"]: one["scored"] for one in reports if one["scored"] and one["name"] in recorded}
            faults += [f"score-refs: scored again: {again}"] if again else []
    if case.altering and contents(world.folder / "cache") != untouched:
        faults.append("the cache was written to")
    distance = moved(case, before, commands)
    expected = "refused" if case.altering else "taken"
    if distance.startswith("FAILED"):
        faults.append(distance)
    elif distance != "not measured":
        same = distance[0].isdigit() and float(distance) <= SAME
        if same == case.altering:
            faults.append(f"the numbers moved by {distance}: the change stands in the wrong table")
    return Row(
        change.what, case.altering, expected + "".join(f" ({field})" for field in change.fields), told, distance, faults
    )


def soak(out: Path, count: int | None = None, seed: int = 0) -> list[Row]:
    """Try ``count`` changes of each kind, or all."""
    work = out / "stale"
    shutil.rmtree(work, ignore_errors=True)
    (work / "worlds").mkdir(parents=True)
    draw = random.Random(seed)
    chosen = [
        (change, altering)
        for changes, altering in ((ALTERING, True), (HARMLESS, False))
        for change in (changes if count is None else sorted(draw.sample(changes, count), key=changes.index))
    ]
    commands = Commands(work / "home")
    worlds = make_worlds(work / "worlds", sorted({change.world for change, _ in chosen}), commands)
    print(f"{len(worlds)} worlds scored; {len(chosen)} changes to try", flush=True)
    cases = [
        Case(change, worlds[change.world].copy(work / f"case-{number}"), altering)
        for number, (change, altering) in enumerate(chosen)
    ]
    for case in cases:
        case.state = case.change.before(case.world) if case.change.before else None
    time.sleep(SETTLED)
    rows = []
    for case in cases:
        # From here on the hashes of all files are cached.
        code, said = commands.run(case.world, "score-refs", str(case.world.write()))
        if code:
            raise RuntimeError(f"before {case.change.what!r}: {said}")
        rows.append(try_change(case, commands))
        print(_line(rows[-1]), flush=True)
        shutil.rmtree(case.world.folder)
    memo = json.loads((work / "home" / "content.json").read_text())
    if not memo:
        raise RuntimeError("no hash was remembered: the test shows nothing")
    return rows


def _line(row: Row) -> str:
    told = ", ".join(f"{name} {what}" for name, what in row.told.items())
    if len(set(row.told.values())) == 1:
        told = f"{next(iter(row.told.values()))} by {', '.join(row.told)}"
    faults = f"  <-- {'; '.join(row.faults)}" if row.faults else ""
    return f"| {row.what} | {row.expected} | {told} | {row.moved} |{faults}"


def main() -> int:
    parser = parser_of(__doc__, seed="of the draw where --count is given")
    parser.add_argument("--count", type=int, default=None, help="changes of each kind (default: all)")
    given = parser.parse_args()
    began = time.monotonic()
    print(f"stale: changes to scored references, seed {given.seed}")
    rows = soak(given.out, given.count, given.seed)
    kinds = {kind: [row for row in rows if row.altering == (kind == "altering")] for kind in ("altering", "harmless")}
    summary: dict[str, Any] = {
        "changes that alter the numbers": len(kinds["altering"]),
        "of them refused everywhere": sum(not row.faults for row in kinds["altering"]),
        "harmless changes": len(kinds["harmless"]),
        "of them taken everywhere": sum(not row.faults for row in kinds["harmless"]),
        "seconds": round(time.monotonic() - began, 1),
        "seed": given.seed,
    }
    print("\n| change | expected | what happened | moved (nats) |\n|---|---|---|---|")
    print("\n".join(_line(row) for row in rows))
    print("\n" + "\n".join(f"{what:32} {value}" for what, value in summary.items()))
    summary["rows"] = [asdict(row) for row in rows]
    return write_summary(given.out, "stale", summary, held=not any(row.faults for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
