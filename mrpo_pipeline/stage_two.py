"""Stage two from a recipe: the policy trained against the cached references, none of them in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrpo_pipeline.broken_models import check_numbers
from mrpo_pipeline.cached_logps import (
    CachedPairs,
    join_splits,
    no_held_out_pairs,
    open_caches,
    target_settings,
    training_examples,
)
from mrpo_pipeline.counting import in_words, require_balance
from mrpo_pipeline.disk_errors import telling
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.folder_lock import held
from mrpo_pipeline.head.context import known_context
from mrpo_pipeline.losses import check_loss
from mrpo_pipeline.model_files import locate
from mrpo_pipeline.nothing_left import expected_unfit, short_context
from mrpo_pipeline.objectives import check_objectives, first_weight
from mrpo_pipeline.outputs import check_output_folder, report_earlier_run
from mrpo_pipeline.policy.examples import PreferenceExamples
from mrpo_pipeline.policy.settings import LoraSettings, LossSettings, PolicySettings
from mrpo_pipeline.policy_start import reading_differences, start_differences, start_notice
from mrpo_pipeline.prepare import Prepared, prepare_splits
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.targets import Targets

log = logging.getLogger("mrpo")


@dataclass
class Split:
    """One split, prepared and joined with its cached sums."""

    prepared: Prepared
    pairs: CachedPairs

    def counts(self) -> dict[str, int]:
        """Pairs in = pairs out + pairs dropped by reason, by what is counted."""
        dropped = {**self.prepared.dropped, **self.pairs.dropped}
        require_balance("pairs", self.prepared.pairs_in, self.pairs.frame.height, dropped)
        return {
            "pairs in": self.prepared.pairs_in,
            "pairs out": self.pairs.frame.height,
            **{f"pairs dropped: {reason}": count for reason, count in dropped.items()},
            **{f"rows left out: {reason}": count for reason, count in self.prepared.skipped_rows.items()},
            "pairs with a cut prompt": self.prepared.cut_prompts,
            "completions cut": self.prepared.cut_completions,
        }


def loss_settings(method: Method) -> LossSettings:
    """The part of a recipe's method that decides the loss."""
    return LossSettings(
        beta=method.beta,
        loss=method.loss,
        label_smoothing=method.label_smoothing,
        # The third term of MPO is the same SFT loss, with a weight of its own.
        sft_weight=method.mpo.sft if method.loss == "mpo" else method.sft_weight,
        preference_weight=method.mpo.preference,
        quality_weight=method.mpo.quality,
        first_weight=first_weight(method) if method.loss == "modpo" else 1.0,
    )


def policy_settings(recipe: Recipe, caches: list[Any] | None = None) -> PolicySettings:
    """The recipe's policy as stage two takes it; what of it concerns the anchor needs the caches."""
    policy = recipe.required_policy()
    manifest = caches[0].manifest() if caches else None
    differences = (
        [] if manifest is None else start_differences(recipe) + reading_differences(recipe, manifest.fingerprint)
    )
    shared = {"model", "revision", "adapter", "tokenizer", "template", "dtype", "quantization", "trust_remote_code"}
    return PolicySettings(
        **policy.model_dump(include=shared),
        lora=LoraSettings(**policy.lora.model_dump()),
        check_anchor=policy.check_anchor,
        anchor_dtype=manifest.fingerprint.get("dtype") if manifest else None,
        anchor_differences=tuple(differences),
    )


def check_method(recipe: Recipe, method: Method) -> None:
    """Refuse a method that does not fit the references or cannot have its options, before anything is read."""
    names = [source.name for source in recipe.sources()]
    if target_settings(method, names).needs_held_out and not recipe.pairs.weights_fraction:
        raise no_held_out_pairs(method)
    check_loss(method.loss, method.label_smoothing)
    check_objectives(method, names)
    if method.loss == "mpo" and method.sft_weight:
        raise UserError(
            f"The setting method.sft_weight is {method.sft_weight:g} with method.loss mpo, which has an SFT term of its own "
            f"(method.mpo.sft, {method.mpo.sft:g}): expected 0. Set method.sft_weight to 0, and method.mpo.sft to what it is to count."
        )


