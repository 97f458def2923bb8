"""`docs/recipes.md`, made of the settings themselves: every key, what it takes, its default, and what it is for.

python -m mrpo_pipeline.recipe.docs_page docs/recipes.md
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import get_origin

from pydantic import BaseModel

from mrpo_pipeline.recipe.fields import as_yaml, default_of, keys, model_of, takes
from mrpo_pipeline.recipe.settings import TRAINING_DEFAULTS, Recipe
from mrpo_pipeline.recipe.training_bounds import UNREAD

HEAD = """# The recipe, key by key

<!-- Made by `python -m mrpo_pipeline.recipe.docs_page docs/recipes.md`; write into the settings under mrpo_pipeline instead. -->

One YAML file describes a run, and every command reads the parts it needs. `mrpo recipes` lists the recipes that ship,
`mrpo recipes copy small` gives you one to edit. Options of the command line win over the file: the common keys have options of their
own (`--beta`, `--learning-rate`; see `mrpo COMMAND --help`), and `--set method.trust_region.kind=off` sets any key. A key that is
unknown or ill-typed is an error that names the nearest valid one: no text is taken for a number. A setting that changes nothing
beside the others (ε with the trust region off) is reported, and refused where the command line sets it. The resolved recipe is
written beside every result, nulls included, and gives the same run. A shipped recipe's name is that recipe, whatever else is called
so in the current folder; `./NAME` is the file.
"""


def recipe_reference() -> str:
    """The page, as Markdown."""
    parts = [HEAD, "## Top level\n", _table(Recipe, "")]
    for name, field in Recipe.model_fields.items():
        model = model_of(field.annotation)
        if model is not None:
            prefix = f"{name}.NAME." if get_origin(field.annotation) is dict else f"{name}."
            parts += [f"\n## `{name}`\n", _about(model), _table(model, prefix)]
        elif name == "training":
            parts += ["\n## `training`\n", _training()]
    return "\n".join(part for part in parts if part) + "\n"


def _table(model: type[BaseModel], prefix: str) -> str:
    lines = ["| key | takes | default | |", "|---|---|---|---|"]
    rows = [(name, field) for name, field in keys(model, prefix) if prefix or "." not in name]
    for name, field in rows:
        lines.append(f"| `{name}` | {takes(field)} | {default_of(field)} | {_cell(field.description or '')} |")
    return "\n".join(lines)


def _about(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").replace("``", "`") + "\n"


def _training() -> str:
    """What is ours under ``training``; the rest is transformers'."""
    from mrpo_pipeline.recipe.training import REFUSED, FastPaths

    defaults = ", ".join(f"`{key}: {as_yaml(value)}`" for key, value in TRAINING_DEFAULTS.items())
    lines = [
        "Every key of [`transformers.TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments).",
        f"Where nothing is said, the authors' settings hold in place of transformers' own: {defaults}.",
        "",
        "What makes a step cheap; none of it changes what is computed, and each can be switched off:",
        "",
        "| key | default | |",
        "|---|---|---|",
        *(
            f"| `training.{name}` | {default_of(field)} | {_cell(field.description or '')} |"
            for name, field in FastPaths.model_fields.items()
        ),
    ]
    lines += ["", "These are refused, for what they do does not fit this trainer:", ""]
    lines += [f"- `{key}`: {_cell(reason)}" for key, reason in REFUSED.items()]
    lines += ["", "These change nothing, which is reported where one is given:", ""]
    lines += [f"- `{key}`: {reason}." for key, reason in UNREAD.items()]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def main() -> None:
    Path(sys.argv[1]).write_text(recipe_reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
