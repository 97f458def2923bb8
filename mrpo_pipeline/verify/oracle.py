"""Log-probs by plain transformers: full logits, one sequence at a time.

Uses neither the engines' batching nor the project's own head, so that their faults show.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.engines.base import TokenIds
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.source import ModelSource

LOGIT_BYTES = 1 << 30  # of logits in memory; a longer completion takes several forward passes
SOFTMAX_ROWS = 256


class PlainModel:
    """A reference's model as transformers loads it, in the dtype of its cache.

    Quantization that only an engine applies (such as ``quantization: fp8`` of a plain checkpoint) is left out; a quantized
    checkpoint is loaded as it is.

    Args:
        source: the reference, with local files.
        device: default: a GPU if there is one, else the CPU.

    Raises:
        UserError: where transformers can't load it.
        RunError: where it does not fit in the device's memory.
    """

    engine = "transformers, one sequence at a time"
    note = ""

    def __init__(self, source: ModelSource, device: str | None = None) -> None:
        import torch

        from mrpo_pipeline.models.context_length import context_length
        from mrpo_pipeline.models.loading import EIGHT_BIT, FOUR_BIT, load_model

        self._name = source.name
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if source.quantization not in (*FOUR_BIT, *EIGHT_BIT):
            source = source.model_copy(update={"quantization": None})
        try:
            model, self.dtype = load_model(source, device=self.device)
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        except ImportError as error:
            raise UserError(
                f"reference {source.name}: transformers can't load {source.model} to recompute log-probs: {error} Install the missing "
                "package, or skip this check (`--check 0`)."
            ) from error
        self._model: Any = model
        self.context_length = context_length(model.config)
        base = model.get_base_model() if source.adapter is not None else model
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._adapted = source.adapter is not None
        self._vocab_size = int(model.get_input_embeddings().weight.shape[0])

    def logps(
        self, prompt_ids: TokenIds, completion_ids: TokenIds, scored: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float32]:
        """(S,) log-probs of the completion's scored tokens in nats, by a float32 log-softmax of the model's logits.

        Args:
            scored: (C,) which of the completion's tokens; None: all.

        Raises:
            RunError: out of memory, or a log-prob is not finite.
        """
        import torch

        ids = torch.from_numpy(np.concatenate([prompt_ids, completion_ids]).astype(np.int64)).to(self.device)
        first, count = len(prompt_ids), len(completion_ids)
        found = np.empty(count, np.float32)
        window = max(1, LOGIT_BYTES // (4 * self._vocab_size))
        try:
            with torch.inference_mode():
                for start in range(0, count, window):
                    end = min(start + window, count)
                    # A token is predicted at the position before it.
                    positions = torch.arange(first + start - 1, first + end - 1, device=self.device)
                    logits = self._logits(ids, positions)  # (W, V)
                    for row in range(0, end - start, SOFTMAX_ROWS):
                        some = logits[row : row + SOFTMAX_ROWS].float()
                        targets = ids[first + start + row : first + start + row + len(some)]
                        logps = some.gather(1, targets[:, None])[:, 0] - some.logsumexp(dim=1)
                        found[start + row : start + row + len(some)] = logps.cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        if scored is not None:
            found = found[scored]
        if not np.isfinite(found).all():
            raise RunError(
                f"reference {self._name}: transformers in {self.dtype} computes a log-prob that is not finite: the weights hold NaN, or "
                "the model exceeds the range of that dtype. The cache was not changed. Set the reference's `dtype` and score again."
            )
        return found

    def _logits(self, ids: Any, positions: Any) -> Any:
        if self._takes_logits_to_keep:
            return self._model(input_ids=ids[None], use_cache=False, logits_to_keep=positions).logits[0]
        return self._model(input_ids=ids[None], use_cache=False).logits[0, positions]

    @property
    def without_adapter(self) -> Callable[[], AbstractContextManager[None]] | None:
        """A context manager that disables the adapter; None without one."""
        return self._model.disable_adapter if self._adapted else None

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("torch", "transformers", "peft")}

    def close(self) -> None:
        """Free the memory."""
        import gc

        import torch

        self._model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _out_of_memory(self) -> RunError:
        return RunError(
            f"reference {self._name} does not fit in the memory of {self.device} with plain transformers, so its log-probs were not "
            "recomputed. Check on the CPU (`CUDA_VISIBLE_DEVICES= mrpo cache verify RECIPE`), or skip the check (`--check 0`)."
        )
