"""Stage two's training loop: transformers' Trainer with a preference loss on completion log-probs.

Only the policy is in memory; what the references said are columns of numbers in each batch.
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

from mrpo_pipeline.dataset.examples import Batch, PreferenceExamples
from mrpo_pipeline.models.adapters import saves_embeddings
from mrpo_pipeline.models.causality import require_causal
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.pairs.counting import require_balance
from mrpo_pipeline.policy import checkpoints
from mrpo_pipeline.policy.forward import PolicyForward, sum_dtype, to_device
from mrpo_pipeline.policy.fsdp import shard_without_gpus, whole_adapter
from mrpo_pipeline.policy.fused_lora import fuse_adapters
from mrpo_pipeline.policy.method_callback import StepsEnd
from mrpo_pipeline.policy.method_state import Carried
from mrpo_pipeline.policy.metrics import METRICS, evaluation_metrics, pair_losses, pair_metrics
from mrpo_pipeline.policy.nonfinite import broken_step, broken_weights, require_finite_sums
from mrpo_pipeline.policy.prompt_sharing_check import share_prompts
from mrpo_pipeline.policy.sampler import AllOnce, Measure, PairLoader, Steps, StepSampler, token_limit
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.recipe.training import FastPaths

log = logging.getLogger("mrpo")


class PreferenceTrainer(Trainer):  # type: ignore[misc]
    """Trains a ``PeftModel`` against cached references.

    The loss of an optimizer step is the sum over its pairs divided by their number, over all micro-batches and processes.
    Trainer gets a whole step at a time, and sees no accumulation: how many micro-batches a step is split into depends on
    the lengths of its pairs. Metrics are kept as sums on the device, and read once per log.

    Args:
        model: a peft model over a causal language model; its ``forward`` becomes ``PolicyForward``.
        method: what it trains against, and the loss.
        identity: what a checkpoint must agree with to be gone on from (``checkpoints.run_identity``).
        fast: what makes the step cheap.
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
        # Of the base model, in which the adapter's layers stand: the peft model's own forward is about to be replaced.
        head = Head.of(model.get_base_model())
        super().__init__(
            model=model,
            args=args,
            # Trainer's own collator is never called: PairLoader's batches come whole from the dataset.
            data_collator=lambda batch: batch,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        self.head = head
        require_causal(model.eval(), "of the policy", str(next(head.model.parameters()).dtype).removeprefix("torch."))
        # A fresh peft model calls itself training over a base that is not; `training_step` goes by what it says.
        model.eval()
        self.fast = fast or FastPaths()
        self.policy_forward = PolicyForward(head, chunked_head=self.fast.chunked_head)
        model.forward = self.policy_forward
        # Where weights are spread over processes, only a layer's own call brings them together.
        if self.fast.fused_lora and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            fuse_adapters(model)
        self._tried_to_share = not self.fast.share_prompt
        self.method = method
        self.identity = dict(identity or {})
        # Sums over the pairs since the last log: their number, then METRICS.
        self._sums = torch.zeros(1 + len(METRICS), dtype=sum_dtype(args.device), device=args.device)
        self._tokens = 0
        self.tokens_run = 0
        """Tokens that were run through the model in training by this process, padding included."""
        # The micro-batches of the running optimizer step: their pairs, and the loss of each.
        self._step: list[tuple[list[int], Tensor]] = []
        self._pairs_of_step: list[int] = []
        self._non_embedding_parameters: int | None = None
        self.carried = Carried(train_dataset, method, self.train_sampler(), args.seed)
        if self.carried:
            self.add_callback(StepsEnd(self))

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.device.type == "cpu":
            self.is_fsdp_enabled = shard_without_gpus(self.accelerator, self.args)

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
        )

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        pairs: int = super().get_total_train_batch_size(args)
        return pairs * self.accumulation

    def _measure(self) -> Measure:
        """What pairs cost, once it is known how they are laid out."""
        self._try_to_share()
        examples = self.train_dataset
        shared = self.policy_forward.is_shared
        return Measure(examples.shared_lengths if shared else examples.lengths, padded=not shared)

    def _micro_batch_tokens(self, measure: Measure) -> int:
        setting = self.fast.micro_batch_tokens
        return token_limit(measure, self._train_batch_size, setting, on_cpu=self.args.device.type == "cpu")

    def _try_to_share(self) -> None:
        """Before the first pairs are computed: may a prompt stand once for both of its completions?"""
        if self._tried_to_share:
            return
        self._tried_to_share = True
        sampler = self.train_sampler()
        # Every process tries the same pairs, so all come to the same answer.
        picked = sampler.steps()[0].tolist() if len(sampler) else []
        every = [part for part in (self.train_dataset, self.eval_dataset, self.train_dataset.judges) if part]
        mixed = {"fp16": "float16", "bf16": "bfloat16"}.get(self.accelerator.mixed_precision)
        dtype = mixed or str(next(self.head.model.parameters()).dtype).removeprefix("torch.")
        notice = share_prompts(self.model, self.policy_forward, every, picked, dtype=dtype, device=self.args.device)
        if notice:
            log.warning("%s", notice)

    def get_train_dataloader(self) -> PairLoader:
        return PairLoader.of(Steps(self.train_dataset), self.train_sampler(), self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> PairLoader:
        examples = self.eval_dataset if eval_dataset is None else eval_dataset
        if examples is None:
            raise ValueError("Trainer: evaluation requires an eval_dataset.")
        args = self.args
        sampler = AllOnce(
            examples.lengths, size=args.eval_batch_size, rank=args.process_index, world_size=args.world_size
        )
        return PairLoader.of(examples, sampler, args)

    def _get_num_items_in_batch(self, batch_samples: list[list[Batch]], device: torch.device) -> int | None:
        """Pairs in the whole optimizer step: what its loss is divided by."""
        pairs: int = sum(batch["pairs"] for step in batch_samples for batch in step)
        if self.args.world_size > 1:
            pairs = int(self.accelerator.reduce(torch.tensor(pairs, device=device), "sum"))
        return pairs

    def training_step(self, model: Any, inputs: list[Batch], num_items_in_batch: Any = None) -> Tensor:
        """One optimizer step's micro-batches: their loss, and the gradient of that.

        Trainer's own divides some losses by the accumulation steps and not others; this one never does.
        """
        if not model.training:
            model.train()
            if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
                self.optimizer.train()
        total = torch.zeros((), dtype=sum_dtype(self.args.device), device=self.args.device)
        self.carried.begin(self.state.global_step)
        for number, batch in enumerate(inputs, 1):
            is_last = number == len(inputs)
            # Processes give each other their gradients with the last micro-batch alone.
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                total += self._micro_step(model, self.carried.fill(batch), num_items_in_batch)
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
        self._step.append((batch["indices"], loss))
        self._tokens += batch["tokens"]
        return loss

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """Σ over the micro-batch's pairs ÷ pairs in the step, times the processes (whose gradients are averaged)."""
        sums = model(**self._laid_out(inputs, count=model.training))  # (2B,)
        batch = to_device(inputs, self.args.device)
        chosen, rejected = sums.chunk(2)
        result = pair_losses(chosen, rejected, batch["lengths"], batch, self.method, self.carried.reward_mean)
        weights = batch["pair_weights"]
        self.carried.take_rewards(result.chosen_rewards, result.rejected_rewards, weights)
        values = pair_metrics(chosen, rejected, result, batch["lengths"], batch, self.method)
        self._sums[0] += batch["pairs"]
        self._sums[1:] += values @ weights.to(values.dtype)
        loss = (result.losses * weights).sum() / (num_items_in_batch or batch["pairs"])
        loss = loss * self.args.world_size
        return (loss, {"logps": sums}) if return_outputs else loss

    def _laid_out(self, batch: Batch, *, count: bool = False) -> dict[str, Any]:
        """What the model takes, on the device."""
        inputs = self.policy_forward.inputs(batch)
        if count:
            self.tokens_run += inputs["input_ids"].numel()
        return to_device(inputs, self.args.device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer asks once per optimizer step, before the weights move: the place to stop at a broken number."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss = torch.stack([loss for _, loss in self._step]).sum()
        # With a gradient scaler (fp16) an infinite gradient is how it finds its scale: it leaves the step out by itself.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        watched = loss if scaled or grad_norm is None else loss + grad_norm
        if not bool(torch.isfinite(watched)):
            batches = [([self.train_dataset.pair_ids[i] for i in picked], float(part)) for picked, part in self._step]
            norm = None if grad_norm is None else float(grad_norm)
            raise broken_step(self.args, self.state.global_step + 1, batches, norm)
        self._pairs_of_step = [index for picked, _ in self._step for index in picked]
        self._step.clear()
        return grad_norm

    def require_finite_weights(self) -> None:
        """Refuse to keep an adapter that the last step broke: its loss and gradient may have been finite.

        Raises:
            RunError: with the pairs of that step written down.
        """
        trained = [getattr(p, "_local_tensor", p) for p in self.model.parameters() if p.requires_grad]
        broken = torch.stack([~torch.isfinite(one.detach()).all() for one in trained]).any().float()
        if self.args.world_size > 1:
            broken = self.accelerator.reduce(broken, "sum")
        if bool(broken):
            ids = [self.train_dataset.pair_ids[i] for i in self._pairs_of_step]
            raise broken_weights(self.args, self.state.global_step, ids)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's logs of training, with the averages over the pairs since the last one."""
        if "loss" in logs and "learning_rate" in logs:
            self._count_tokens()
            sums = self.accelerator.reduce(self._sums, "sum").tolist()
            self._sums.zero_()
            if sums[0]:
                logs |= {name: value / sums[0] for name, value in zip(METRICS, sums[1:], strict=True)}
            logs |= self.carried.logs() | {"num_tokens": self.state.num_input_tokens_seen}
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: list[Batch]) -> None:
        """Counted in ``training_step``, whatever ``include_num_input_tokens_seen`` says."""

    def _count_tokens(self) -> None:
        """Move the tokens counted here into the trainer's state, which a checkpoint keeps."""
        tokens = self._tokens
        if self.args.world_size > 1:
            tokens = int(self.accelerator.reduce(torch.tensor(tokens, device=self.args.device), "sum"))
        self.state.num_input_tokens_seen += tokens
        self._tokens = 0

    @torch.no_grad()
    def policy_sums(
        self, examples: PreferenceExamples, loader: PairLoader | None = None, *, tell: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The policy's sums of every pair, chosen and rejected: (N,) nats each, on the device, dropout off.

        Args:
            loader: what to go over; a pair it leaves out is 0. tell: whether callbacks hear of every batch.
        """
        if not (self.accelerator._models or self.is_fsdp_enabled):
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
        model = self.model
        self._try_to_share()
        model.eval()
        if hasattr(self.optimizer, "eval") and callable(self.optimizer.eval):
            self.optimizer.eval()
        device = self.args.device
        sums = torch.zeros(2, len(examples), dtype=sum_dtype(device), device=device)
        seen = 0
        for batch in loader if loader is not None else self.get_eval_dataloader(examples):
            result = model(**self._laid_out(batch)).view(2, -1)
            if batch["pairs"]:
                sums[:, batch["indices"]] = result
                seen += batch["pairs"]
            if tell:
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
        """Averages over all pairs of the set, each counted once, whatever the batches and processes."""
        examples = dataloader.dataset
        assert isinstance(examples, PreferenceExamples)
        self.callback_handler.eval_dataloader = dataloader
        chosen, rejected = self.policy_sums(examples, dataloader)
        require_balance("evaluation", len(examples), self.pairs_seen)
        require_finite_sums(chosen, rejected, examples.pair_ids)
        metrics = evaluation_metrics(chosen, rejected, examples, self.method, self.carried.figures())
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
        """As transformers counts them, of the pairs' own tokens; the parameters are counted once and not in every step."""
        if self._non_embedding_parameters is None:
            self._non_embedding_parameters = self.model.num_parameters(exclude_embeddings=True)
        return int(6 * sum(batch["tokens"] for batch in inputs) * self._non_embedding_parameters)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint with its marker last; older ones go only then."""
        output_dir = Path(self.args.output_dir)
        checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
        self._count_tokens()
        self.require_finite_weights()
        if self.args.should_save:
            checkpoints.begin(checkpoint)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.carried.write(checkpoint)
            checkpoints.mark_complete(checkpoint, self.identity)
            checkpoints.rotate(output_dir, limit, keep=[self.state.best_model_checkpoint], newest=checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter, brought together where FSDP spreads it: the frozen base stays where it is."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        adapter = whole_adapter(self.model, frozen=saves_embeddings(self.model))
        if self.args.should_save:
            self._save(output_dir, state_dict=adapter)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter alone: no pickled arguments, and no look at the hub for the base's vocabulary."""
        target = output_dir if output_dir is not None else self.args.output_dir
        self.model.save_pretrained(
            target,
            state_dict=state_dict,
            save_embedding_layers=saves_embeddings(self.model),
            is_main_process=self.args.should_save,
        )
