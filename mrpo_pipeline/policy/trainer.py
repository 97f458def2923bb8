"""Stage two's training loop: transformers' Trainer with a preference loss on completion log-probs.

Only the policy is in memory; the references are columns of log-probs in each batch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from mrpo_pipeline.dataset.completion_numbering import Distinct, of_ranked
from mrpo_pipeline.dataset.examples import Batch, PreferenceExamples
from mrpo_pipeline.models.adapters import saves_embeddings
from mrpo_pipeline.models.causality import require_causal
from mrpo_pipeline.models.completion_forward import sum_dtype, to_device
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.pairs.counts import require_balance
from mrpo_pipeline.policy import checkpoints
from mrpo_pipeline.policy.forward import PolicyForward
from mrpo_pipeline.policy.fsdp import enable_cpu_fsdp, gather_adapter
from mrpo_pipeline.policy.fused_lora import fuse_adapters
from mrpo_pipeline.policy.method_callback import MethodCallback
from mrpo_pipeline.policy.method_state import MethodState
from mrpo_pipeline.policy.metrics import MetricSums, evaluation_metrics, metric_names, pair_losses, pair_metrics
from mrpo_pipeline.policy.micro_batching import Measure, token_limit
from mrpo_pipeline.policy.nonfinite import StepWatch, require_finite_sums
from mrpo_pipeline.policy.sampler import EvalDataset, EvalSampler, PairLoader, StepDataset, StepSampler
from mrpo_pipeline.policy.share_prompts import share_prompts
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.recipe.training import FastPaths

log = logging.getLogger("mrpo")


class PreferenceTrainer(Trainer):  # type: ignore[misc]
    """Trains a ``PeftModel`` against cached references.

    The loss of an optimizer step is the sum over its pairs divided by their number, over all micro-batches and processes.
    Trainer receives one whole step at a time, with gradient accumulation 1: the number of micro-batches in a step depends on
    the lengths of its pairs.

    Args:
        model: a peft model over a causal language model; its ``forward`` becomes ``PolicyForward``.
        identity: what a checkpoint must match to be resumed from (``run_identity.run_identity``).
        fast: optimizations of the step.
    """

    train_dataset: PreferenceExamples
    eval_dataset: PreferenceExamples | None
    control: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        method: Method,
        train_dataset: PreferenceExamples,
        eval_dataset: PreferenceExamples | None = None,
        *,
        identity: Mapping[str, str] | None = None,
        fast: FastPaths | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        # Pairs of a step on one process: this times `per_device_train_batch_size`.
        self.accumulation: int = args.gradient_accumulation_steps
        args = copy.copy(args)
        args.gradient_accumulation_steps = 1
        # The head of the base model, whose layers include the adapter: the peft model's forward is replaced below.
        head = Head.of(model.get_base_model())
        super().__init__(
            model=model,
            args=args,
            # Never called: PairLoader takes collated batches from the dataset. None would make Trainer look for a tokenizer.
            data_collator=lambda batch: batch,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        self.head = head
        require_causal(model.eval(), "of the policy", str(next(head.model.parameters()).dtype).removeprefix("torch."))
        # A new peft model is in train mode over a base in eval mode; `training_step` reads the outer mode.
        model.eval()
        self.fast = fast or FastPaths()
        self.distinct = Distinct.of(train_dataset) if self.fast.group_by_prompt is True else None
        self.policy_forward = PolicyForward(head, chunked_head=self.fast.chunked_head)
        model.forward = self.policy_forward
        # Sharded weights are gathered only by a layer's own call.
        if self.fast.fused_lora and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            fuse_adapters(model)
        self._sharing_decided = not self.fast.share_prompt
        self.method = method
        self.identity = dict(identity or {})
        names = metric_names(method, anchored=train_dataset.anchor_chosen is not None)
        self._metric_sums = MetricSums(names, dtype=sum_dtype(args.device), device=args.device)
        self._tokens = 0
        self.tokens_run = 0
        """Tokens of this process's forward passes in training, padding included."""
        self._watch = StepWatch(args, train_dataset.pair_ids)
        self._non_embedding_parameters: int | None = None
        self.method_state = MethodState(train_dataset, method, self.train_sampler(), args.seed)
        if self.method_state:
            self.add_callback(MethodCallback(self))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.device.type == "cpu":
            self.is_fsdp_enabled = enable_cpu_fsdp(self.accelerator, self.args)

    def train_sampler(self) -> StepSampler:
        args = self.args
        return StepSampler(
            self.train_dataset.lengths,
            size=self._train_batch_size,
            accumulation=self.accumulation,
            rank=args.process_index,
            world_size=args.world_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            order=args.train_sampling_strategy,
            drop_last=args.dataloader_drop_last,
            measure=self._measure,
            tokens=None if self.fast.micro_batch_tokens == "off" else self._micro_batch_tokens,
            distinct=self.distinct,
        )

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        pairs: int = super().get_total_train_batch_size(args)
        return pairs * self.accumulation

    def _measure(self) -> Measure:
        """The cost of pairs, which depends on whether prompts are shared."""
        self._decide_prompt_sharing()
        examples = self.train_dataset
        shared = self.policy_forward.is_shared
        return Measure(examples.shared_lengths if shared else examples.lengths, not shared, self.distinct)

    def _micro_batch_tokens(self, measure: Measure) -> int:
        setting = self.fast.micro_batch_tokens
        return token_limit(measure, self._train_batch_size, setting, on_cpu=self.args.device.type == "cpu")

    def _decide_prompt_sharing(self) -> None:
        """Before the first forward pass, check whether a prompt can run once for all its completions."""
        if self._sharing_decided:
            return
        self._sharing_decided = True
        sampler = self.train_sampler()
        # Every process checks the same pairs, so all decide alike.
        picked = sampler.steps()[0][: self._train_batch_size].tolist() if len(sampler) else []
        every = [part for part in (self.train_dataset, self.eval_dataset, self.train_dataset.judges) if part]
        mixed = {"fp16": "float16", "bf16": "bfloat16"}.get(self.accelerator.mixed_precision)
        dtype = mixed or str(next(self.head.model.parameters()).dtype).removeprefix("torch.")
        notice = share_prompts(self.model, self.policy_forward, every, picked, dtype=dtype, device=self.args.device)
        if notice:
            log.warning("%s", notice)

    def get_train_dataloader(self) -> PairLoader:
        return PairLoader.of(StepDataset(self.train_dataset, self.distinct), self.train_sampler(), self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> PairLoader:
        examples = self.eval_dataset if eval_dataset is None else eval_dataset
        if examples is None:
            raise ValueError("Trainer: evaluation requires an eval_dataset.")
        args = self.args
        distinct = of_ranked(examples)
        sampler = EvalSampler(
            examples.lengths, size=args.eval_batch_size, rank=args.process_index, world_size=args.world_size,
            distinct=distinct,
        )  # fmt: skip
        return PairLoader.of(EvalDataset(examples, distinct), sampler, args)

    def _get_num_items_in_batch(self, batch_samples: list[list[Batch]], device: torch.device) -> int | None:
        """Pairs in the whole optimizer step, the divisor of its loss."""
        pairs: int = sum(batch["pairs"] for step in batch_samples for batch in step)
        if self.args.world_size > 1:
            pairs = int(self.accelerator.reduce(torch.tensor(pairs, device=device), "sum"))
        return pairs

    def training_step(self, model: Any, inputs: list[Batch], num_items_in_batch: Any = None) -> Tensor:
        """Loss and gradient of all micro-batches of one optimizer step.

        Trainer's own method divides some losses by the accumulation steps and not others; this one never divides.
        """
        if not model.training:
            model.train()
            if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
                self.optimizer.train()
        total = torch.zeros((), dtype=sum_dtype(self.args.device), device=self.args.device)
        self.method_state.begin(self.state.global_step)
        for number, batch in enumerate(inputs, 1):
            is_last = number == len(inputs)
            # Gradients are reduced over processes with the last micro-batch only.
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                total += self._micro_step(model, self.method_state.fill(batch), num_items_in_batch)
        return total

    def _micro_step(self, model: Any, batch: Batch, pairs_in_step: int | None) -> Tensor:
        try:
            with self.compute_loss_context_manager():
                loss: Tensor = self.compute_loss(model, batch, num_items_in_batch=pairs_in_step)
            options = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
            self.accelerator.backward(loss, **options)
        finally:
            self.policy_forward.release()
        loss = loss.detach()
        self._watch.add(batch["indices"], loss)
        self._tokens += batch["tokens"]
        return loss

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """Σ over the micro-batch's pairs ÷ pairs in the step, times the processes (whose gradients are averaged)."""
        sums = model(**self._model_inputs(inputs, count=model.training))  # (2B,)
        batch = to_device(inputs, self.args.device)
        chosen, rejected = sums.chunk(2)
        result = pair_losses(chosen, rejected, batch["lengths"], batch, self.method, self.method_state.reward_mean)
        weights = batch["pair_weights"]
        self.method_state.add_rewards(result.chosen_rewards, result.rejected_rewards, weights)
        values = pair_metrics(chosen, rejected, result, batch["lengths"], batch, self.method)
        self._metric_sums.add(values, weights, batch["pairs"])
        loss = (result.losses * weights).sum() / (num_items_in_batch or batch["pairs"])
        loss = loss * self.args.world_size
        return (loss, {"logps": sums}) if return_outputs else loss

    def _model_inputs(self, batch: Batch, *, count: bool = False) -> dict[str, Any]:
        """The model's arguments for a batch, on the device."""
        inputs = self.policy_forward.inputs(batch)
        if count:
            self.tokens_run += inputs["input_ids"].numel()
        return to_device(inputs, self.args.device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer calls this once per optimizer step, before it updates the weights."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = getattr(self.accelerator, "scaler", None) is not None
        self._watch.end_step(self.state.global_step + 1, grad_norm, scaled=scaled)
        return grad_norm

    def require_finite_weights(self) -> None:
        """Raise RunError if the adapter's weights are not finite."""
        self._watch.require_finite_weights(self.model, self.state.global_step, self.accelerator)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's training log with the averages over the pairs since the last one."""
        if "loss" in logs and "learning_rate" in logs:
            self._count_tokens()
            logs |= self._metric_sums.averages(self.accelerator) | self.method_state.logs()
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: list[Batch]) -> None:
        """Does nothing: ``training_step`` counts tokens regardless of ``include_num_input_tokens_seen``."""

    def _count_tokens(self) -> None:
        """Add the tokens counted so far to the trainer's state, which checkpoints keep."""
        tokens = self._tokens
        if self.args.world_size > 1:
            tokens = int(self.accelerator.reduce(torch.tensor(tokens, device=self.args.device), "sum"))
        self.state.num_input_tokens_seen += tokens
        self._tokens = 0

    @torch.no_grad()
    def policy_sums(
        self, examples: PreferenceExamples, loader: PairLoader | None = None, *, report: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The policy's sums of every pair, chosen and rejected: (N,) nats each, on the device, dropout off.

        Args:
            loader: batches of pairs; a pair that it leaves out is 0. report: whether to call callbacks after each batch.
        """
        if not (self.accelerator._models or self.is_fsdp_enabled):
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
        model = self.model
        self._decide_prompt_sharing()
        model.eval()
        if hasattr(self.optimizer, "eval") and callable(self.optimizer.eval):
            self.optimizer.eval()
        device = self.args.device
        sums = torch.zeros(2, len(examples), dtype=sum_dtype(device), device=device)
        seen = 0
        for batch in loader if loader is not None else self.get_eval_dataloader(examples):
            result = model(**self._model_inputs(batch)).view(2, -1)
            if batch["pairs"]:
                sums[:, batch["indices"]] = result
                seen += batch["pairs"]
            if report:
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
            seen = int(self.accelerator.reduce(torch.tensor(seen, device=device), "sum"))
        self.pairs_seen = seen
        return sums[0], sums[1]

    def evaluation_loop(
        self,
        dataloader: PairLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Averages over all pairs of the set, each counted once, for any batches and processes."""
        assert isinstance(dataloader.dataset, EvalDataset)
        examples = dataloader.dataset.examples
        self.callback_handler.eval_dataloader = dataloader
        chosen, rejected = self.policy_sums(examples, dataloader)
        require_balance("evaluation", len(examples), self.pairs_seen)
        require_finite_sums(chosen, rejected, examples.pair_ids)
        metrics = evaluation_metrics(chosen, rejected, examples, self.method, self.method_state.snapshot())
        if self.is_in_train:
            self._count_tokens()
        metrics["num_tokens"] = self.state.num_input_tokens_seen
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(examples),
        )

    def floating_point_ops(self, inputs: list[Batch]) -> int:
        """transformers' estimate from the pairs' tokens, with the parameters counted once for all steps."""
        if self._non_embedding_parameters is None:
            self._non_embedding_parameters = self.model.num_parameters(exclude_embeddings=True)
        return int(6 * sum(batch["tokens"] for batch in inputs) * self._non_embedding_parameters)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, its marker last, and then delete older ones."""
        output_dir = Path(self.args.output_dir)
        checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
        self._count_tokens()
        self.require_finite_weights()
        if self.args.should_save:
            checkpoints.remove(checkpoint)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.method_state.write(checkpoint)
            checkpoints.mark_complete(checkpoint, self.identity)
            checkpoints.rotate(output_dir, limit, keep=[self.state.best_model_checkpoint], newest=checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, gathered if FSDP shards it; the frozen base is not gathered."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        adapter = gather_adapter(self.model, frozen=saves_embeddings(self.model))
        if self.args.should_save:
            self._save(output_dir, state_dict=adapter)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the adapter only: no pickled arguments, and no request to the hub for the base's vocabulary."""
        target = output_dir if output_dir is not None else self.args.output_dir
        self.model.save_pretrained(
            target,
            state_dict=state_dict,
            save_embedding_layers=saves_embeddings(self.model),
            is_main_process=self.args.should_save,
        )
