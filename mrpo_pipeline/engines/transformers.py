"""The transformers engine: batches by token budget, each prompt once, the head only at positions that predict a completion token."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.engines.base import (
    TRANSFORMERS_OPTIONS,
    LogProbs,
    ScoringRequest,
    check_finite,
    check_requests,
    refuse_unknown,
)
from mrpo_pipeline.engines.batching import BATCH_TOKENS, Indices, as_groups, by_prompt, pack, pack_groups, to_compare
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.input_layouts import Group
from mrpo_pipeline.models.source import ModelSource

if TYPE_CHECKING:
    import torch

    from mrpo_pipeline.models.completion_forward import CompletionForward

log = logging.getLogger("mrpo")


class TransformersEngine:
    """Scores with `AutoModelForCausalLM`, in this process.

    A prompt and all its completions share one row if the model then gives the log-probs of plain rows: this is checked on the first
    requests, and again on longer ones.

    Options: `device` (default: cuda if available, else cpu), `threads` (of torch, in this process, until closed),
    `attn_implementation` (used as given, and every completion then runs its prompt), `max_batch_tokens` (padding counted;
    default 4,096 on a CPU, 16,384 on a GPU, halved when memory runs out).
    """

    name = "transformers"

    def __init__(self, source: ModelSource, options: Mapping[str, Any] | None = None) -> None:
        import torch

        from mrpo_pipeline.models.completion_forward import CompletionForward
        from mrpo_pipeline.models.head import Head
        from mrpo_pipeline.models.loading import load_model

        options = dict(options or {})
        refuse_unknown(options, TRANSFORMERS_OPTIONS, self.name)
        self._device = torch.device(options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._threads_before: int | None = None
        threads = options.get("threads")
        if threads is not None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(int(threads))
        default = BATCH_TOKENS["cpu" if self._device.type == "cpu" else "gpu"]
        self._max_batch_tokens = int(options.get("max_batch_tokens") or default)
        if self._max_batch_tokens < 1:
            raise UserError(f"scoring.max_batch_tokens: {self._max_batch_tokens} found, at least 1 expected.")
        attention = options.get("attn_implementation")
        model, self.dtype = load_model(source, device=self._device, attn_implementation=attention)
        self.context_length = context_length(model.config)
        self._vocab_size = int(model.get_input_embeddings().weight.shape[0])
        head = Head.of(model)
        self._forward: CompletionForward | None = CompletionForward(head)
        self._may_share = attention is None
        # The longest requests whose shared rows were compared with plain ones, see `to_compare`.
        self._compared: dict[str, int] = {}
        self.notices = [head.notice] if head.notice else []

    def score(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, LogProbs]]:
        """See `Engine.score`. A batch's results are yielded after the next batch was sent to the device."""
        check_requests(requests, self.context_length, self._vocab_size)
        waiting: tuple[Indices, torch.Tensor] | None = None
        for batch, known in self._batches(requests):
            for part, logps in self._run(batch, requests) if known is None else [(_flat(batch), known)]:
                if waiting is not None:
                    yield from _by_request(*waiting, requests)
                waiting = (part, logps)
        if waiting is not None:
            yield from _by_request(*waiting, requests)

    def _batches(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[list[Indices], torch.Tensor | None]]:
        """Batches, grouped by prompt if prompts are shared, and the log-probs of a batch that has already run."""
        shared = self._may_share
        groups = by_prompt(requests) if shared else [list(range(len(requests)))]
        for batch in pack_groups(groups, requests, self._max_batch_tokens) if shared else [groups]:
            known = self._try(batch, requests)
            if self._may_share:
                yield batch, known
            else:
                for part in pack(requests, self._max_batch_tokens, _flat(batch)):
                    yield [[index] for index in part[::-1]], None

    def _try(self, batch: list[Indices], requests: Sequence[ScoringRequest]) -> torch.Tensor | None:
        """Compare the batch's longest completions with plain rows, if longer than any before; returns its log-probs if it ran."""
        import torch

        from mrpo_pipeline.models.prompt_sharing_check import Trial, share_prompts

        compared = dict(self._compared)
        picked = to_compare(batch, requests, compared) if self._may_share else []
        if not picked:
            return None
        forward, indices = self._open(), _flat(batch)
        ran: list[torch.Tensor] = []
        counts = [len(requests[index].scored_ids) for index in indices]
        places = [indices.index(index) for index in picked]

        def sums() -> torch.Tensor:
            if not forward.is_shared:
                return torch.cat([self._sums(as_groups([[index]], requests)) for index in picked])
            ran[:] = [self._logps(as_groups(batch, requests))]
            return torch.stack([part.double().sum() for part in torch.split(ran[0], counts)])[places]

        trial, before = Trial(sums, [counts[place] for place in places]), forward.attention
        try:
            reason = share_prompts(forward, self._sums, [trial], dtype=self.dtype, device=self._device)
            too_large = False
        except torch.OutOfMemoryError:
            too_large = True
        if too_large:  # outside the except clause, which keeps the failed call's tensors alive
            forward.attention = before
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            for half in _halves(batch) if len(indices) > 1 else ():
                self._try(half, requests)
            self._may_share = self._may_share and forward.is_shared
            return None
        self._compared, self._may_share = compared, reason is None
        if reason is not None:
            log.warning("%s", reason)
            return None
        return ran[0]

    def close(self) -> None:
        import gc

        import torch

        self._forward = None
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("torch", "transformers", "peft")}

    def _run(self, batch: list[Indices], requests: Sequence[ScoringRequest]) -> Iterator[tuple[Indices, torch.Tensor]]:
        """The batch's log-probs, all completions concatenated; in halves if the device runs out of memory."""
        import torch

        indices = _flat(batch)
        try:
            logps = self._logps(as_groups(batch, requests))
        except torch.OutOfMemoryError as error:
            if len(indices) == 1:
                raise RunError(
                    f"request {indices[0]}: {len(requests[indices[0]])} tokens do not fit in the memory of {self._device} "
                    "even alone. Lower limits.max_length, or give the reference a smaller dtype or a quantization."
                ) from error
        else:
            yield indices, logps
            return
        torch.cuda.empty_cache()
        for half in _halves(batch):
            yield from self._run(half, requests)

    def _open(self) -> CompletionForward:
        if self._forward is None:
            raise RunError("this engine is closed; open another one to score.")
        return self._forward

    def _logps(self, groups: Sequence[Group]) -> torch.Tensor:
        """(M,) of the scored tokens, completion by completion."""
        import torch

        from mrpo_pipeline.models.completion_forward import to_device

        forward = self._open()
        rows = forward.rows(groups)
        del rows["completions"], rows["count"]
        with torch.inference_mode():
            return forward.token_logps(**to_device(rows, self._device))

    def _sums(self, groups: Sequence[Group]) -> torch.Tensor:
        """(C,) of the completions."""
        import torch

        counts = [count for group in groups for count in group.counts]
        return torch.stack([part.double().sum() for part in torch.split(self._logps(groups), counts)])


def _flat(batch: list[Indices]) -> Indices:
    return [index for group in batch for index in group]


def _halves(batch: list[Indices]) -> tuple[list[Indices], list[Indices]]:
    """Split a batch in two: its groups, or the requests of its only group."""
    if len(batch) > 1:
        return batch[: len(batch) // 2], batch[len(batch) // 2 :]
    (group,) = batch
    return [group[: len(group) // 2]], [group[len(group) // 2 :]]


def _by_request(
    batch: Indices, logps: torch.Tensor, requests: Sequence[ScoringRequest]
) -> Iterator[tuple[int, LogProbs]]:
    everything = logps.float().cpu().numpy()
    end = len(everything)
    for index in reversed(batch):  # the longest is last
        start = end - len(requests[index].scored_ids)
        own = everything[start:end].copy()
        check_finite(index, requests[index], own)
        yield index, own
        end = start
