"""Stage two from end to end: load the policy, train it against cached references, write the adapter and its results."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import write_whole, write_whole_json
from mrpo_pipeline.losses.settings import check_loss
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.policy import checkpoints
from mrpo_pipeline.policy.distributed import explain_lost_processes, join_process_group, log_on_rank_zero, rank
from mrpo_pipeline.policy.model import base_dtype, load_config, load_policy
from mrpo_pipeline.policy.model_card import model_card
from mrpo_pipeline.policy.run_identity import examples_digest, run_identity
from mrpo_pipeline.policy.safe_resume import data_only
from mrpo_pipeline.recipe import Method, Policy
from mrpo_pipeline.recipe.training import FastPaths
from mrpo_pipeline.terminal import quiet_libraries

log = logging.getLogger("mrpo")


def train_policy(
    policy: Policy,
    examples: PreferenceExamples,
    eval_examples: PreferenceExamples | None,
    method: Method,
    training: Mapping[str, Any],
    output_dir: str | Path,
    *,
    resume: bool = False,
    anchor: AnchorStart | None = None,
    card: Mapping[str, Any] | None = None,
    diagnostics: Mapping[str, float] | None = None,
    eval_diagnostics: Mapping[str, float] | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, float]:
    """Train the policy's adapter. No reference model is loaded; no engine is imported.

    Writes to ``output_dir``: ``recipe.yaml``, the adapter (``adapter_model.safetensors``, ``adapter_config.json``), tokenizer files,
    ``README.md``, ``trainer_state.json``, ``train_results.json``, with held-out pairs ``eval_results.json``,
    ``checkpoint-*``, and last ``complete.json``; for step-scoped weights also ``weights.parquet``, and for these and BCO ``carried.json``.

    Args:
        training: keys of ``transformers.TrainingArguments`` and of ``recipe.training.FastPaths``.
        resume: resume from the latest complete checkpoint of this run, if any; a finished run is not trained again.
        anchor: compare the policy's start with the cached anchor; None skips this.
        card: see ``model_card.model_card``; its ``recipe`` is also written as ``recipe.yaml``.
        diagnostics: metrics of the references on the training pairs, added to the training results.
        eval_diagnostics: the same on the held-out pairs, added with the prefix ``eval_``.
        callbacks: ``transformers.TrainerCallback``s.

    Returns:
        the training results, and those of the held-out pairs with the prefix ``eval_``.

    Raises:
        UserError: for invalid settings, a model that does not exist, or a start that differs from the cached anchor.
        RunError: if the loss or its gradient is not finite.
    """
    check_loss(method)
    if not len(examples):
        raise UserError("There are no training pairs: expected one at least. Look at the counts of dropped pairs.")
    output_dir = Path(output_dir)
    join_process_group(training)
    log_on_rank_zero()
    dtype = base_dtype(policy, load_config(policy))
    with quiet_libraries():
        from mrpo_pipeline.policy.anchor_check import StartCheck
        from mrpo_pipeline.policy.argument_checks import groups_by_prompt, require_full_batch, require_sorted_batches
        from mrpo_pipeline.policy.arguments import fast_paths, training_arguments

        fast = fast_paths(training)
        arguments = training_arguments(training, output_dir, dtype=dtype, evaluates=bool(eval_examples))
        require_full_batch(arguments, len(examples))
        require_sorted_batches(method, fast, arguments)
        grouped = groups_by_prompt(fast, method, examples, drop_last=arguments.dataloader_drop_last)
        fast = fast.model_copy(update={"group_by_prompt": grouped})
        identity = run_identity(examples, _identifying(policy), method, arguments)
        if grouped:  # checkpoints of earlier versions lack the key
            identity["training.group_by_prompt"] = "true"
        card = card or {}
        evaluated_on = examples_digest(eval_examples) if eval_examples else ""
        recipe = str(card.get("recipe", ""))
        if resume and checkpoints.is_finished(output_dir, identity, evaluated_on, recipe):
            log.info("The run in %s is finished: nothing is trained again.", output_dir)
            return read_results(output_dir)
        checkpoint = checkpoints.latest_complete(output_dir, identity, recipe) if resume else None
        if rank() == 0:
            (output_dir / checkpoints.MARKER).unlink(missing_ok=True)
            if recipe:
                write_whole(output_dir / "recipe.yaml", recipe)
        if resume:
            log.info(
                "Resuming from %s." if checkpoint else "No complete checkpoint in %s: training from the start.",
                checkpoint or output_dir,
            )
        trainer = _trainer(policy, examples, eval_examples, method, arguments, identity, fast)
        for callback in callbacks:
            trainer.add_callback(callback)
        start = StartCheck(trainer, anchor, dtype) if anchor is not None else None
        if start is not None and checkpoint is None:
            trainer.add_callback(start)
        elif start is not None and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            start.compare()  # before the checkpoint's weights are loaded
        elif start is not None:
            log.info("The policy's start is not compared with the anchor again: weights are sharded over processes.")
        if checkpoint is not None:
            if arguments.ignore_data_skip and examples.step_references is not None:
                raise UserError(
                    "The setting training.ignore_data_skip is true: a resumed run would not see the pairs in the order from which "
                    "its weights follow. Expected false. Take it out."
                )
            trainer.method_state.restore(checkpoint)
        with explain_lost_processes(), data_only(checkpoint):
            results = _train(trainer, checkpoint)
        if arguments.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer.method_state.use_checkpoint(Path(trainer.state.best_model_checkpoint))
        results |= {
            "num_tokens": trainer.state.num_input_tokens_seen,
            **(diagnostics or {}),
            **trainer.method_state.results(),
        }
        trainer.require_finite_weights()
        trainer.save_model()
        _save_results(trainer, "train", results)
        if eval_examples:
            evaluation = _last_evaluation(trainer) or trainer.evaluate()
            evaluation |= {f"eval_{name}": value for name, value in (eval_diagnostics or {}).items()}
            _save_results(trainer, "eval", evaluation)
            results |= evaluation
        trainer.save_state()
        if trainer.is_world_process_zero():
            trainer.method_state.write(output_dir)
            served_tokenizer(policy).save_pretrained(output_dir)
            base_model = trainer.model.active_peft_config.base_model_name_or_path
            if start is not None and start.difference is not None:
                card = {**card, "start": _agreement(start.difference)}
            text = model_card(card, base_model=base_model, metrics=results)
            write_whole(output_dir / "README.md", text)
            checkpoints.mark_finished(output_dir, identity, evaluated_on)
    return results


def _agreement(difference: float) -> str:
    return (
        "The first is the anchor, the policy's starting point: their log-probs agreed within "
        f"{difference:.1g} nats per token before the first step."
    )


def _trainer(
    policy: Policy,
    examples: PreferenceExamples,
    eval_examples: PreferenceExamples | None,
    method: Method,
    arguments: Any,
    identity: Mapping[str, str],
    fast: FastPaths,
) -> Any:
    from transformers import PrinterCallback, set_seed

    from mrpo_pipeline.policy.progress_callback import PlainProgress
    from mrpo_pipeline.policy.trainer import PreferenceTrainer

    set_seed(arguments.seed)
    model = load_policy(policy)
    if arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    if arguments.ddp_find_unused_parameters is None:
        # Only experts may get no token in a batch; the search for unused parameters walks the graph in every step.
        names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
        arguments.ddp_find_unused_parameters = any("expert" in name for name in names)
    trainer = PreferenceTrainer(model, arguments, method, examples, eval_examples or None, identity=identity, fast=fast)
    left = len(examples) % trainer.train_sampler().pairs_per_step if arguments.dataloader_drop_last else 0
    if left:
        log.warning(
            "training.dataloader_drop_last leaves out %s of %s pairs in each epoch, different ones each time.",
            f"{left:,}", f"{len(examples):,}",
        )  # fmt: skip
    if trainer.head.notice:
        log.warning("%s", trainer.head.notice)
    if arguments.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(PlainProgress())
    return trainer


def _last_evaluation(trainer: Any) -> dict[str, float] | None:
    """The metrics of an evaluation after the last step; None without one, or if the best checkpoint was loaded since."""
    if trainer.args.load_best_model_at_end:
        return None
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry:
            done: dict[str, float] = {name: value for name, value in entry.items() if name != "step"}
            return done if entry["step"] == trainer.state.global_step else None
    return None


def _identifying(policy: Policy) -> dict[str, Any]:
    """The policy's settings that change what is trained. Those of the tokenizer show in the pairs' token ids."""
    return policy.model_dump(include={"model", "revision", "adapter", "dtype", "quantization", "lora"})


def _train(trainer: Any, checkpoint: Path | None) -> dict[str, float]:
    """Train to the end, from the checkpoint if one is given; returns Trainer's results."""
    from transformers import TrainerState

    if checkpoint is None:
        return dict(trainer.train().metrics)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step >= state.max_steps:
        # Trainer would take one more step before it checks max_steps.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state
        results: dict[str, float] = read_results(trainer.args.output_dir)
    else:
        results = dict(trainer.train(resume_from_checkpoint=str(checkpoint)).metrics)
    mean = _mean_loss(trainer.state.log_history)
    if mean is not None:
        results["train_loss"] = mean
    return results


