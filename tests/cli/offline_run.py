"""Script of test_security: the main commands, one after another, with every connection refused.

python offline_run.py FOLDER (which holds recipe.yaml, models and pairs)

Prints one JSON object: the exit code of each command, and attempts to reach a network.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

COMMANDS = (
    ("plan", "recipe.yaml"),
    ("score-refs", "recipe.yaml"),
    ("cache", "verify", "recipe.yaml", "--check", "1"),
    ("audit", "recipe.yaml"),
    ("targets", "recipe.yaml", "--output", "targets.parquet"),
    ("train", "recipe.yaml"),
    ("evaluate", "recipe.yaml"),
    ("merge", "out", "--output", "merged"),
)
ASKING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")


def main() -> None:
    os.chdir(sys.argv[1])
    for name in [name for name in os.environ if name.startswith(("HF_", "TRANSFORMERS_")) or name == "DO_NOT_TRACK"]:
        del os.environ[name]
    asked: list[str] = []

    def refuse(event: str, given: tuple[Any, ...]) -> None:
        if event not in ASKING:
            return
        address = given[1] if event in ("socket.connect", "socket.sendto") else given[:2]
        if isinstance(address, (str, bytes)):  # a socket in the file system, between processes of this machine
            return
        asked.append(f"{event} {address}")
        raise ConnectionRefusedError(f"no network here: {address}")

    sys.addaudithook(refuse)
    from mrpo_cli.main import main as command

    codes = {}
    for arguments in COMMANDS:
        sys.argv = ["mrpo", *arguments]
        try:
            command()
        except SystemExit as leaving:
            codes[" ".join(arguments)] = leaving.code or 0
    Path("asked.json").write_text(json.dumps({"codes": codes, "asked": asked}), encoding="utf-8")


if __name__ == "__main__":
    main()
