"""Output of commands in real processes: through pipes that close, in encodings that lack letters, on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

MRPO = [sys.executable, "-P", "-c", "from mrpo_cli.main import main; main()"]
HOSTILE = "a\x1b[2Jb\x1b]52;c;cm0=\x07c\x1b]8;;http://x\x1b\\d\x9b31me\u202ef\rg\bh\x7fi\u2066j\u2028k"
LIVE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u200e\u200f]")


def run(*arguments: str, program: str | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-c", program] if program else [*MRPO, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True)


def on_a_terminal(command: list[str]) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "400"}
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last process that had it open has closed it
            break
        if not part:
            break
        written += part
    process.wait()
    os.close(ours)
    return written.decode()


@pytest.mark.parametrize(
    "arguments", [("plan", HOSTILE + ".yaml"), ("recipes", "copy", HOSTILE), ("cache", "list", HOSTILE)]
)
def test_names_of_others_move_no_cursor(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    text = (done.stdout + done.stderr).decode()
    assert done.returncode and "\\x1b" in text and not LIVE.search(text), text
    assert not re.search(r"\x1b(?!\[[0-9;]*m)|[\x9b\u202e\x08]", on_a_terminal([*MRPO, *arguments]))


@pytest.mark.parametrize("arguments", [("--no-such-" + HOSTILE,), (HOSTILE,), ("report", "a", HOSTILE)])
def test_what_was_typed_wrongly_moves_no_cursor(arguments: tuple[str, ...]) -> None:
    assert not re.search(r"\x1b(?!\[[0-9;]*m)|[\x9b\u202e\x08]", on_a_terminal([*MRPO, *arguments]))


BAR = f"""
from mrpo_pipeline.terminal import guard_output
guard_output()
from mrpo_pipeline.terminal import show_messages, track
import logging
show_messages()
with track({HOSTILE!r} + "[/red]", 3, "runs") as bar:
    for _ in range(3):
        bar.advance(1)
        print({HOSTILE!r})
        logging.getLogger("mrpo").info("%s", {HOSTILE!r})
"""


def test_a_bar_and_what_is_printed_beside_it_hold_no_sequence_but_the_bars_own() -> None:
    written = on_a_terminal([sys.executable, "-P", "-c", BAR])
    left = re.sub(r"\x1b\[(?:[0-9;]*m|[0-9]*A|2K|\?25[lh])|\r", "", written)
    assert not LIVE.search(left), left
    assert "3/3" in left and "[/red]" in left


def test_a_bar_is_gone_from_the_terminal_when_its_work_is_done() -> None:
    written = on_a_terminal([sys.executable, "-P", "-c", BAR])
    last = written.rindex("3/3")
    assert "\x1b[2K" in written[last:]  # the line that held it is erased


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict", "utf-8"])
def test_an_encoding_that_lacks_letters_ends_nothing_and_json_stays_json(encoding: str) -> None:
    program = f"""
import json
from mrpo_pipeline.terminal import guard_output
guard_output()
print(json.dumps({{"text": "日本語 é 😀 \\u2026 " + {HOSTILE!r} + chr(0xd800)}}, ensure_ascii=False))
"""
    done = run(program=program, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.decode(encoding.partition(":")[0]))["text"]
    assert found == "日本語 é 😀 … " + HOSTILE + "\ud800"
    assert run("--help", PYTHONIOENCODING=encoding).returncode == 0
    assert run("recipes", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0").returncode == 0


WORK = """
import sys
from mrpo_pipeline.terminal import guard_output
guard_output()
import logging
from mrpo_pipeline.terminal import show_messages
show_messages()
for number in range(20000):
    print("a line of a long table", number)
    print("and another", file=sys.stderr, flush=True)
    logging.getLogger("mrpo").info("message")
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("which", ["stdout", "stderr", "both", "closed"])
def test_a_reader_that_goes_does_not_end_the_work(tmp_path, which: str) -> None:
    end = {
        "stdout": "2>/dev/null | head -1",
        "stderr": "2>&1 >/dev/null | head -1",
        "both": "2>&1 | head -1",
        "closed": ">&- 2>&-",
    }
    shell = f'("$0" -P -c "$1" "$2"; echo $? > "$2.code") {end[which]}'
    subprocess.run(["sh", "-c", shell, sys.executable, WORK, str(tmp_path / "done")], check=True, capture_output=True)
    assert (tmp_path / "done").read_text() == "done"
    assert (tmp_path / "done.code").read_text() == "0\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_result_that_could_not_be_printed_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MRPO, "recipes"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and b"No space left" in done.stderr and b"Traceback" not in done.stderr
