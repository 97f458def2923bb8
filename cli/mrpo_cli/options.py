"""The options that commands share: each one is a recipe key under the name Hugging Face users know it by."""

from __future__ import annotations

import functools
import glob
import inspect
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mrpo_pipeline.errors import UserError

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Method, Recipe

log = logging.getLogger("mrpo")


@dataclass(frozen=True)
class RecipeOption:
    """A command-line option and the dotted recipe key that it sets."""

    flag: str
    key: str
    type: type
    help: str


PAIRS = (
    RecipeOption("--train-file", "pairs.train", str, "Training pairs: file, folder, glob, URL or org/name of the hub."),
    RecipeOption("--eval-file", "pairs.eval", str, "Held-out pairs."),
    RecipeOption("--split", "pairs.split", str, "The split of a data set to train on."),
    RecipeOption("--eval-split", "pairs.eval_split", str, "The split of a data set to evaluate on."),
    RecipeOption("--subset", "pairs.subset", str, "The subset of a data set to train on."),
    RecipeOption("--eval-subset", "pairs.eval_subset", str, "The subset of a data set to evaluate on."),
    RecipeOption("--eval-fraction", "pairs.eval_fraction", float, "Hold this share of the prompts out."),
    RecipeOption(
        "--weights-fraction", "pairs.weights_fraction", float, "And so many for weights that look at held-out pairs."
    ),
    RecipeOption(
        "--layout", "pairs.layout", str, "A known set's columns: auto, as-is, or a name of `mrpo recipes layouts`."
    ),
    RecipeOption("--strings", "pairs.strings", str, "How strings are read: text (raw) or messages."),
    RecipeOption("--on-bad-row", "pairs.on_bad_row", str, "error (stop) or skip (count and go on)."),
    RecipeOption("--model", "policy.model", str, "The policy's start: folder or hub name."),
    RecipeOption("--cache", "cache", str, "The reference cache."),
    RecipeOption("--max-prompt-length", "limits.max_prompt_length", int, "In the policy's tokens."),
    RecipeOption("--max-length", "limits.max_length", int, "Prompt and completion, in the policy's tokens."),
)
ANCHOR = (
    RecipeOption(
        "--check-anchor/--no-check-anchor",
        "policy.check_anchor",
        bool,
        "Compare the policy's start with the cached anchor, or let it start elsewhere.",
    ),
)
SCORING = (
    RecipeOption("--engine", "scoring.engine", str, "auto, vllm or transformers."),
    RecipeOption("--runtime", "scoring.runtime", str, "local (this machine) or ray (the cluster Ray is connected to)."),
    RecipeOption("--workers", "scoring.workers", int, "Processes that score: a GPU, or a share of the cores, each."),
    RecipeOption("--check", "scoring.check", int, "Compute so many completions again by transformers, and compare."),
)
METHOD = (
    RecipeOption("--method", "method.name", str, "mrpo, multi-dpo or dpo."),
    RecipeOption("--aggregate", "method.aggregate", str, "harmonic, geometric, arithmetic or single:NAME."),
    RecipeOption(
        "--weights",
        "method.weights",
        str,
        "uniform, adaptive, validation-discrimination, validation-accuracy, sliding-window, thompson, or numbers: 0.5,0.3,0.2.",
    ),
    RecipeOption("--trust-region", "method.trust_region.kind", str, "adaptive, fixed or off."),
    RecipeOption("--epsilon", "method.trust_region.epsilon", float, "The trust region's width."),
    RecipeOption("--beta", "method.beta", float, "The KL strength."),
    RecipeOption("--loss-type", "method.loss", str, "sigmoid, hinge, ipo, minor-dpo, mpo or modpo."),
    RecipeOption("--label-smoothing", "method.label_smoothing", float, "For the sigmoid loss."),
    RecipeOption("--sft-weight", "method.sft_weight", float, "Weight of the NLL of the chosen side."),
)
LOSS_KEYS = ("method.beta", "method.loss", "method.label_smoothing", "method.sft_weight")
OUTPUT = (RecipeOption("--output-dir", "output_dir", str, "Where results go."),)
TASKS = (
    RecipeOption(
        "--tasks", "evaluation.tasks", str, "Downstream tasks, by lm-evaluation-harness's names: gsm8k,ifeval."
    ),
    RecipeOption("--tasks-limit", "evaluation.tasks_limit", float, "Documents of each task, or a share below 1."),
    RecipeOption("--num-fewshot", "evaluation.num_fewshot", int, "Examples before each question."),
    RecipeOption("--include-path", "evaluation.include_path", str, "A folder with YAML files of further tasks."),
    RecipeOption("--tasks-batch-size", "evaluation.tasks_batch_size", str, "Requests at a time, or auto."),
    RecipeOption("--chat-template", "evaluation.chat_template", bool, "Ask tasks through the chat template."),
)
TRAINING = (
    RecipeOption("--lora-r", "policy.lora.r", int, "Rank of the adapters."),
    RecipeOption("--lora-alpha", "policy.lora.alpha", float, "Scale of the adapters."),
    RecipeOption("--lora-dropout", "policy.lora.dropout", float, "Dropout of the adapters."),
    RecipeOption("--lora-target-modules", "policy.lora.target_modules", str, "all-linear, or names: q_proj,v_proj."),
    RecipeOption("--learning-rate", "training.learning_rate", float, "Peak learning rate."),
    RecipeOption("--num-train-epochs", "training.num_train_epochs", float, "Epochs."),
    RecipeOption("--max-steps", "training.max_steps", int, "Optimizer steps; wins over epochs."),
    RecipeOption("--per-device-train-batch-size", "training.per_device_train_batch_size", int, "Pairs a micro-batch."),
    RecipeOption("--gradient-accumulation-steps", "training.gradient_accumulation_steps", int, "Micro-batches a step."),
    RecipeOption("--warmup-steps", "training.warmup_steps", float, "Steps, or a share below 1."),
    RecipeOption("--logging-steps", "training.logging_steps", float, "Steps between log lines."),
    RecipeOption("--eval-strategy", "training.eval_strategy", str, "no, steps or epoch."),
    RecipeOption("--eval-steps", "training.eval_steps", float, "Steps between evaluations."),
    RecipeOption("--save-steps", "training.save_steps", float, "Steps between checkpoints."),
    RecipeOption("--report-to", "training.report_to", str, "none, tensorboard or wandb."),
    RecipeOption("--seed", "training.seed", int, "Seed of the batches and of the adapters' start."),
)
COMPARE = (
    RecipeOption("--seeds", "compare.seeds", str, "The seeds, in place of the recipe's: 0,1,2."),
    RecipeOption(
        "--processes", "compare.processes", str, "Runs at a time: a number, or auto for what the machine carries."
    ),
)
LISTS = {"method.weights", "policy.lora.target_modules", "pairs.train", "pairs.eval"}
ALWAYS_LISTS = {"compare.seeds"}
# Options that take a number or a word.
NUMBER_OR_WORD = {"compare.processes", "evaluation.tasks_batch_size"}


