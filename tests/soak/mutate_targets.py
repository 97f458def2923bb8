"""Mutation testing of the targets and the losses: every small fault must make a test fail.

python tests/soak/mutate_targets.py # all of mrpo_pipeline/targets and mrpo_pipeline/losses
python tests/soak/mutate_targets.py --files 'mrpo_pipeline/targets/weights.py' --count 20
python tests/soak/mutate_targets.py --go-on # keep the results of an earlier run

Each mutant runs in a forked child that has the libraries loaded. It replaces one module and runs the tests that reach the
changed statement, fastest first, until one fails. A mutant that no test kills must be in ``equivalent_mutants.yaml`` with
the reason why it computes the same; any other survivor, and any unneeded entry, fails the run. CPU time is limited for each
child, and hypothesis draws the same examples each time.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import glob
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from driver import parser_of, write_summary
from mutations import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
FILES = ("mrpo_pipeline/targets/*.py", "mrpo_pipeline/losses/*.py")
TESTS = ("tests/targets", "tests/losses")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")

FATES = "mutate_targets.fates.json"

# A child that needs more CPU than this many times its tests' time is in an endless loop.
_PATIENCE = 3
_ROUNDS_OF_HYPOTHESIS = 60
KILLED, SURVIVED, TIMED_OUT, BROKEN, SAME = "killed", "survived", "timed out", "broken", "equivalent"


@dataclass(frozen=True)
class Plan:
    """The tests' results on the unchanged code."""

    seconds: dict[str, float]
    """CPU time by test."""
    starting: float
    """CPU time of everything else: importing and collecting all tests."""
    lines: dict[str, dict[str, set[int]]]
    """By file: which tests run which lines, by test."""

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that reach a mutant, fastest first; all tests if none does: the changed code may run on import."""
        reached = self.lines[mutant.file]
        span = set(range(mutant.line, mutant.end_line + 1)) if mutant.line else set()
        names = [name for name, lines in reached.items() if lines & span] or [*self.seconds]
        return sorted(names, key=lambda name: (name not in reached, self.seconds[name]))


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An import finder that gives one module other code."""

    def __init__(self, module: str, path: Path, code: CodeType) -> None:
        self.module, self.path, self.code = module, path, code

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        package = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, self.path, loader=self, submodule_search_locations=package)

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)


class _Chosen:
    """A pytest plugin: only these tests, in this order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.order = {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


class _Traced:
    """A pytest plugin: CPU seconds of each test, and the lines of the mutated files that it runs."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = {str(ROOT / file): file for file in files}
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[str, list[int]]] = {file: {} for file in files}

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> None:
        self.found: dict[str, set[int]] = {}
        self.began = time.process_time()
        sys.settrace(self.trace)

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        sys.settrace(None)
        self.seconds[nodeid] = time.process_time() - self.began
        for file, lines in self.found.items():
            self.lines[file][nodeid] = sorted(lines)

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = self.files.get(frame.f_code.co_filename)
        if file is None:
            return None
        self.found.setdefault(file, set()).add(frame.f_lineno)
        lines = self.found[file]

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            lines.add(frame.f_lineno)
            return local

        return local


