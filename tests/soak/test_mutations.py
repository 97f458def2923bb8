"""Short form of the mutation driver: it kills real faults, accepts equivalent mutants, and its list is up to date."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from mutate_targets import FILES, ROOT, equivalent
from mutations import mutants

PROBE = '''"""A module."""
import numpy as np

__all__ = ["share"]
LIMIT: float = 0.5


def share(chosen, rejected, *, strict=True):
    """The text is left alone: 1 + 1."""
    if not chosen > LIMIT:
        raise ValueError(f"chosen is {chosen}: expected more than 1")
    return np.max(chosen, axis=1) / (chosen + rejected[1:])
'''


@pytest.fixture
def probe(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    return tmp_path


def test_each_operator_makes_the_change_that_its_name_says(probe):
    keys = {mutant.key.removeprefix("probe.py: ") for mutant in mutants(probe, "probe.py")}
    assert {
        "share: arithmetic: chosen + rejected[1:] -> chosen - rejected[1:]",
        "share: axis: 1 -> 0",
        "share: function: np.max -> np.min",
        "share: side: chosen -> rejected",
        "share: unary: not chosen > LIMIT -> chosen > LIMIT",
        "share: comparison: chosen > LIMIT -> chosen >= LIMIT",
        "share: condition: not chosen > LIMIT -> True",
        "share: constant: 1 -> 2",
        "share: statement: raise ValueError(f'chosen is {chosen}: expected more than 1') -> pass",
        "share: constant: True -> False",
        "module: constant: 0.5 -> 0.25",
    } <= keys
    assert not [key for key in keys if "left alone" in key.split(": ", 2)[2] or "__all__" in key or "import" in key]


def test_every_mutant_compiles_and_differs_and_has_a_name_of_its_own(probe):
    found = mutants(probe, "probe.py")
    assert len({mutant.key for mutant in found}) == len(found) > 25
    for mutant in found:
        tree = mutant.apply(ast.parse(PROBE))
        compile(tree, "probe.py", "exec")
        assert ast.unparse(tree) != ast.unparse(ast.parse(PROBE)), mutant.key


def test_the_list_of_equivalent_mutants_names_mutants_that_there_are_each_with_a_reason():
    files = [path.relative_to(ROOT).as_posix() for pattern in FILES for path in sorted(ROOT.glob(pattern))]
    there = {mutant.key for file in files for mutant in mutants(ROOT, file)}
    listed = equivalent()
    assert set(listed) <= there
    assert all(len(why) > 20 for why in listed.values())
    assert len(listed) < len(there) / 20


def test_a_handful_of_mutants_is_killed(tmp_path):
    """In a new process, since this one has loaded the modules to be changed."""
    driver = str(Path(__file__).with_name("mutate_targets.py"))
    file = "mrpo_pipeline/targets/weights.py"
    done = subprocess.run(
        [sys.executable, driver, "--files", file, "--tests", "tests/targets/test_targets_by_hand.py",
         "tests/targets/test_validation_weights.py", "--count", "6", "--seed", "3", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "score 100.00% of 6" in done.stdout
