"""Options that set keys of the recipe. Their types, defaults, choices and help come from the recipe's settings."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Optional

import typer

from mrpo_cli.option_values import simple_types


@dataclass(frozen=True)
class RecipeOption:
    """A command-line option and the dotted recipe key that it sets."""

    flag: str
    key: str
    about: str = ""
    """Replaces the key's description in the help."""

    @property
    def name(self) -> str:
        return self.flag.partition("/")[0][2:].replace("-", "_")

    def typed(self, value: Any) -> list[str]:
        """The option as it is typed."""
        return [self.flag.split("/")[not value]] if isinstance(value, bool) else [self.flag, str(value)]


# Options of commands that set no key of the recipe.
SPLIT = typer.Option("--split", help="train or eval.")
PRIVATE = typer.Option("--private", help="Create a private data set on the hub.")

PAIRS = (
    RecipeOption("--train-file", "pairs.train"),
    RecipeOption("--eval-file", "pairs.eval"),
    RecipeOption("--split", "pairs.split"),
    RecipeOption("--eval-split", "pairs.eval_split"),
    RecipeOption("--subset", "pairs.subset"),
    RecipeOption("--eval-subset", "pairs.eval_subset"),
    RecipeOption("--eval-fraction", "pairs.eval_fraction"),
    RecipeOption("--weights-fraction", "pairs.weights_fraction"),
    RecipeOption("--layout", "pairs.layout"),
    RecipeOption("--strings", "pairs.strings"),
    RecipeOption("--on-bad-row", "pairs.on_bad_row"),
    RecipeOption("--model", "policy.model", "The policy's start: a folder or a hub name."),
    RecipeOption("--cache", "cache"),
    RecipeOption("--max-prompt-length", "limits.max_prompt_length"),
    RecipeOption("--max-length", "limits.max_length"),
)
ANCHOR = (RecipeOption("--check-anchor/--no-check-anchor", "policy.check_anchor"),)
SCORING = (
    RecipeOption("--engine", "scoring.engine"),
    RecipeOption("--runtime", "scoring.runtime"),
    RecipeOption("--workers", "scoring.workers"),
    RecipeOption("--check", "scoring.check"),
)
LOSS = (
    RecipeOption("--beta", "method.beta"),
    RecipeOption("--loss-type", "method.loss"),
    RecipeOption("--label-smoothing", "method.label_smoothing"),
    RecipeOption("--sft-weight", "method.sft_weight"),
)
METHOD = (
    RecipeOption("--method", "method.name"),
    RecipeOption("--aggregate", "method.aggregate"),
    RecipeOption("--weights", "method.weights"),
    RecipeOption("--trust-region", "method.trust_region.kind"),
    RecipeOption("--epsilon", "method.trust_region.epsilon"),
    *LOSS,
)
OUTPUT = (RecipeOption("--output-dir", "output_dir"),)
TASKS = (
    RecipeOption("--tasks", "evaluation.tasks"),
    RecipeOption("--tasks-limit", "evaluation.tasks_limit"),
    RecipeOption("--num-fewshot", "evaluation.num_fewshot"),
    RecipeOption("--include-path", "evaluation.include_path"),
    RecipeOption("--tasks-batch-size", "evaluation.tasks_batch_size"),
    RecipeOption("--chat-template/--no-chat-template", "evaluation.chat_template"),
)
TRAINING = (
    RecipeOption("--lora-r", "policy.lora.r", "Rank of the adapters."),
    RecipeOption("--lora-alpha", "policy.lora.alpha"),
    RecipeOption("--lora-dropout", "policy.lora.dropout"),
    RecipeOption("--lora-target-modules", "policy.lora.target_modules"),
    RecipeOption("--learning-rate", "training.learning_rate"),
    RecipeOption("--num-train-epochs", "training.num_train_epochs"),
    RecipeOption("--max-steps", "training.max_steps", "Optimizer steps; -1 for all epochs."),
    RecipeOption("--per-device-train-batch-size", "training.per_device_train_batch_size", "Pairs in a micro-batch."),
    RecipeOption("--gradient-accumulation-steps", "training.gradient_accumulation_steps", "Micro-batches in a step."),
    RecipeOption("--warmup-steps", "training.warmup_steps", "Steps to the peak learning rate, or a share below 1."),
    RecipeOption("--logging-steps", "training.logging_steps", "Steps between log lines, or a share below 1."),
    RecipeOption("--eval-strategy", "training.eval_strategy"),
    RecipeOption("--eval-steps", "training.eval_steps", "Steps between evaluations. Default: --logging-steps."),
    RecipeOption("--save-steps", "training.save_steps", "Steps between checkpoints, or a share below 1."),
    RecipeOption("--report-to", "training.report_to", "Where to log metrics: none, tensorboard, wandb or all."),
    RecipeOption("--seed", "training.seed", "Seed of batch order and adapter initialization."),
)
COMPARE = (
    RecipeOption("--seeds", "compare.seeds"),
    RecipeOption("--processes", "compare.processes"),
    RecipeOption("--selection", "compare.selection"),
)