def load_splits(recipe: Recipe, caches: list[Any], *needed: str, say: bool = True) -> dict[str, Split]:
    """Every split of the recipe, joined with its cached sums.

    Args:
        needed: splits that must be there. say: whether to say how many pairs were read and kept.

    Raises:
        UserError: where a needed split is not in the recipe, or a completion is not scored.
    """
    prepared = prepare_splits(recipe, say=say)
    for split in needed:
        if split not in prepared:
            keys = {"train": "pairs.train (--train-file)", "eval": "pairs.eval (--eval-file) or pairs.eval_fraction"}
            raise UserError(f"The recipe has no {split} pairs: expected {keys[split]}. Add it.")
    return {name: Split(prepared[name], pairs) for name, pairs in join_splits(caches, prepared, recipe.limits).items()}


def examples_of(split: Split, method: Method, *, say: bool = True) -> tuple[PreferenceExamples, Targets]:
    """The split's pairs with the targets of one method; what the user should know of them is said.

    Args:
        say: false for a split whose method was spoken of already, with the training pairs.
    """
    examples, targets = training_examples(split.pairs, method)
    for notice in (*targets.notices, *_on_beta(method, targets)) if say else ():
        log.warning("%s", notice)
    require_balance("making targets", split.pairs.frame.height, len(examples))
    return examples, targets


def _on_beta(method: Method, targets: Targets) -> Iterator[str]:
    """Log-ratios in another unit are smaller by the length of a completion, and β is what they are multiplied by."""
    usual = Method.model_fields["beta"].default
    if targets.chosen_units is None or targets.rejected_units is None or method.beta != usual or method.loss == "ipo":
        return  # IPO takes means by itself
    length = float(np.mean([targets.chosen_units, targets.rejected_units]))
    yield (
        f"With method.normalize {method.normalize} β multiplies nats per {method.normalize}, and β is {usual:g}, the default, which is "
        f"for sums: for margins of the same size set it to about {usual * length:.3g} (a completion has {length:,.0f} "
        f"{method.normalize}s on average)."
    )


def train_recipe(recipe: Recipe, *, resume: bool = False) -> dict[str, float]:
    """Train as ``_train_recipe`` says, alone in the output folder: of several processes the first one holds it.

    Raises:
        UserError, RunError: as ``_train_recipe`` does, and where another command works in the folder.
    """
    from mrpo_pipeline.policy.processes import rank

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
    from mrpo_pipeline.policy.broken_step import BrokenStepError
    from mrpo_pipeline.policy.processes import explain_lost_processes, join, leave, rank, read_once, speak_once
    from mrpo_pipeline.policy.quantization import check_quantization
    from mrpo_pipeline.policy.train import train_policy

    check_quantization(recipe.required_policy().quantization)
    training = recipe.training_arguments()
    join(training)
    speak_once()
    check_training(recipe)
    if rank() == 0 and not resume:
        report_earlier_run(Path(recipe.output_dir))
    given = read_once(
        lambda: _training_input(recipe),
        _TrainingInput.write,
        lambda folder: _TrainingInput.open(folder, policy_settings(recipe)),
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
                given.policy,
                given.examples,
                given.eval_examples,
                loss_settings(recipe.method),
                training,
                recipe.output_dir,
                resume=resume,
                card=given.card,
                diagnostics=given.diagnostics,
                eval_diagnostics=given.eval_diagnostics,
            )
        except BrokenStepError:
            folder = locate(given.policy.model, given.policy.revision)
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
    from mrpo_pipeline.quiet import quiet_libraries

    training = recipe.training_arguments()
    evaluates = bool(recipe.pairs.eval or recipe.pairs.eval_fraction)
    fast_paths(training)
    with quiet_libraries():
        return training_arguments(training, recipe.output_dir, dtype="float32", evaluates=evaluates, report=False)


