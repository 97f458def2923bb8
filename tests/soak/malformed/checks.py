"""Checks of how a command with malformed input ended."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from malformed.case import Case
from malformed.server import Outcome

SECONDS = 10.0
ADDED_MB = 1024.0
LONGEST = 6000  # characters of a message; ten bad rows are listed in full

# A message ends with a remedy; `: expected …` is enough if the remedy is to write exactly that.
REMEDY = re.compile(
    r"(?<![\w`])(Correct|Mend|Give|Take|Add|Write|Name|Rename|Set|Make|Check|Check the|Fetch|Restore|Remove|Raise|Lower|Upgrade"
    r"|Install|Load|Score|Run|Leave|Put|Move|Choose|Use|Is this|Try|Delete|Point|Convert|Log in|Download|Fix|Provide|Adjust)\b"
    r"|: (give|mend|take|set|remove|name|rename|raise|lower|score|add|correct|run|load|expected)\b",
    re.IGNORECASE,
)
FOUND = re.compile(
    r"xpected|Unknown key|missing|needs|can't|cannot|is not|are not|holds|lacks|fails|was not computed by|damaged|is given twice"
    r"|no \w+|not there|exceeds|contains|does not|invalid|must",
    re.IGNORECASE,
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# New files that are allowed: scored shards, and the recipe beside results.
OUTPUTS = ("cache/", "out/")


def faults(case: Case, outcome: Outcome, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The violations, one phrase each."""
    found = []
    if outcome.killed:
        found.append("did not end")
    if outcome.code != 2:
        found.append(f"exit code {outcome.code}")
    if outcome.seconds > SECONDS:
        found.append(f"{outcome.seconds:.1f} seconds")
    if outcome.added_mb > ADDED_MB:
        found.append(f"{outcome.added_mb:.0f} MB")
    return found + said(outcome, case.names) + lost(before, after)


def said(outcome: Outcome, names: tuple[str, ...]) -> list[str]:
    """Violations in the message: a traceback, several paragraphs, or a missing part (what, where, expected, remedy)."""
    found = []
    everything = outcome.stdout + outcome.stderr
    if "Traceback" in everything:
        found.append("a traceback")
    text = message(outcome.stderr)
    if text is None:
        return [*found, "no message"]
    if CONTROLS.search(everything):
        found.append("control characters in the output")
    if "\n\n" in text.strip():
        found.append("more than one paragraph")
    if len(text) > LONGEST:
        found.append(f"{len(text)} characters")
    found += [f"{name!r} is not named" for name in names if name not in text]
    if text.endswith("╯"):  # typer's own messages about options
        return found
    if not FOUND.search(text):
        found.append("does not say what was expected")
    if not REMEDY.search(text):
        found.append("does not say what to do")
    return found


def message(stderr: str) -> str | None:
    """The paragraph that the command ended with; typer's own box counts as one."""
    said = re.search(r"^mrpo: .*", stderr, re.MULTILINE | re.DOTALL)
    if said:
        return said[0].strip()
    box = re.search(r"^(Usage: .*\n.*\n)?╭─ Error ─.*", stderr, re.MULTILINE | re.DOTALL)
    return box[0].strip() if box else None


def lost(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Files changed, removed, or left where nothing may be."""
    changed = [name for name, state in before.items() if after.get(name) != state]
    new = [name for name in after if name not in before and not name.removeprefix("work/").startswith(OUTPUTS)]
    told = [f"changed or gone: {', '.join(changed[:3])}"] if changed else []
    return told + ([f"left behind: {', '.join(new[:3])}"] if new else [])


def snapshot(root: Path) -> dict[str, str]:
    """State of every file under a folder, by path: content of small ones, size and time of large ones."""
    states = {}
    for folder, _, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            state = f"{info.st_mode:o} {info.st_size}"
            if os.path.islink(path):
                state += f" {os.readlink(path)}"
            elif os.path.isfile(path):
                if info.st_size > 1 << 20:
                    state += f" {info.st_mtime_ns}"
                else:
                    with open(path, "rb") as file:
                        state += f" {hashlib.sha256(file.read()).hexdigest()}"
            states[os.path.relpath(path, root)] = state
    return states
