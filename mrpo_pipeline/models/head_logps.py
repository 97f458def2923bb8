"""Logit scale and cap between output projection and softmax, and log-probs by chunks of positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# The float32 logits of one chunk stay near these sizes. On a CPU a chunk should fit the last-level cache (16 to 32 MiB
# were the fastest), but every chunk reads the complete weight, so it has at least FEWEST_ROWS rows for any vocabulary. On
# a GPU larger blocks keep the cores busy.
CPU_CHUNK_BYTES = 32 << 20
GPU_CHUNK_BYTES = 512 << 20
FEWEST_ROWS = 64


@dataclass(frozen=True, slots=True)
class LogitForm:
    """logits = cap · tanh(multiplier · raw / cap), or multiplier · raw without a cap.

    Gemma-2's `final_logit_softcapping` is a cap, Cohere's `logit_scale` a multiplier, Granite's `logits_scaling` the
    inverse of a multiplier.
    """

    multiplier: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """(N, V) raw projections to (N, V) float32 logits; differentiable."""
        logits = raw.float()
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def chunks(count: int, vocab_size: int, device: torch.device) -> Iterator[slice]:
    """Slices over `count` positions, of about the chunk size in float32 logits each."""
    budget = CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES
    rows = max(FEWEST_ROWS, budget // (4 * vocab_size))
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def logps_of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, V) float32 logits and (N,) target ids to (N,) log-probs in nats; differentiable."""
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    return chosen - torch.logsumexp(logits, dim=-1)


# (hidden (n, H), targets (n,), whether to compute the gradient) -> (log-probs (n,), their gradient (n, H) or None)
ChunkLogps = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def linear_chunk(weight: Tensor, bias: Tensor | None, form: LogitForm) -> ChunkLogps:
    """Log-probs and gradient of one chunk for a plain projection `hidden · weightᵀ + bias`, weight (V, H).

    ∂ logp / ∂ hidden = multiplier · ((onehot − softmax) ⊙ (1 − tanh²)) · weight, tanh² only where logits are capped.
    Works in place on one block of (n, V); a cap needs a second one for the gradient.
    """

    def run(hidden: Tensor, targets: Tensor, want_gradient: bool) -> tuple[Tensor, Tensor | None]:
        logits = torch.mm(hidden, weight.t()).float()  # (n, V); no copy where it is float32 already
        if bias is not None:
            logits.add_(bias)
        if form.multiplier != 1.0:
            logits.mul_(form.multiplier)
        slope = None
        if form.cap is not None:
            logits.div_(form.cap).tanh_()
            slope = 1.0 - logits.square() if want_gradient else None
            logits.mul_(form.cap)
        index = targets[:, None]
        if not want_gradient:
            # One operation over the block, in place on a CPU, where each pass through memory counts.
            on_cpu = logits.device.type == "cpu"
            everything = torch.log_softmax(logits, dim=-1, out=logits) if on_cpu else torch.log_softmax(logits, dim=-1)
            return everything.gather(-1, index).squeeze(-1), None
        chosen = logits.gather(-1, index)  # (n, 1)
        top = logits.amax(dim=-1, keepdim=True)
        exponentials = logits.sub_(top).exp_()
        total = exponentials.sum(dim=-1, keepdim=True)
        logps = (chosen - top - total.log()).squeeze(-1)
        by_logit = exponentials.div_(total.neg_())  # −softmax
        by_logit.scatter_add_(-1, index, torch.ones_like(chosen))
        if slope is not None:
            by_logit.mul_(slope)
        if form.multiplier != 1.0:
            by_logit.mul_(form.multiplier)
        return logps, torch.mm(by_logit.to(weight.dtype), weight)

    return run


def module_chunk(project: Callable[[Tensor], Tensor], form: LogitForm) -> ChunkLogps:
    """``linear_chunk`` for any projection module (quantized, or with an adapter), with autograd's gradient."""

    def run(hidden: Tensor, targets: Tensor, want_gradient: bool) -> tuple[Tensor, Tensor | None]:
        if not want_gradient:
            return logps_of_logits(form(project(hidden)), targets), None
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            logps = logps_of_logits(form(project(leaf)), targets)
            (gradient,) = torch.autograd.grad(logps.sum(), leaf)
        return logps.detach(), gradient

    return run


class _FrozenHead(torch.autograd.Function):
    """Log-probs whose gradient with respect to the hidden states is taken, chunk by chunk, in the forward pass.

    A position's log-prob depends on its own hidden state alone, so the backward pass is a multiplication.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, vocab_size: int, run: ChunkLogps) -> Tensor:
        logps = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for part in chunks(hidden.shape[0], vocab_size, hidden.device):
            logps[part], by_hidden = run(hidden[part], targets[part], True)
            if by_hidden is not None:
                gradient[part] = by_hidden
        ctx.save_for_backward(gradient)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * incoming[0][:, None]).to(gradient.dtype), None, None, None


def frozen_logps(hidden: Tensor, targets: Tensor, vocab_size: int, run: ChunkLogps) -> Tensor:
    """(N, H), (N,) to (N,) float32 through a projection that is not trained; differentiable in `hidden`."""
    if torch.is_grad_enabled() and hidden.requires_grad:
        return cast(Tensor, _FrozenHead.apply(hidden, targets, vocab_size, run))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        logps = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        for part in chunks(hidden.shape[0], vocab_size, hidden.device):
            logps[part] = run(hidden[part], targets[part], False)[0]
    return logps


def trained_logps(
    hidden: Tensor, targets: Tensor, vocab_size: int, project: Callable[[Tensor], Tensor], form: LogitForm
) -> Tensor:
    """``frozen_logps`` for a projection that is trained: each chunk's logits are recomputed in the backward pass."""

    def run(part_of_hidden: Tensor, part_of_targets: Tensor) -> Tensor:
        return logps_of_logits(form(project(part_of_hidden)), part_of_targets)

    parts = [
        checkpoint(run, hidden[part], targets[part], use_reentrant=False)
        for part in chunks(hidden.shape[0], vocab_size, hidden.device)
    ]
    return torch.cat(parts) if parts else hidden.new_empty(0, dtype=torch.float32)
