"""Start Python processes that import no module from the current folder.

``python -m`` puts the current folder first on the module path, where a ``queue.py`` would replace the standard library's. PYTHONPATH
is respected.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mrpo_pipeline

# Python's variable for "no current folder on the module path"; inherited by all child processes.
SAFE_PATH = "PYTHONSAFEPATH"


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this package."""
    return [sys.executable, "-P", "-m", module, *arguments]


def code_command(code: str) -> list[str]:
    """The command line that runs this code."""
    return [sys.executable, "-P", "-c", code]


def child_environment() -> dict[str, str]:
    """The environment of a child Python process."""
    variables = os.environ | {SAFE_PATH: "1", "PYTHONIOENCODING": "utf-8"}
    root = str(Path(mrpo_pipeline.__file__).parents[1])
    if root == os.getcwd():  # the package itself was imported from the current folder
        before = variables.get("PYTHONPATH")
        variables["PYTHONPATH"] = f"{before}{os.pathsep}{root}" if before else root
    return variables


def forget_current_folder() -> None:
    """Remove the current folder, put there by ``python -m``, from the module path of this process and its children."""
    os.environ.setdefault(SAFE_PATH, "1")
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
