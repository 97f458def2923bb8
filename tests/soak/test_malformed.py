"""Short form of `malformed/run.py`: about ten inputs of every kind, and some changed bytes for every parser."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from malformed import checks, run
from malformed.case import Case
from malformed.server import Outcome, Server

# Of each kind: inputs that reach another parser, or once ended without a message. None takes a second of CPU.
CHOSEN = {
    "recipes": (
        "misspelt method.bet", "method.beta is inf", "training.seed is -1", "compare.sweep is {'beta': [0]}", "a million braces",
        "python object", "bool that is none", "billion laughs", "NUL", "terminal's escape", "a FIFO", "/dev/zero",
        "output over a model", "output over a recipe", "option: beta is a word", "a seed in 100,000 hexadecimal digits",
    ),
    "pairs": (
        "row: no chosen", "row: tool calls", "row: role ends the paragraph", "row: 100,000 objects", "row: a lone surrogate",
        "bytes: not UTF-8", "file: gzip cut short", "file: a list that is never closed", "a FIFO", "/dev/zero",
        "pairs: the same file twice", "Parquet: pages of ones", "Parquet: 5,000 columns",
    ),
    "names": (
        "reference: up and out", "reference: a second paragraph", "reference: Cyrillic a", "reference: aux",
        "cache of a long name", "cache that is a file", "method above", "names that differ in case",
    ),
    "templates": (
        "an unclosed block", "a text of a terabyte", "globals of a function", "one that ignores messages",
        "a FIFO",
    ),
    "models": (
        "a pickle of torch's", "config: layers that are not there", "config: code of its own", "weights: a header of 10 GB",
        "weights: offsets that overlap", "weights: one NaN in a thousand", "an index that leaves the folder", "tokenizer: cut short",
        "adapter: weights of another width",
    ),
    "caches": (
        "manifest: a newer format", "manifest: 100,000 lists", "fingerprint: other weights", "shard: NaN",
        "shard: log-probs that are binary", "shard: a footer of 4 GB", "a manifest that is a FIFO", "a shard that is a link to a device",
    ),
}  # fmt: skip


def chosen_cases() -> list[tuple[str, Case]]:
    every = {(kind, case.name): case for kind, case in run.every_case(0)}
    return [(kind, replace(every[kind, name], started=False)) for kind, names in CHOSEN.items() for name in names]


def test_every_malformed_input_ends_with_one_paragraph_and_nothing_lost(tmp_path: Path) -> None:
    with run.prepared(tmp_path) as (server, world):
        results = [run.run_case(server, world, tmp_path, kind, case) for kind, case in chosen_cases()]
        _parsers_refuse_changed_bytes_in_words(server, tmp_path)
    assert len(results) == 59
    assert [f"{one.kind}/{one.case.name}: {one.faults}" for one in results if one.faults] == []


def test_no_two_cases_are_one_and_there_are_more_than_five_hundred() -> None:
    assert len(run.every_case(0)) >= 500


def _parsers_refuse_changed_bytes_in_words(server: Server, tmp_path: Path) -> None:
    done = server.call("malformed.fuzz:run_into", str(tmp_path), "1", "25", folder=tmp_path, seconds=120)
    assert done.code == 0, done.stderr
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert len(found) == 8 and sum(int(str(one["refused"])) for one in found) > 80
    assert [one for one in found if one["faults"]] == []


CASE = Case("x", lambda place: None, ("audit",), ("recipe.yaml",))
GOOD = Outcome(2, "", "mrpo: recipe.yaml holds a list: expected a map. Correct it.\n", 0.1, 0.1, 1.0, False)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"code": 1}, "exit code 1"),
        ({"code": 0}, "exit code 0"),
        ({"seconds": 11.0}, "11.0 seconds"),
        ({"added_mb": 2000.0}, "2000 MB"),
        ({"stderr": "Traceback (most recent call last):\n" + GOOD.stderr}, "a traceback"),
        ({"stderr": "Error: recipe.yaml\n"}, "no message"),
        ({"stderr": GOOD.stderr.replace("recipe.yaml", "it")}, "'recipe.yaml' is not named"),
        ({"stderr": GOOD.stderr + "\nAnd more.\n"}, "more than one paragraph"),
        ({"stderr": GOOD.stderr.replace("list", "\x1b[31mlist")}, "control characters in the output"),
        ({"stderr": GOOD.stderr.replace("list", "l" * 7000)}, "7055 characters"),
        ({"stderr": "mrpo: recipe.yaml is a list, where a map is expected.\n"}, "does not say what to do"),
        ({"stderr": "mrpo: recipe.yaml. Correct it.\n"}, "does not say what was expected"),
    ],
)
def test_each_check_can_fail(change: dict[str, object], fault: str | None) -> None:
    found = checks.faults(CASE, replace(GOOD, **change), {"a": "1"}, {"a": "1"})  # type: ignore[arg-type]
    assert found == ([] if fault is None else [fault])


def test_what_is_changed_gone_or_left_behind_is_seen() -> None:
    assert checks.lost({"work/a": "1"}, {"work/a": "2"}) == ["changed or gone: work/a"]
    assert checks.lost({"work/a": "1"}, {}) == ["changed or gone: work/a"]
    assert checks.lost({}, {"work/gotcha": "1"}) == ["left behind: work/gotcha"]
    assert checks.lost({}, {"work/cache/base/manifest.json": "1", "work/out/recipe.yaml": "1"}) == []


def test_the_driver_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(run.__file__)), "--help"], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--seed" in done.stdout