@dataclass
class _TrainingInput:
    """What training takes from the pairs and caches. The first process of a machine reads it; of several, the others need
    neither what stands on the card nor the references' diagnostics, for they write no results."""

    policy: PolicySettings
    examples: PreferenceExamples
    eval_examples: PreferenceExamples | None
    card: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    eval_diagnostics: Mapping[str, float] | None = None

    def write(self, folder: Path) -> None:
        self.examples.write(folder / "train")
        if self.eval_examples is not None:
            self.eval_examples.write(folder / "eval")
        anchor = {name: getattr(self.policy, name) for name in ("anchor_dtype", "anchor_differences")}
        (folder / "anchor.json").write_text(json.dumps(anchor), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, policy: PolicySettings) -> _TrainingInput:
        anchor = json.loads((folder / "anchor.json").read_text(encoding="utf-8"))
        held_out = PreferenceExamples.open(folder / "eval") if (folder / "eval").is_dir() else None
        return cls(replace(policy, **anchor), PreferenceExamples.open(folder / "train"), held_out)


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
        policy_settings(recipe, caches),
        examples,
        eval_examples,
        card=card_of(recipe, splits),
        counts={name: split.counts() for name, split in splits.items()},
        diagnostics=targets.diagnostics,
        eval_diagnostics=eval_targets.diagnostics if eval_targets else None,
    )


def _require_policy_reads(recipe: Recipe, splits: Mapping[str, Split]) -> None:
    """Refuse pairs that are longer than the policy's own context. Raises UserError."""
    context = known_context(recipe.required_policy().source("policy"))
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


def describe(method: Method) -> str:
    """One line that says what was trained against, with every option that is not the default."""
    if method.name == "dpo":
        against = "DPO against the anchor alone"
    elif method.aggregate.startswith("single:"):
        against = f"DPO against the reference {method.aggregate.removeprefix('single:')} alone"
    else:
        against = "Multi-DPO" if method.name == "multi-dpo" else f"MRPO with the {method.aggregate} aggregate"
        region = method.trust_region
        against += f", {_weights(method)}, trust region {region.kind}"
        against += "" if region.kind == "off" else f" (ε {region.epsilon:g})"
        against += ", by the authors' code" if method.compatibility == "official-code" else ""
    unit = "" if method.normalize == "sum" else f" on nats per {method.normalize}"
    return f"{against}; {_loss(method)}, β {method.beta:g}{unit}."


def _weights(method: Method) -> str:
    options = method.weights_options
    told = []
    if method.weights == "sliding-window":
        text = "sliding-window weights"
        told.append(f"the last {options.window:,} other pairs")
    elif method.weights == "thompson":
        text = "weights by Thompson sampling"
        when = "each step" if options.every == 1 else f"every {options.every:,} steps"
        told.append(f"judged on {options.pairs:,} held-out pairs after {when}")
        if options.prior != 1:
            told.append(f"prior {options.prior:g}")
    else:
        text = f"{method.weights} weights"
    if options.temperature != 1:
        told.append(f"temperature {options.temperature:g}")
    if options.floor:
        told.append(f"floor {options.floor:g}")
    return f"{text} ({', '.join(told)})" if told else text


def _loss(method: Method) -> str:
    if method.loss == "mpo":
        terms = method.mpo
        return f"mpo loss ({terms.preference:g} preference, {terms.quality:g} quality, {terms.sft:g} SFT)"
    text = f"{method.loss} loss"
    if method.loss == "modpo":
        parts = [f"{first_weight(method):g} preference"]
        parts += [f"{objective.weight:g} {name}" for name, objective in method.modpo.items()]
        text += f" ({', '.join(parts)})"
    text += f" with label smoothing {method.label_smoothing:g}" if method.label_smoothing else ""
    return text + (f" + {method.sft_weight:g} SFT" if method.sft_weight else "")


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
        "references": [{"name": source.name, "model": source.model} for source in recipe.sources()],
        "data": {f"{name}: {what}": count for name, split in splits.items() for what, count in split.counts().items()},
    }


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed."""
    return recipe.model_copy(update={"training": {**recipe.training, "seed": seed}})


def trained(settings: PolicySettings, adapter: str) -> PolicySettings:
    """The policy after training: the same base with the trained adapter."""
    return replace(settings, adapter=adapter)
