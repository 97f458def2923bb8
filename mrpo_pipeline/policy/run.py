"""Stage two from a recipe: train the policy against the cached references, none of them in memory."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart, anchor_start, start_notice
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.nothing_left import expected_unfit, short_context
from mrpo_pipeline.dataset.reference_logps import caches_of_method
from mrpo_pipeline.dataset.splits import Split, check_columns, check_method, examples_of, load_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.disk_errors import explain_disk_errors
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.models.checks import check_numbers
from mrpo_pipeline.models.context_length import known_context
from mrpo_pipeline.models.files import locate
from mrpo_pipeline.pairs.counts import Counts
from mrpo_pipeline.pairs.sources import hub_dataset
from mrpo_pipeline.policy.output_dir import check_output_folder, report_earlier_run
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.recipe.describe_method import describe

log = logging.getLogger("mrpo")


def train_recipe(recipe: Recipe, *, resume: bool = False) -> dict[str, float]:
    """Train the policy of a recipe; see ``mrpo_pipeline.policy.train`` for the files in the output folder.

    Under torchrun or accelerate launch every process calls this. One process of each machine reads pairs and caches, the
    others memory-map its files. Rank 0 locks the output folder and writes the results.

    Raises:
        UserError: for an invalid recipe, invalid pairs or caches, and for a policy that does not agree with the anchor.
        RunError: for a loss or gradient that is not finite, a disk error, or another command running in the folder.
    """
    from mrpo_pipeline.policy.distributed import rank

    check_output_folder(recipe)
    with held(recipe.output_dir, "mrpo train") if rank() == 0 else nullcontext():
        return _train_recipe(recipe, resume=resume)


def _train_recipe(recipe: Recipe, *, resume: bool) -> dict[str, float]:
    from mrpo_pipeline.models.quantization import check_quantization
    from mrpo_pipeline.policy.distributed import (
        explain_lost_processes,
        join_process_group,
        leave_process_group,
        log_on_rank_zero,
        rank,
        read_once,
    )
    from mrpo_pipeline.policy.nonfinite import BrokenStepError
    from mrpo_pipeline.policy.train import train_policy

    policy = recipe.required_policy()
    check_quantization(policy.quantization)
    training = recipe.training
    join_process_group(training)
    log_on_rank_zero()
    check_training(recipe)
    if rank() == 0 and not resume:
        report_earlier_run(Path(recipe.output_dir))
    data = read_once(lambda: _load_training_data(recipe), _TrainingData.write, _TrainingData.open)
    kept = (
        "Complete checkpoints are kept. Free space or grant write access there, then run the same command again with --resume: it "
        "resumes from the last one, or starts again if there is none."
    )
    with (
        explain_lost_processes(),
        explain_disk_errors(recipe.output_dir, f"Training could not write to {recipe.output_dir}", kept),
    ):
        try:
            results = train_policy(
                policy,
                data.examples,
                data.eval_examples,
                recipe.method,
                training,
                recipe.output_dir,
                resume=resume,
                anchor=data.anchor,
                card=data.card,
                diagnostics=data.diagnostics,
                eval_diagnostics=data.eval_diagnostics,
            )
        except BrokenStepError:
            folder = locate(policy.model, policy.revision)
            if folder is not None:  # the weights may have held such numbers from the start
                check_numbers("the policy", folder)
            raise
    for split, counts in data.counts.items():
        log.info("%s: %s", split, counts)
    leave_process_group()
    return results


def check_training(recipe: Recipe, methods: Sequence[Method] = ()) -> Any:
    """Refuse settings under ``training`` that this machine does not support, before pairs are read and a model loads.

    Args:
        methods: the methods to train, if not the recipe's.

    Returns:
        ``transformers.TrainingArguments``.
    """
    from mrpo_pipeline.policy.argument_checks import require_anchor_for_choice, require_sorted_batches
    from mrpo_pipeline.policy.arguments import fast_paths, training_arguments
    from mrpo_pipeline.terminal import quiet_libraries

    training = recipe.training
    evaluates = bool(recipe.pairs.eval or recipe.pairs.eval_fraction)
    fast = fast_paths(training)
    with quiet_libraries():
        arguments = training_arguments(training, recipe.output_dir, dtype="float32", evaluates=evaluates, report=False)
    if not methods and not recipe.method.has_reference:
        require_anchor_for_choice(arguments)
    for method in methods or [recipe.method]:
        require_sorted_batches(method, fast, arguments)
    return arguments


@dataclass
class _TrainingData:
    """Training inputs from pairs and caches, read by local rank 0. The fields with defaults are for rank 0 only, which writes
    the results."""

    examples: PreferenceExamples
    eval_examples: PreferenceExamples | None
    anchor: AnchorStart | None
    card: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    eval_diagnostics: Mapping[str, float] | None = None

    def write(self, folder: Path) -> None:
        self.examples.write(folder / "train")
        if self.eval_examples is not None:
            self.eval_examples.write(folder / "eval")
        if self.anchor is not None:
            (folder / "anchor.json").write_text(json.dumps(asdict(self.anchor)), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> _TrainingData:
        start = folder / "anchor.json"
        anchor = AnchorStart(**json.loads(start.read_text(encoding="utf-8"))) if start.is_file() else None
        held_out = PreferenceExamples.open(folder / "eval") if (folder / "eval").is_dir() else None
        return cls(PreferenceExamples.open(folder / "train"), held_out, anchor)


def _load_training_data(recipe: Recipe) -> _TrainingData:
    check_method(recipe, recipe.method)
    caches = caches_of_method(recipe)
    splits = load_splits(recipe, caches, "train")
    check_columns(recipe.method, splits)
    _require_policy_context(recipe, splits)
    examples, targets = examples_of(splits["train"], recipe.method)
    held_out = examples_of(splits["eval"], recipe.method, report=False) if "eval" in splits else None
    eval_examples, eval_targets = held_out or (None, None)
    if caches and not recipe.required_policy().check_anchor:
        log.warning("%s", start_notice(recipe))
    return _TrainingData(
        examples,
        eval_examples,
        anchor_start(recipe, caches),
        card=model_card_fields(recipe, splits),
        counts={name: split.counts for name, split in splits.items()},
        diagnostics=targets.diagnostics,
        eval_diagnostics=eval_targets.diagnostics if eval_targets else None,
    )


def _require_policy_context(recipe: Recipe, splits: Mapping[str, Split]) -> None:
    """Raise UserError if pairs are longer than the policy's context."""
    context = known_context(recipe.required_policy())
    if context is None:
        return
    frames = [split.pairs.frame for split in splits.values()]
    unfit = expected_unfit(context, frames, spare=0)
    text = short_context("The policy", context, recipe.limits, frames, unfit, spare=0, outcome="are longer")
    if text is not None:
        raise UserError(f"{text}. Expected pairs that the policy reads as the references do. Give that length.")


def model_card_fields(recipe: Recipe, splits: dict[str, Split]) -> dict[str, Any]:
    """The fields of the model card except the metrics, see ``model_card.model_card``."""
    sources = recipe.sources() if recipe.method.has_reference else []
    unchecked = sources and not recipe.required_policy().check_anchor
    return {
        "method": describe(recipe.method),
        "recipe": recipe.dump(),
        "start": f"The first is the anchor. {start_notice(recipe)}" if unchecked else None,
        "references": [
            {"name": source.name, "model": (source.server and source.server.model) or source.model}
            | {key: value for key in ("revision", "adapter") if (value := getattr(source, key)) is not None}
            for source in sources
        ],
        "datasets": _hub_datasets(recipe),
        "data": {name: str(split.counts) for name, split in splits.items()},
    }


def _hub_datasets(recipe: Recipe) -> list[str]:
    """The hub data sets that the pairs are read from."""
    places = [[source.place] if isinstance(source.place, str) else source.place for source in recipe.pairs.sources()]
    found = [hub_dataset(place) for place in itertools.chain(*places)]
    return list(dict.fromkeys(hub.repository for hub in found if hub is not None))