def preload(tests: Sequence[str]) -> None:
    """Everything the tests import that no mutant changes, so that a child has it at once."""
    import hypothesis.extra.numpy
    import pydantic  # noqa: F401

    import mrpo_pipeline.errors  # noqa: F401

    if any("losses" in name for name in tests):
        import torch

        torch.set_num_threads(1)
        for name, part in (("trl", "DPOTrainer"), ("trl", "DPOConfig"), ("trl.experimental.cpo", "CPOTrainer")):
            with contextlib.suppress(ImportError, AttributeError):  # imported when it is first used
                getattr(importlib.import_module(name), part)
    profile = hypothesis.settings(
        deadline=None,
        database=None,
        derandomize=True,
        max_examples=_ROUNDS_OF_HYPOTHESIS,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # failures need no shrinking
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.register_profile("mutation", profile)
    hypothesis.settings.load_profile("mutation")
    pytest_in_child(["--collect-only", "-qqq", "--ignore-glob=*", str(Path(__file__).parent)], [])
    gc.collect()
    gc.freeze()
    loaded = [name for name in sys.modules if name.startswith(("mrpo_pipeline.targets", "mrpo_pipeline.losses"))]
    if loaded:
        raise RuntimeError(f"{loaded} are loaded already: a mutant of them would change nothing")


def pytest_in_child(arguments: Sequence[str], plugins: Sequence[Any]) -> int:
    import pytest

    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    quick = ["--assert=plain", "--noconftest", "--tb=no", "--no-header", "-q", "-W", "ignore"]
    off = [
        option
        for name in ("cacheprovider", "unraisableexception", "threadexception")
        for option in ("-p", f"no:{name}")
    ]
    return int(pytest.main([*quick, *off, *arguments], plugins=list(plugins)))


def in_child(work: Callable[[], int], cpu_seconds: float) -> tuple[int, int]:
    """(exit status, signal) of a forked child without output; it is ended if it takes too much CPU."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 2, int(cpu_seconds) + 4))
            status = work()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return (os.waitstatus_to_exitcode(status), 0) if os.WIFEXITED(status) else (0, os.WTERMSIG(status))


def plan_tests(files: Sequence[str], folder: Path, tests: Sequence[str] = TESTS) -> Plan:
    """Run all tests once on the unchanged code.

    Raises:
        RuntimeError: if they fail: a mutant would prove nothing.
    """
    report = folder / "tests.json"

    def work() -> int:
        began = time.process_time()
        traced = _Traced(files)
        status = pytest_in_child(tests, [traced])
        starting = time.process_time() - began - sum(traced.seconds.values())
        report.write_text(json.dumps([traced.seconds, starting, traced.lines]), encoding="utf-8")
        return status

    status, ended_by = in_child(work, 600)
    if status or ended_by:
        raise RuntimeError(
            f"the tests fail on the unchanged code (exit {status}, signal {ended_by}): run pytest {' '.join(tests)}"
        )
    seconds, starting, lines = json.loads(report.read_text(encoding="utf-8"))
    return Plan(seconds, starting, {file: {t: set(found) for t, found in by.items()} for file, by in lines.items()})


def judge(mutant: Mutant, plan: Plan) -> str:
    """Run a mutant's tests in a child; returns its fate."""
    names = plan.tests_of(mutant)
    path = ROOT / mutant.file
    module = ".".join(Path(mutant.file).with_suffix("").parts).removesuffix(".__init__")

    def work() -> int:
        tree = mutant.apply(ast.parse(path.read_text(encoding="utf-8")))
        sys.meta_path.insert(0, _Changed(module, path, compile(tree, str(path), "exec")))
        return pytest_in_child(["-x", *sorted({name.split("::")[0] for name in names})], [_Chosen(names)])

    limit = _PATIENCE * (plan.starting + sum(plan.seconds[name] for name in names)) + 3
    status, ended_by = in_child(work, limit)
    if ended_by in {signal.SIGPROF, signal.SIGXCPU, signal.SIGKILL}:
        return TIMED_OUT
    # 1: a test failed; 2: a test file failed to import; 0: all passed. Anything else is an error of this driver.
    return {0: SURVIVED, 1: KILLED, 2: KILLED}.get(status, BROKEN) if not ended_by else BROKEN


def equivalent() -> dict[str, str]:
    """The equivalent mutants by key, each with the reason."""
    entries = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or []
    return {key: str(entry["because"]) for entry in entries for key in entry["mutants"]}


def judged_before(folder: Path) -> dict[str, str]:
    """The mutants that an earlier run in this folder killed, or that are on the list of equivalent ones, by key.

    Valid only if tests have only been added since.
    """
    path = folder / FATES
    fates: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: fate for key, fate in fates.items() if fate in {KILLED, TIMED_OUT, SAME}}


