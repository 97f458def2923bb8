"""Python programs started beside this one: none of their modules comes from the folder that the user works in.

``python -m`` puts the current folder first on the module path, and a ``queue.py`` that lies there is run in place of the
standard library's. PYTHONPATH counts as ever.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import mrpo_pipeline

# Python's switch for "no current folder on the module path"; children inherit it, and so do theirs.
SAFE_PATH = "PYTHONSAFEPATH"


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this package."""
    return [sys.executable, "-P", "-m", module, *arguments]


def code_command(code: str) -> list[str]:
    """The command line that runs a line of code."""
    return [sys.executable, "-P", "-c", code]


def child_environment() -> dict[str, str]:
    """This process's environment, for a Python program that it starts."""
    variables = os.environ | {SAFE_PATH: "1", "PYTHONIOENCODING": "utf-8"}
    root = str(Path(mrpo_pipeline.__file__).parents[1])
    if root == os.getcwd():  # the package itself may have been found in the current folder
        before = variables.get("PYTHONPATH")
        variables["PYTHONPATH"] = f"{before}{os.pathsep}{root}" if before else root
    return variables


def forget_current_folder() -> None:
    """Take off the module path the current folder that ``python -m`` put first on it, here and in children to come."""
    os.environ.setdefault(SAFE_PATH, "1")
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
