"""Stage two's training loop: transformers' Trainer with a preference loss on completion log-probs.

Only the policy is in memory; what the references said are columns of numbers in each batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.head import Head
from mrpo_pipeline.policy import checkpoints
from mrpo_pipeline.policy.batches import AllOnce, PairLoader, StepSampler
from mrpo_pipeline.policy.examples import Batch, PreferenceExamples
from mrpo_pipeline.policy.forward import PolicyForward, forward_inputs, to_device
from mrpo_pipeline.policy.metrics import METRICS, evaluation_metrics, pair_losses, pair_metrics
from mrpo_pipeline.policy.settings import LossSettings

NAN_BATCH = "nan_batch.json"


class PreferenceTrainer(Trainer):  # type: ignore[misc]
    """Trains a ``PeftModel`` against cached references.

    The loss of an optimizer step is the sum over its pairs divided by their number, over all micro-batches and processes.
    Metrics are kept as sums on the device, and read once per log.

    Args:
        model: a peft model over a causal language model; its ``forward`` becomes ``PolicyForward``.
        settings: the preference loss.
        identity: what a checkpoint must agree with to be gone on from (``checkpoints.run_identity``).
    """

    train_dataset: PreferenceExamples
    eval_dataset: PreferenceExamples | None
    control: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        settings: LossSettings,
        train_dataset: PreferenceExamples,
        eval_dataset: PreferenceExamples | None = None,
        *,
        identity: Mapping[str, str] | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
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
        # A fresh peft model calls itself training over a base that is not; `training_step` goes by what it says.
        model.eval()
        model.forward = PolicyForward(head)
        self.settings = settings
        self.identity = dict(identity or {})
        # Sums over the pairs since the last log: their number, then METRICS.
        self._sums = torch.zeros(1 + len(METRICS), dtype=_wide(args.device), device=args.device)
        self._tokens = 0
        # The micro-batches of the running optimizer step: their pairs, and the loss of each.
        self._step: list[tuple[list[int], Tensor]] = []
        self._non_embedding_parameters: int | None = None

    def train_sampler(self) -> StepSampler:
        args = self.args
        return StepSampler(
            self.train_dataset.lengths,
            size=self._train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index,
            world_size=args.world_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
            order=args.train_sampling_strategy,
            drop_last=args.dataloader_drop_last,
        )

    def get_train_dataloader(self) -> PairLoader:
        return PairLoader(self.train_dataset, self.train_sampler(), **self._loader_options())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> PairLoader:
        examples = self.eval_dataset if eval_dataset is None else eval_dataset
        if examples is None:
            raise ValueError("Trainer: evaluation requires an eval_dataset.")
        args = self.args
        sampler = AllOnce(
            examples.lengths, size=args.eval_batch_size, rank=args.process_index, world_size=args.world_size
        )
        return PairLoader(examples, sampler, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        args = self.args
        return {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> int | None:
        """Pairs in the whole optimizer step: what its loss is divided by."""
        pairs: int = sum(batch["pairs"] for batch in batch_samples)
        if self.args.world_size > 1:
            pairs = int(self.accelerator.reduce(torch.tensor(pairs, device=device), "sum"))
        return pairs

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: its share of the step's loss, and the gradient of that.

        Trainer's own divides some losses by the accumulation steps and not others; this one never does.
        """
        if not model.training:
            model.train()
            if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
                self.optimizer.train()
        with self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        options = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        self.accelerator.backward(loss, **options)
        loss = loss.detach()
        self._step.append((inputs["indices"], loss))
        self._tokens += inputs["tokens"]
        return loss

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """Σ over the micro-batch's pairs ÷ pairs in the step, times the processes (whose gradients are averaged)."""
        batch = to_device(inputs, self.args.device)
        sums = model(**forward_inputs(batch))  # (2B,)
        chosen, rejected = sums.chunk(2)
        result = pair_losses(chosen, rejected, batch["lengths"], batch, self.settings)
        weights = batch["pair_weights"]
        values = pair_metrics(chosen, rejected, result, batch["lengths"], batch, self.settings)
        self._sums[0] += batch["pairs"]
        self._sums[1:] += values @ weights.to(values.dtype)
        loss = (result.losses * weights).sum() / (num_items_in_batch or batch["pairs"])
        loss = loss * self.args.world_size
        return (loss, {"logps": sums}) if return_outputs else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer asks once per optimizer step, before the weights move: the place to stop at a broken number."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        loss = torch.stack([loss for _, loss in self._step]).sum()
        # With a gradient scaler (fp16) an infinite gradient is how it finds its scale: it leaves the step out by itself.
        scaled = getattr(self.accelerator, "scaler", None) is not None
        watched = loss if scaled or grad_norm is None else loss + grad_norm
        if not bool(torch.isfinite(watched)):
            raise self._broken_step(float(loss), grad_norm)
        self._step.clear()
        return grad_norm

    def _broken_step(self, loss: float, grad_norm: Any) -> RunError:
        batches = [([self.train_dataset.pair_ids[i] for i in picked], float(part)) for picked, part in self._step]
        broken = [pair for pairs, part in batches if part - part != 0 for pair in pairs]
        record = {
            "step": self.state.global_step + 1,
            "loss": str(loss),
            "grad_norm": str(None if grad_norm is None else float(grad_norm)),
            "pair_ids": [pair for pairs, _ in batches for pair in pairs],
            "pair_ids_of_broken_losses": broken,
        }
        name = NAN_BATCH if self.args.world_size == 1 else f"nan_batch-{self.args.process_index}.json"
        path = Path(self.args.output_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
        what = f"the loss is {loss}" if loss - loss != 0 else "the gradient is not finite"
        return RunError(
            f"Training stopped in step {record['step']}: {what}. The pairs of that step are in {path}; the weights were not "
            "changed by it, and checkpoints written before are good. Look at those pairs; a lower training.learning_rate, "
            "training.bf16 instead of fp16, or a model whose log-probs are finite on them mends this."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's logs of training, with the averages over the pairs since the last one."""
        if "loss" in logs and "learning_rate" in logs:
            self._count_tokens()
            sums = self.accelerator.reduce(self._sums, "sum").tolist()
            self._sums.zero_()
            if sums[0]:
                logs |= {name: value / sums[0] for name, value in zip(METRICS, sums[1:], strict=True)}
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        """Counted in ``training_step``, whatever ``include_num_input_tokens_seen`` says."""

    def _count_tokens(self) -> None:
        """Move the tokens counted here into the trainer's state, which a checkpoint keeps."""
        tokens = self._tokens
        if self.args.world_size > 1:
            tokens = int(self.accelerator.reduce(torch.tensor(tokens, device=self.args.device), "sum"))
        self.state.num_input_tokens_seen += tokens
        self._tokens = 0

    @torch.no_grad()
    def policy_sums(self, examples: PreferenceExamples, loader: PairLoader | None = None) -> tuple[Tensor, Tensor]:
        """The policy's sums of every pair, chosen and rejected: (N,) nats each, on the device, dropout off.

        Args:
            loader: what to go over; a pair it leaves out is 0.
        """
        if not self.accelerator._models:
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
        model = self.model
        model.eval()
        if hasattr(self.optimizer, "eval") and callable(self.optimizer.eval):
            self.optimizer.eval()
        device = self.args.device
        sums = torch.zeros(2, len(examples), dtype=_wide(device), device=device)
        for batch in loader if loader is not None else self.get_eval_dataloader(examples):
            moved = to_device(batch, device)
            result = model(**forward_inputs(moved)).view(2, -1)
            if batch["pairs"]:
                sums[:, batch["indices"]] = result
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
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
        metrics = evaluation_metrics(chosen, rejected, examples, self.settings)
        if self.is_in_train:
            self._count_tokens()
        metrics["num_tokens"] = self.state.num_input_tokens_seen
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(examples),
        )

    def floating_point_ops(self, inputs: Batch) -> int:
        """As transformers counts them; the parameters are counted once and not in every step."""
        if self._non_embedding_parameters is None:
            self._non_embedding_parameters = self.model.num_parameters(exclude_embeddings=True)
        return int(6 * inputs["input_ids"].numel() * self._non_embedding_parameters)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint with its marker last; older ones go only then."""
        output_dir = Path(self.args.output_dir)
        checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
        self._count_tokens()
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
            checkpoints.mark_complete(checkpoint, self.identity)
            checkpoints.rotate(output_dir, limit, keep=[self.state.best_model_checkpoint])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter alone: no pickled arguments, and no look at the hub for the base's vocabulary, which is unchanged."""
        target = output_dir if output_dir is not None else self.args.output_dir
        self.model.save_pretrained(
            target, state_dict=state_dict, save_embedding_layers=False, is_main_process=self.args.should_save
        )


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
