"""Stage two from a recipe: the policy trained against the cached references, none of them in memory."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.nothing_left import expected_unfit, short_context
from mrpo_pipeline.dataset.policy_start import AnchorStart, anchor_start, start_notice
from mrpo_pipeline.dataset.reference_logps import (
    open_caches,
)
from mrpo_pipeline.dataset.splits import Split, check_method, examples_of, load_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.disk_errors import telling
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.models.checks import check_numbers
from mrpo_pipeline.models.context_length import known_context
from mrpo_pipeline.models.files import locate
from mrpo_pipeline.pairs.counting import in_words
from mrpo_pipeline.pairs.sources import hub_dataset
from mrpo_pipeline.policy.output_dir import check_output_folder, report_earlier_run
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.recipe.describe import describe

log = logging.getLogger("mrpo")


def train_recipe(recipe: Recipe, *, resume: bool = False) -> dict[str, float]:
    """Train as ``_train_recipe`` says, alone in the output folder: of several processes the first one holds it.

    Raises:
        UserError, RunError: as ``_train_recipe`` does, and where another command works in the folder.
    """
    from mrpo_pipeline.policy.distributed import rank

    check_output_folder(recipe)
    with held(recipe.output_dir, "mrpo train") if rank() == 0 else nullcontext():
        return _train_recipe(recipe, resume=resume)


def _train_recipe(recipe: Recipe, *, resume: bool) -> dict[str, float]:
    """Train the policy as the recipe says; see ``mrpo_pipeline.policy.train`` for what lies in the output folder.

    Under torchrun or accelerate launch every process calls this. One process of each machine reads pairs and caches, the
    others map what it read; the first of all writes the results.

    Raises:
        UserError: for a recipe, pairs or caches that are wrong, and for a policy that does not agree with the anchor.
        RunError: for a loss or gradient that is not finite, and for a disk that is full, read-only or gone.
    """
    from mrpo_pipeline.models.quantization import check_quantization
    from mrpo_pipeline.policy.distributed import explain_lost_processes, join, leave, rank, read_once, speak_once
    from mrpo_pipeline.policy.nonfinite import BrokenStepError
    from mrpo_pipeline.policy.train import train_policy

    policy = recipe.required_policy()
    check_quantization(policy.quantization)
    training = recipe.training_arguments()
    join(training)
    speak_once()
    check_training(recipe)
    if rank() == 0 and not resume:
        report_earlier_run(Path(recipe.output_dir))
    given = read_once(
        lambda: _training_input(recipe),
        _TrainingInput.write,
        _TrainingInput.open,
    )
    kept = (
        "Checkpoints that were written whole stay. Make room or give write access there, then run the same command again with "
        "--resume: it goes on from the last one, or starts anew where there is none."
    )
    with explain_lost_processes(), telling(recipe.output_dir, f"Training could not write to {recipe.output_dir}", kept):
        if rank() == 0:
            recipe.write(recipe.output_dir)
        try:
            results = train_policy(
                policy,
                given.examples,
                given.eval_examples,
                recipe.method,
                training,
                recipe.output_dir,
                resume=resume,
                anchor=given.anchor,
                card=given.card,
                diagnostics=given.diagnostics,
                eval_diagnostics=given.eval_diagnostics,
            )
        except BrokenStepError:
            folder = locate(policy.model, policy.revision)
            if folder is not None:  # where the weights held such numbers from the start, that is what to say
                check_numbers("the policy", folder)
            raise
    for split, counts in given.counts.items():
        log.info("%s: %s", split, in_words(counts))
    leave()
    return results


def check_training(recipe: Recipe) -> Any:
    """Refuse settings under ``training`` that cannot be on this machine, before pairs are read and a model loads.

    Returns:
        ``transformers.TrainingArguments``.
    """
    from mrpo_pipeline.policy.arguments import fast_paths, training_arguments
    from mrpo_pipeline.terminal import quiet_libraries

    training = recipe.training_arguments()
    evaluates = bool(recipe.pairs.eval or recipe.pairs.eval_fraction)
    fast_paths(training)
    with quiet_libraries():
        return training_arguments(training, recipe.output_dir, dtype="float32", evaluates=evaluates, report=False)


@dataclass
class _TrainingInput:
    """What training takes from the pairs and caches. The first process of a machine reads it; of several, the others need
    neither what stands on the card nor the references' diagnostics, for they write no results."""

    examples: PreferenceExamples
    eval_examples: PreferenceExamples | None
    anchor: AnchorStart | None
    card: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    eval_diagnostics: Mapping[str, float] | None = None

    def write(self, folder: Path) -> None:
        self.examples.write(folder / "train")
        if self.eval_examples is not None:
            self.eval_examples.write(folder / "eval")
        if self.anchor is not None:
            (folder / "anchor.json").write_text(json.dumps(asdict(self.anchor)), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> _TrainingInput:
        start = folder / "anchor.json"
        anchor = AnchorStart(**json.loads(start.read_text(encoding="utf-8"))) if start.is_file() else None
        held_out = PreferenceExamples.open(folder / "eval") if (folder / "eval").is_dir() else None
        return cls(PreferenceExamples.open(folder / "train"), held_out, anchor)


def _training_input(recipe: Recipe) -> _TrainingInput:
    check_method(recipe, recipe.method)
    caches = open_caches(recipe)
    splits = load_splits(recipe, caches, "train")
    _require_policy_reads(recipe, splits)
    examples, targets = examples_of(splits["train"], recipe.method)
    held_out = examples_of(splits["eval"], recipe.method, say=False) if "eval" in splits else None
    eval_examples, eval_targets = held_out or (None, None)
    if not recipe.required_policy().check_anchor:
        log.warning("%s", start_notice(recipe))
    return _TrainingInput(
        examples,
        eval_examples,
        anchor_start(recipe, caches),
        card=card_of(recipe, splits),
        counts={name: split.counts() for name, split in splits.items()},
        diagnostics=targets.diagnostics,
        eval_diagnostics=eval_targets.diagnostics if eval_targets else None,
    )


def _require_policy_reads(recipe: Recipe, splits: Mapping[str, Split]) -> None:
    """Refuse pairs that are longer than the policy's own context. Raises UserError."""
    context = known_context(recipe.required_policy())
    if context is None:
        return
    frames = [split.pairs.frame for split in splits.values()]
    # A policy computes no token after the last: all of its positions may be filled.
    text = short_context("The policy", context + 1, recipe.limits, frames, expected_unfit(context + 1, frames))
    if text is not None:
        text = text.replace(f"reads {context + 1:,} tokens", f"reads {context:,} tokens").replace(
            "are left out", "are longer"
        )
        raise UserError(f"{text}. Expected pairs that the policy reads as the references do. Give that length.")


def card_of(recipe: Recipe, splits: dict[str, Split]) -> dict[str, Any]:
    """What the model card tells besides the metrics."""
    return {
        "method": describe(recipe.method),
        "recipe": recipe.dump(),
        **(
            {}
            if recipe.required_policy().check_anchor
            else {"start": f"The first is the anchor. {start_notice(recipe)}"}
        ),
        "references": [
            {"name": source.name, "model": source.model}
            | {key: value for key in ("revision", "adapter") if (value := getattr(source, key)) is not None}
            for source in recipe.sources()
        ],
        "datasets": _hub_datasets(recipe),
        "data": {f"{name}: {what}": count for name, split in splits.items() for what, count in split.counts().items()},
    }


def _hub_datasets(recipe: Recipe) -> list[str]:
    """The data sets of the hub that the pairs are from."""
    places = [[source.place] if isinstance(source.place, str) else source.place for source in recipe.pairs.sources()]
    found = [hub_dataset(place) for place in itertools.chain(*places)]
    return list(dict.fromkeys(hub.repository for hub in found if hub is not None))
