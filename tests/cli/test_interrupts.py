"""Ctrl-C and SIGTERM end a command cleanly at any time: exit code 130, one line, no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A fake command: `work` is its body, with signals raised at a chosen instant.
COMMAND = """
import os, signal, sys, time
import mrpo_cli.commands
from mrpo_cli.main import main

def app(**options):
    {work}

mrpo_cli.commands.app = app
main()
"""


def run(work: str, **options: object) -> subprocess.CompletedProcess[str]:
    indented = work.strip().replace("\n", "\n    ")
    return subprocess.run(
        [sys.executable, "-c", COMMAND.format(work=indented)],
        capture_output=True, text=True, check=False, timeout=60, **options,  # type: ignore[call-overload]
    )  # fmt: skip


LOST_IN_A_FINALIZER = """
class Closed:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        [None for _ in range(10)]

Closed()
time.sleep(30)
print('went on')
"""
CAUGHT_BY_A_LIBRARY = """
try:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(1)
except:
    pass
time.sleep(30)
print('went on')
"""
TURNED_INTO_ANOTHER = """
try:
    signal.raise_signal(signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    raise RuntimeError('a library gave up') from None
"""
FINISHED_ALL_THE_SAME = """
try:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(1)
finally:
    time.sleep(1.2)
    print('closed in peace')
"""


@pytest.mark.parametrize(
    "work",
    [LOST_IN_A_FINALIZER, CAUGHT_BY_A_LIBRARY, TURNED_INTO_ANOTHER, FINISHED_ALL_THE_SAME],
    ids=["finalizer", "caught", "turned", "closing"],
)
def test_a_signal_ends_the_command_wherever_it_strikes(work: str) -> None:
    began = time.monotonic()
    done = run(work)
    assert done.returncode == 130, done.stderr
    assert "mrpo: interrupted." in done.stderr and "Traceback" not in done.stderr
    assert "went on" not in done.stdout and time.monotonic() - began < 20
    assert ("closed in peace" in done.stdout) == (work is FINISHED_ALL_THE_SAME)


def test_a_command_in_the_background_of_a_script_hears_sigterm() -> None:
    """A shell without job control starts the command with SIGINT ignored."""
    work = "signal.raise_signal(signal.SIGINT)\nprint('deaf')\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(30)"
    done = run(work, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (130, "deaf\n") and "mrpo: interrupted." in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_while_the_command_is_loaded_ends_it_without_a_traceback(sent: signal.Signals) -> None:
    script = f"""
import os, signal, sys
from mrpo_cli.main import main

class Loads:
    def find_spec(self, name, path=None, target=None):
        if name == 'typer':
            signal.raise_signal({int(sent)})

sys.meta_path.insert(0, Loads())
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "mrpo: interrupted before the command began.\n"


def test_an_error_of_no_signal_keeps_its_own_ending() -> None:
    told = run("from mrpo_pipeline.errors import RunError\nraise RunError('the disk is full')")
    assert told.returncode == 1 and told.stderr == "mrpo: the disk is full\n"
    assert run("raise RuntimeError('a fault')").returncode == 1


@pytest.mark.parametrize(
    ("command", "advice"),
    [("train", " (add --resume)"), ("train --resume", ""), ("compare", ""), ("score-refs", "")],
)
def test_only_commands_that_resume_by_an_option_name_it(command: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").touch()
    script = f"""
import signal, sys, types
from mrpo_cli.main import main

def interrupted(*_, **__):
    signal.raise_signal(signal.SIGINT)

for module, name in (
    ('policy.run', 'train_recipe'), ('policy.distributed', 'rank'), ('compare', 'compare_recipe'), ('scoring', 'score_references')
):
    sys.modules[f'mrpo_pipeline.{{module}}'] = types.SimpleNamespace(**{{name: interrupted, 'contenders': interrupted}})
sys.argv = ['mrpo', *{command!r}.split(), *'--train-file pairs.jsonl --model m --reference a=m --reference b=m'.split()]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 130
    last = "interrupted. What was finished is kept; run the same command again to resume"
    assert done.stderr == f"mrpo: {last}{advice}.\n"
