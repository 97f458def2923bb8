"""Commands that take a recipe: its file, options that set its keys, `--reference` and `--set`."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mrpo_cli.closing_lines import Ending, report, with_same_recipe
from mrpo_cli.option_values import value_of
from mrpo_cli.recipe_options import COMMANDS, POLICY_PANEL, RecipeOption, options_of, parameter
from mrpo_pipeline.errors import UserError

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Method, Recipe

log = logging.getLogger("mrpo")


def takes_recipe(
    name: str,
    *,
    needs: Sequence[str] = (),
    default_recipe: Callable[[Mapping[str, Any]], Path | None] = lambda given: None,
) -> Callable[[Callable[..., Ending | None]], Callable[..., None]]:
    """Add the recipe argument, ``--set``, ``--reference`` and the recipe options of ``name`` to a command.

    The command gets the validated recipe as its first argument. A parameter ``overrides`` gets the command-line settings by
    dotted key, a parameter ``chosen_references`` the ``--reference`` options without a model. The command returns an ``Ending``;
    if its ``next`` is the name of a command, it becomes that command's line for the same recipe.

    Args:
        needs: what the recipe must name: ``references``, ``target`` (the references that its method reads), ``pairs`` (whose
            local files must exist), ``policy``. It is checked before anything heavy is imported.
        default_recipe: gives the recipe's file from the command's arguments if none is named.
    """

    def decorate(command: Callable[..., Ending | None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = list(signature.parameters.values())[1:]
        # A command's own option replaces the recipe's: `mrpo targets --split` names the recipe's split to write.
        options = [option for option in options_of(name) if option.name not in signature.parameters]

        @functools.wraps(command)
        def wrapped(recipe_file: str | Path | None = None, **given: Any) -> None:
            texts = given["reference"]
            if "chosen_references" in signature.parameters:
                given["chosen_references"] = [text for text in texts if "=" not in text]
                texts = [text for text in texts if "=" in text]
            file = default_recipe(given) if recipe_file is None else recipe_file
            recipe, overrides = _load(file, options, given, texts)
            _require(recipe, needs if not given.get("tasks_only") else ())
            arguments = {one.name: given[one.name] for one in own if one.name != "overrides"}
            if len(arguments) < len(own):
                arguments["overrides"] = overrides
            ending = command(recipe, **arguments) or Ending()
            following = ending.next
            if following in COMMANDS:
                following = with_same_recipe(following, file, options, {**given, "reference": texts})
            report(Ending(ending.results, following))

        shown = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for one in own
            if one.name not in ("overrides", "chosen_references")
        ]
        parameters = [_RECIPE, *shown, _SET, *map(parameter, options), _REFERENCE]
        wrapped.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapped

    return decorate


def _names(incomplete: str) -> list[str]:
    from mrpo_pipeline.recipe import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


_RECIPE = inspect.Parameter(
    "recipe_file", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None,
    annotation=Annotated[Optional[str], typer.Argument(metavar="RECIPE", help="A YAML file, or a shipped recipe's name.", show_default=False, autocompletion=_names)],  # noqa: E501, UP045
)  # fmt: skip
_REFERENCE = inspect.Parameter(
    "reference", inspect.Parameter.KEYWORD_ONLY, default=[],
    annotation=Annotated[list[str], typer.Option("--reference", metavar="NAME=MODEL", help="A reference; the first is the anchor. May be repeated.", show_default=False, rich_help_panel=POLICY_PANEL)],  # noqa: E501
)  # fmt: skip
_SET = inspect.Parameter(
    "set_", inspect.Parameter.KEYWORD_ONLY, default=[],
    annotation=Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe: --set method.normalize=token. May be repeated.", show_default=False)],  # noqa: E501
)  # fmt: skip


def _load(
    recipe_file: str | Path | None, options: Sequence[RecipeOption], given: Mapping[str, Any], references: list[str]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, and the settings of the options by dotted key."""
    from mrpo_pipeline.recipe import load_recipe, parse_value

    typed = [option for option in options if given.get(option.name) is not None]
    overrides = {option.key: value_of(option.key, given[option.name]) for option in typed}
    named = {option.key: option.flag.partition("/")[0] for option in typed}
    for text in references:
        name, separator, model = text.partition("=")
        if not (separator and name and model):
            raise UserError(f"--reference is {text!r}: expected NAME=MODEL, such as base=my-model. Correct the option.")
        if "." in name:
            raise UserError(
                f"--reference names {name!r}: expected a name without a dot on the command line. Leave the dot out, or name it in a "
                "recipe."
            )
        key = f"references.{name}.model"
        if key in overrides:
            raise UserError(
                f"--reference names {name} twice, as {overrides[key]} and as {model}: expected a different name for each "
                "reference. Rename one."
            )
        overrides[key], named[key] = model, "--reference"
    for text in given["set_"]:
        key, separator, value = text.partition("=")
        if not (separator and key):
            raise UserError(f"--set is {text!r}: expected KEY=VALUE, such as method.beta=0.2. Correct the option.")
        overrides[key], named[key] = parse_value(value), "--set"
    file = None if recipe_file is None else _find_recipe(str(recipe_file))
    return load_recipe(file, overrides, options=named), overrides


def _find_recipe(name: str) -> Path:
    """The recipe's file. The name of a shipped recipe means that recipe even if a file has it (``./paper`` is the file)."""
    from mrpo_pipeline.recipe import shipped_recipes

    shipped = shipped_recipes().get(name)
    if shipped is not None and os.path.isfile(name):
        log.warning("%s is the shipped recipe; the file of that name in this folder is ./%s.", name, name)
    return shipped or Path(name)


def _require(recipe: Recipe, needs: Sequence[str]) -> None:
    """Refuse a recipe that lacks what the command needs, or names pairs files that do not exist."""
    for need in needs:
        if need == "references" or (need == "target" and recipe.method.has_reference):
            recipe.sources()
        elif need == "target":
            continue
        elif need == "policy":
            recipe.required_policy()
        else:
            from mrpo_pipeline.pairs.sources import require_local_files

            for source in recipe.pairs.required_sources():
                require_local_files(source.place, **source.chosen)


def report_ignored(recipe: Recipe, overrides: dict[str, Any], methods: Sequence[Method] = ()) -> None:
    """Refuse settings of the command line that have no effect, and report those of the recipe.

    Raises:
        UserError: naming the first one and the reason.
    """
    from mrpo_pipeline.recipe.without_effect import ignored_settings, refuse_ignored

    refuse_ignored(recipe, overrides, methods)
    for key, reason in ignored_settings(recipe, methods).items() if os.environ.get("RANK", "0") == "0" else ():
        log.warning("%s has no effect: %s.", key, reason)


def report_unread(overrides: dict[str, Any], command: str, keys: Sequence[str]) -> None:
    """Report settings of the command line that the command does not read."""
    for key in keys:
        if key in overrides:
            log.warning("%s has no effect on %s.", key, command)
