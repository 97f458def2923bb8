"""The transformers engine: batches by token budget, the head only where a completion token is predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from mrpo_pipeline.engines.base import (
    TRANSFORMERS_OPTIONS,
    LogProbs,
    ScoringRequest,
    check_finite,
    check_requests,
    refuse_unknown,
)
from mrpo_pipeline.engines.batching import BATCH_TOKENS, pack
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.source import ModelSource

if TYPE_CHECKING:
    import torch


class TransformersEngine:
    """Scores with `AutoModelForCausalLM`, in this process.

    Options: `device` (cuda where there is one, else cpu), `threads` (of torch, in this process, until closed),
    `attn_implementation`, `max_batch_tokens` (padding counted; 4,096 on a CPU, 16,384 on a GPU, halved where memory runs
    out).
    """

    name = "transformers"

    def __init__(self, source: ModelSource, options: Mapping[str, Any] | None = None) -> None:
        import torch

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
        model, self.dtype = load_model(
            source, device=self._device, attn_implementation=options.get("attn_implementation")
        )
        self.context_length = context_length(model.config)
        self._vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self._head: Head | None = Head.of(model)
        self.notices = [self._head.notice] if self._head.notice else []

    def score(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, LogProbs]]:
        """See `Engine.score`. A batch's results come once the next one has been handed to the device."""
        check_requests(requests, self.context_length, self._vocab_size)
        waiting: tuple[list[int], torch.Tensor] | None = None
        for batch in pack(requests, self._max_batch_tokens):
            for part, logps in self._run(batch, requests):
                if waiting is not None:
                    yield from _by_request(*waiting, requests)
                waiting = (part, logps)
        if waiting is not None:
            yield from _by_request(*waiting, requests)

    def close(self) -> None:
        import gc

        import torch

        self._head = None
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("torch", "transformers", "peft")}

    def _run(self, batch: list[int], requests: Sequence[ScoringRequest]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The batch's log-probs, all completions end to end; in halves where the device's memory does not suffice."""
        import torch

        try:
            logps = self._forward([requests[index] for index in batch])
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise RunError(
                    f"request {batch[0]}: {len(requests[batch[0]])} tokens do not fit in the memory of {self._device} "
                    "even alone. Lower limits.max_length, or give the reference a smaller dtype or a quantization."
                ) from error
        else:
            yield batch, logps
            return
        torch.cuda.empty_cache()
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            yield from self._run(half, requests)

    def _forward(self, batch: list[ScoringRequest]) -> torch.Tensor:
        import torch

        if self._head is None:
            raise RunError("this engine is closed; open another one to score.")
        longest = max(len(request) for request in batch)
        ids = np.zeros((len(batch), longest), dtype=np.int64)  # (B, T), padded on the right
        rows, positions, targets = [], [], []
        for row, request in enumerate(batch):
            prompt, completion = len(request.prompt_ids), len(request.completion_ids)
            ids[row, :prompt] = request.prompt_ids
            ids[row, prompt : prompt + completion] = request.completion_ids
            # A token is predicted at the position before its own: the completion's first at the prompt's last.
            places = np.arange(prompt - 1, prompt - 1 + completion)
            positions.append(places if request.scored is None else places[request.scored])
            targets.append(request.scored_ids.astype(np.int64))
            rows.append(np.full(len(targets[-1]), row))
        flat = [torch.from_numpy(np.concatenate(parts)).to(self._device) for parts in (rows, positions, targets)]
        # No attention mask: padding stands on the right, where a causal model's earlier positions do not see it, and
        # without a mask attention takes its fast causal path.
        with torch.inference_mode():
            return self._head.completion_logps(torch.from_numpy(ids).to(self._device), *flat)


def _by_request(
    batch: list[int], logps: torch.Tensor, requests: Sequence[ScoringRequest]
) -> Iterator[tuple[int, LogProbs]]:
    everything = logps.float().cpu().numpy()
    start = 0
    for index in batch:
        end = start + len(requests[index].scored_ids)
        own = everything[start:end].copy()
        check_finite(index, requests[index], own)
        yield index, own
        start = end