def run(
    files: Sequence[str],
    *,
    count: int | None,
    seed: int,
    folder: Path,
    go_on: bool = False,
    tests: Sequence[str] = TESTS,
    verbose: bool = True,
) -> dict[str, Any]:
    """Judge all mutants of some files, or this many drawn from them; returns the summary with ``ok``."""
    began = time.monotonic()
    preload(tests)
    folder.mkdir(parents=True, exist_ok=True)
    plan = plan_tests(files, folder, tests)
    everyone = [mutant for file in files for mutant in mutants(ROOT, file)]
    excused = {key: why for key, why in equivalent().items() if key.split(":")[0] in files}
    unknown = sorted(set(excused) - {mutant.key for mutant in everyone})
    drawn = everyone if count is None else random.Random(seed).sample(everyone, min(count, len(everyone)))
    if verbose:
        print(f"{len(drawn)} of {len(everyone)} mutants of {len(files)} files; {len(plan.seconds)} tests", flush=True)
    before = judged_before(folder) if go_on else {}
    fates: dict[str, str] = {}
    for at, mutant in enumerate(drawn, 1):
        fate = before.get(mutant.key) or judge(mutant, plan)
        if fate == SURVIVED and mutant.key in excused:
            fate = SAME
        fates[mutant.key] = fate
        if verbose and fate not in {KILLED, SAME}:
            print(f"{fate.upper()} line {mutant.line}: {mutant.key}", flush=True)
        if verbose and at % 100 == 0:
            print(f"  {at} of {len(drawn)}, {time.monotonic() - began:.0f} s", flush=True)
        if at % 20 == 0 or at == len(drawn):
            (folder / FATES).write_text(json.dumps(before | fates, indent=1), encoding="utf-8")
    operators = {mutant.key: mutant.operator for mutant in drawn}
    table: dict[str, Counter[str]] = {}
    for key, fate in fates.items():
        table.setdefault(operators[key], Counter())[fate] += 1
    wrongly = sorted(key for key in excused if fates.get(key) in {KILLED, TIMED_OUT})
    survivors = sorted(key for key, fate in fates.items() if fate in {SURVIVED, BROKEN})
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seed": seed,
        "files": list(files),
        "mutants": len(drawn),
        "judged_by_an_earlier_run": len(before),
        "by_operator": {name: dict(table[name]) for name in sorted(table)},
        "totals": dict(sum(table.values(), Counter())),
        "survivors": survivors,
        "listed_but_unknown": unknown,
        "listed_but_killed": wrongly,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "seconds": round(time.monotonic() - began),
        "ok": not (survivors or unknown or wrongly),
    }


def print_table(summary: dict[str, Any]) -> None:
    columns = (KILLED, TIMED_OUT, SAME, SURVIVED, BROKEN)
    print("\n" + "operator".ljust(18) + "".join(name.rjust(12) for name in ("mutants", *columns)))
    for name, row in (*summary["by_operator"].items(), ("all", summary["totals"])):
        print(
            name.ljust(18) + "".join(str(n).rjust(12) for n in (sum(row.values()), *(row.get(c, 0) for c in columns)))
        )
    for title in ("survivors", "listed_but_unknown", "listed_but_killed"):
        for key in summary[title]:
            print(f"{title.replace('_', ' ')}: {key}")
    counted = summary["mutants"] - summary["totals"].get(SAME, 0)
    killed = summary["totals"].get(KILLED, 0) + summary["totals"].get(TIMED_OUT, 0)
    score = 100 * killed / counted if counted else 100.0
    print(
        f"score {score:.2f}% of {counted}; {summary['cpu_seconds']} s of CPU, {summary['seconds']} s; seed {summary['seed']}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--files", nargs="+", default=FILES, help="globs, relative to the repository")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="test files or folders that are to kill")
    parser.add_argument("--count", type=int, help="judge so many, drawn at random, instead of all")
    parser.add_argument("--go-on", action="store_true", help="judge only what an earlier run in OUT left open")
    options = parser.parse_args(arguments)
    files = sorted(file for pattern in options.files for file in glob.glob(pattern, root_dir=ROOT))
    if not files:
        parser.error(f"no file matches {' '.join(options.files)}")
    summary = run(
        files, count=options.count, seed=options.seed, folder=options.out, go_on=options.go_on, tests=options.tests
    )
    print_table(summary)
    return write_summary(options.out, "mutate_targets", summary, held=summary["ok"])


if __name__ == "__main__":
    raise SystemExit(main())
