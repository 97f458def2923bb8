"""The last lines of a command: where its results are, and the next command to run."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_cli.recipe_options import RecipeOption, options_of

log = logging.getLogger("mrpo")


@dataclass(frozen=True)
class Ending:
    """``results``: where the results are. ``next``: the next command line, or a command's name for the same recipe; "" for none."""

    results: str = ""
    next: str = ""


def report(ending: Ending) -> None:
    """Log where results are and the next command, after all printed output."""
    if os.environ.get("RANK", "0") != "0":
        return
    sys.stdout.flush()
    for title, text in (("Results", ending.results), ("Next", ending.next)):
        if text:
            log.info("%s: %s", title, text)


def with_same_recipe(command: str, recipe_file: Any, options: Sequence[RecipeOption], given: Mapping[str, Any]) -> str:
    """The command line of another command for the same recipe, with the given options that it also has."""
    taken = {option.key for option in options_of(command)}
    words = ["mrpo", *command.split(), *([str(recipe_file)] if recipe_file else [])]
    for option in options:
        if option.key in taken and given.get(option.name) is not None:
            words += option.typed(given[option.name])
    for flag, name in (("--reference", "reference"), ("--set", "set_")):
        words += [word for text in given[name] for word in (flag, text)]
    return shlex.join(words)