def _mean_loss(history: list[dict[str, float]]) -> float | None:
    """The average loss of the whole run, including the part before it was resumed, which Trainer leaves out.

    None if nothing was logged.
    """
    total, last = 0.0, 0
    for entry in history:
        if "loss" in entry and "learning_rate" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = int(entry["step"])
    return total / last if last else None


def served_tokenizer(policy: ModelSource) -> Any:
    """The policy's tokenizer with the chat template that it is trained with."""
    from mrpo_pipeline.dataset.prepare import tokenizer_of
    from mrpo_pipeline.rendering.template_source import PLAIN_TEMPLATE

    tokenizer = tokenizer_of(policy)
    if policy.template == "plain" or (policy.template == "auto" and not tokenizer.chat_template):
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif policy.template != "auto":
        tokenizer.chat_template = Path(policy.template).read_text(encoding="utf-8")
    return tokenizer


def _save_results(trainer: Any, split: str, results: Mapping[str, float]) -> None:
    """``Trainer.save_metrics`` with an atomic write, because a resumed run reads the file."""
    if trainer.is_world_process_zero():
        write_whole_json(Path(trainer.args.output_dir) / f"{split}_results.json", dict(sorted(results.items())))


def read_results(output_dir: str | Path) -> dict[str, float]:
    """The contents of ``train_results.json`` and ``eval_results.json``; an incomplete file is ignored."""
    results: dict[str, float] = {}
    for split in ("train", "eval"):
        with suppress(FileNotFoundError, ValueError):
            results |= json.loads((Path(output_dir) / f"{split}_results.json").read_text(encoding="utf-8"))
    return results