# The recipe options of every command.
COMMANDS = {
    "plan": (PAIRS, ANCHOR, SCORING, METHOD, TRAINING),
    "score-refs": (PAIRS, ANCHOR, SCORING),
    "render": (PAIRS,),
    "audit": (PAIRS, METHOD),
    "targets": (PAIRS, METHOD),
    "select": (PAIRS, METHOD),
    "train": (PAIRS, ANCHOR, METHOD, TRAINING, OUTPUT),
    "evaluate": (PAIRS, ANCHOR, METHOD, OUTPUT, TASKS),
    "compare": (COMPARE, PAIRS, ANCHOR, METHOD, TRAINING, OUTPUT),
    "iterate": (PAIRS, ANCHOR, SCORING, METHOD, TRAINING, OUTPUT),
    "cache verify": (PAIRS,),
}

# Panels of the help by key prefix; the longest prefix applies.
_PANELS = {
    "pairs": "Pairs",
    "policy": "Policy and references",
    "policy.lora": "LoRA adapter",
    "cache": "Folders",
    "output_dir": "Folders",
    "limits": "Lengths, in the policy's tokens",
    "scoring": "Scoring",
    "method": "Method",
    "training": "Training",
    "evaluation": "Downstream tasks",
    "compare": "Comparison",
}
POLICY_PANEL = _PANELS["policy"]


def options_of(command: str) -> tuple[RecipeOption, ...]:
    return tuple(option for group in COMMANDS[command] for option in group)


def parameter(option: RecipeOption) -> inspect.Parameter:
    """The option as a typer parameter. Its value stays text, which the recipe validates."""
    from mrpo_pipeline.recipe.key_help import key_help

    known = key_help(option.key)
    kinds = simple_types(known.type)
    flag = kinds == {bool}
    about = option.about or known.about
    unnamed = [word for word in known.choices if word not in about]
    if unnamed:
        about = f"{about.rstrip('.')}: {', '.join(known.choices)}."
    notes = [known.bounds, f"default: {default}" if (default := known.default.strip("'[]")) else ""]
    about = f"{about} ({'; '.join(filter(None, notes))})" if any(notes) else about
    metavar = "FLOAT" if float in kinds and str not in kinds else "INT" if kinds == {int} else "TEXT"
    info = typer.Option(
        option.flag,
        help=about.replace("[", r"\["),
        metavar=None if flag else metavar,
        show_default=False,
        rich_help_panel=_panel(option.key),
        autocompletion=None if flag else lambda incomplete: [w for w in known.choices if w.startswith(incomplete)],
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None,
        annotation=Annotated[Optional[bool if flag else str], info],  # noqa: UP045
    )  # fmt: skip


def _panel(key: str) -> str:
    parts = key.split(".")
    beginnings = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next(_PANELS[one] for one in beginnings if one in _PANELS)
