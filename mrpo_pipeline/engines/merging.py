"""An adapter merged into its base and written as a plain checkpoint: `python -m mrpo_pipeline.engines.merging SETTINGS`.

For adapters that vLLM would serve only in part. A process of its own, so that the weights leave no trace in the memory of
who needs the folder. SETTINGS is JSON: `model`, `revision`, `adapter`, `dtype`, `trust_remote_code` and `folder`, into
which the checkpoint goes (safetensors and configuration, no tokenizer).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

EXPECTED = "expected.json"
PROBE_TOKENS = 16
# Exit status for an adapter of a kind that cannot be merged; the reason is the last line of standard error.
NOT_MERGEABLE = 3


class NotMergeableError(Exception):
    """The base model's weights cannot hold what this adapter does."""


def probe_ids(vocab_size: int) -> NDArray[np.int32]:
    """(16,) token ids, spread over the vocabulary, on which two ways through one model are compared."""
    return (np.arange(1, PROBE_TOKENS + 1) * (vocab_size - 1) // PROBE_TOKENS).astype(np.int32)


def merge(settings: dict[str, Any]) -> None:
    """Write the merged checkpoint into `settings["folder"]`, and beside it the log-probs of `probe_ids` before merging.

    The model is held in `dtype`; each layer is widened to float32, merged, and rounded once. Weights that base and head
    share are parted first, since an adapter may change one of them alone, and written as two where they then differ.

    Raises:
        NotMergeableError: an adapter that is no change of weights (prompt tuning, say), or has no place in them.
    """
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
    from transformers import AutoModelForCausalLM, GenerationConfig

    from mrpo_pipeline.quiet import quiet_libraries

    dtype = getattr(torch, settings["dtype"])
    folder = Path(settings["folder"])
    with quiet_libraries(), torch.inference_mode():
        base = AutoModelForCausalLM.from_pretrained(
            settings["model"],
            revision=settings["revision"],
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=settings["trust_remote_code"],
        )
        adapted = PeftModel.from_pretrained(base, settings["adapter"]).eval()
        if not isinstance(adapted.base_model, BaseTuner):
            raise NotMergeableError(f"an adapter of kind {adapted.peft_type} changes no weights and cannot be merged")
        expected = _logps(adapted, probe_ids(base.config.get_text_config().vocab_size))
        tied = _part_shared_weights(adapted)
        for layer in adapted.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.float()
                try:
                    layer.merge(safe_merge=True)
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    raise NotMergeableError(str(error)) from error
                layer.to(dtype)
        merged = adapted.merge_and_unload().to(dtype)
        if tied:
            _settle_ties(merged)
        merged.generation_config = GenerationConfig()  # an odd one would be refused on saving, and scoring needs none
        merged.save_pretrained(folder)
    (folder / EXPECTED).write_text(json.dumps(expected), encoding="utf-8")


def _logps(model: torch.nn.Module, ids: NDArray[np.int32]) -> list[float]:
    """Log-probs of every id but the first, in nats."""
    import torch

    row = torch.from_numpy(ids.astype(np.int64))[None]  # (1, T)
    logits = model(input_ids=row).logits[0, :-1].float()
    picked = logits.log_softmax(-1).gather(-1, row[0, 1:, None])[:, 0]
    return [float(value) for value in picked]


def _part_shared_weights(model: torch.nn.Module) -> bool:
    """Give every place that holds a weight one of its own; whether any was shared."""
    import torch

    seen: set[int] = set()
    shared = False
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) in seen:
                module._parameters[name] = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
                shared = True
            seen.add(id(parameter))
    return shared


def _settle_ties(model: Any) -> None:
    """Share the head's weight with the embedding's again where both stayed equal; the configuration says whether."""
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    equal = torch.equal(embedding.weight, head.weight)
    if equal:
        head.weight = embedding.weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = equal


def main() -> None:
    try:
        merge(json.loads(sys.argv[1]))
    except NotMergeableError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(NOT_MERGEABLE)


if __name__ == "__main__":
    main()
