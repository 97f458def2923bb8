"""Writes are atomic, and the next writer removes what a killed one left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from mrpo_pipeline.files.atomic import whole_file, write_whole, write_whole_json

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from mrpo_pipeline.files.atomic import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_error_while_writing_keeps_the_previous_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "result.json"
    write_whole_json(target, {"a": 1})
    with suppress(KeyboardInterrupt), whole_file(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == '{\n "a": 1\n}'
    assert [path.name for path in target.parent.iterdir()] == ["result.json"]


def test_leftovers_of_a_killed_writer_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_whole(target, "old")
    write_whole(tmp_path / ".result.json-notes", "mine")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old" and len(os.listdir(tmp_path)) == 3
    write_whole(target, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "result.json": "new",
        ".result.json-notes": "mine",
    }