def _split(key: str, value: Any) -> Any:
    """``a,b`` as a list where the recipe takes one; ``a`` too where it takes nothing else."""
    from mrpo_pipeline.recipe import parse_value

    if key in NUMBER_OR_WORD:
        return parse_value(value)
    if key not in ALWAYS_LISTS and not (key in LISTS and "," in str(value)):
        return value
    parts = [part.strip() for part in str(value).split(",")]
    if key.startswith("pairs."):
        return parts if all(map(_is_source, parts)) and not _is_source(value) else value
    return [parse_value(part) for part in parts]


def _is_source(name: str) -> bool:
    """Whether pairs could come from a source of this name. A comma may belong to the name of a file or to a URL."""
    if "://" in name or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return "," not in name
    return os.path.exists(os.path.expanduser(name)) or bool(glob.glob(os.path.expanduser(name), recursive=True))


def takes_recipe(
    *groups: tuple[RecipeOption, ...], default_recipe: Callable[[Mapping[str, Any]], Path | None] = lambda given: None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the recipe argument, ``--set``, ``--reference`` and groups of recipe options.

    The command itself receives the checked recipe as its first argument; and, where it has a parameter ``overrides``, what
    the command line sets, by the recipe's dotted keys; a parameter ``chosen_references`` gets the ``--reference`` options that
    are a name alone. ``default_recipe`` gives the recipe's file where none is named, from the command's arguments.
    """
    every = {option.flag.partition("/")[0][2:].replace("-", "_"): option for group in groups for option in group}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = list(signature.parameters.values())[1:]
        # `mrpo targets --split` is the part of the recipe's pairs to write; the data set's split is `--set pairs.split=NAME` there.
        options = {name: option for name, option in every.items() if name not in signature.parameters}
        keyword = inspect.Parameter.KEYWORD_ONLY
        added = [
            inspect.Parameter(
                "recipe_file",
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None,
                annotation=Annotated[Optional[str], typer.Argument(metavar="[RECIPE]", help="A YAML file, or a shipped recipe's name.", show_default=False)],  # noqa: E501, UP045
            ),
            *(
                inspect.Parameter(
                    name, keyword, default=None,
                    annotation=Annotated[Optional[option.type], typer.Option(option.flag, help=option.help, show_default=False)],  # noqa: UP045
                )
                for name, option in options.items()
            ),
            inspect.Parameter(
                "reference", keyword, default=[],
                annotation=Annotated[list[str], typer.Option("--reference", metavar="NAME=MODEL", help="A reference; the first is the anchor. May be repeated.", show_default=False)],  # noqa: E501
            ),
            inspect.Parameter(
                "set_", keyword, default=[],
                annotation=Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key: --set method.trust_region.kind=off.", show_default=False)],  # noqa: E501
            ),
        ]  # fmt: skip

        @functools.wraps(command)
        def wrapped(recipe_file: str | Path | None = None, **given: Any) -> None:
            overrides = {
                options[name].key: _split(options[name].key, given[name])
                for name in options
                if given.get(name) is not None
            }
            if "chosen_references" in signature.parameters:
                given["chosen_references"] = [text for text in given["reference"] if "=" not in text]
                given["reference"] = [text for text in given["reference"] if "=" in text]
            file = default_recipe(given) if recipe_file is None else recipe_file
            recipe = _load(file, overrides, given["reference"], given["set_"])
            arguments = {parameter.name: given[parameter.name] for parameter in own if parameter.name != "overrides"}
            if len(arguments) < len(own):
                arguments["overrides"] = overrides
            command(recipe, **arguments)

        shown = [p.replace(kind=keyword) for p in own if p.name not in ("overrides", "chosen_references")]
        parameters = [added[0], *shown, *added[1:]]
        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def _load(recipe_file: str | Path | None, overrides: dict[str, Any], references: list[str], sets: list[str]) -> Recipe:
    from mrpo_pipeline.recipe import load_recipe, parse_value

    for text in references:
        name, separator, model = text.partition("=")
        if not (separator and name and model):
            raise UserError(f"--reference is {text!r}: expected NAME=MODEL, such as base=my-model. Correct the option.")
        if "." in name:
            raise UserError(
                f"--reference names {name!r}: on the command line a name has no dot. Leave the dot out, or name it in a recipe."
            )
        key = f"references.{name}.model"
        if key in overrides:
            raise UserError(
                f"--reference names {name} twice, as {overrides[key]} and as {model}: expected a name of its own for each "
                "reference. Rename one."
            )
        overrides[key] = model
    for text in sets:
        key, separator, value = text.partition("=")
        if not (separator and key):
            raise UserError(f"--set is {text!r}: expected KEY=VALUE, such as method.beta=0.2. Correct the option.")
        overrides[key] = parse_value(value)
    return load_recipe(None if recipe_file is None else _find_recipe(str(recipe_file)), overrides)


def _find_recipe(name: str) -> Path:
    """The recipe's file: a shipped recipe's where the name is one, whatever else is called so here (``./paper`` is the file)."""
    from mrpo_pipeline.recipe import shipped_recipes

    shipped = shipped_recipes().get(name)
    if shipped is not None and os.path.isfile(name):
        log.warning("%s is the recipe that ships; the file of that name here is ./%s.", name, name)
    return shipped or Path(name)


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
