"""Merge an adapter into its base, and write the result as a plain checkpoint. No other module merges.

`mrpo merge` calls `merge`. For adapters that vLLM would serve only in part, its engine runs
`python -m mrpo_pipeline.models.merging SETTINGS` in a separate process, so that the weights do not stay in the caller's memory.
SETTINGS is JSON: `model`, `revision`, `adapter`, `dtype`, `trust_remote_code`, and `folder` for the checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.adapters import trained_tokens
from mrpo_pipeline.models.files import locate, read_config
from mrpo_pipeline.models.merge_check import Differences, NotMergeableError, fingerprint, logps, merge_layer, probe_rows
from mrpo_pipeline.models.merged_files import copy_files, write_config
from mrpo_pipeline.models.source import ModelSource, stored_dtype

if TYPE_CHECKING:
    import torch

EXPECTED = "expected.json"
PROBE_TOKENS = 16
# Exit status for an adapter of a kind that cannot be merged; the reason is the last line of standard error.
NOT_MERGEABLE = 3
_SHARD = "5GB"


def probe_ids(vocab_size: int) -> NDArray[np.int32]:
    """(16,) token ids, spread over the vocabulary, on which two computations of one model are compared."""
    return (np.arange(1, PROBE_TOKENS + 1) * (vocab_size - 1) // PROBE_TOKENS).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Adapted:
    """The adapted model before merging, for comparison.

    Attributes:
        rows: token ids of the texts. logps: (N, V) nats, log-probs after every position of them. base: (N, V) the same without
            the adapter.
        short: log-probs of `probe_ids(vocab_size)`, except the first.
        lost: size of the rounding of the merged weights, as a share of the adapter's change.
        weights: hash of every merged tensor. settings: the merged configuration.
    """

    dtype: str
    rows: list[list[int]]
    logps: torch.Tensor
    base: torch.Tensor
    vocab_size: int
    short: list[float]
    lost: float
    weights: Mapping[str, str]
    settings: Mapping[str, Any]


def merge(
    source: ModelSource, folder: Path, *, texts: Sequence[Sequence[int]] = (), tokenizer: Path | None = None
) -> Adapted:
    """Write the merged checkpoint into `folder`: weights, configuration, and the other files of the base.

    The model is held in its dtype; each layer is widened to float32, merged, and rounded once. Weights that embeddings and
    head share are separated first, because an adapter may change only one of them; if they then differ, both are stored.

    Args:
        source: base and adapter. texts: token ids to compare on, in addition to those spread over the vocabulary.
        tokenizer: folder whose tokenizer files replace the base's.

    Raises:
        NotMergeableError: an adapter that does not change weights (such as prompt tuning), or that peft does not merge exactly.
        UserError: base or adapter cannot be loaded.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
    from transformers import AutoConfig

    from mrpo_pipeline.models.loading import load_model
    from mrpo_pipeline.terminal import quiet_libraries

    base_folder = _unquantized(source)
    with quiet_libraries(), torch.inference_mode():
        before = AutoConfig.from_pretrained(base_folder, trust_remote_code=source.trust_remote_code).to_dict()
        source = source.model_copy(update={"dtype": stored_dtype(source)})
        loaded, dtype = load_model(source, device=torch.device("cpu"), prefix="")
        model: Any = loaded
        if not isinstance(getattr(model, "base_model", None), BaseTuner):
            raise NotMergeableError(
                f"an adapter of kind {model.peft_type.value} changes no weights and cannot be merged"
            )
        vocab_size = int(model.get_input_embeddings().weight.shape[0])
        special = trained_tokens(Path(source.adapter or "")) | set(range(_vocab_size(before), vocab_size))
        rows = [*probe_rows(model.config, vocab_size, sorted(special)), *map(list, texts)]
        expected = logps(model, rows)
        ids = probe_ids(vocab_size)
        short = logps(model, [ids.tolist()])[:-1].gather(-1, torch.from_numpy(ids[1:].astype(np.int64))[:, None])[:, 0]
        with model.disable_adapter():
            base = logps(model, rows)
        tied = _separate_shared_weights(model)
        squares = [
            merge_layer(name.removeprefix("base_model.model."), layer)
            for name, layer in model.named_modules()
            if isinstance(layer, BaseTunerLayer)
        ]
        change, rounding = sum(one[0] for one in squares), sum(one[1] for one in squares)
        lost = (rounding / change) ** 0.5 if change else 0.0
        merged = model.merge_and_unload()
        if tied:
            _settle_ties(merged)
        adapted = Adapted(
            dtype, rows, expected, base, vocab_size, short.tolist(), lost, fingerprint(merged), merged.config.to_dict()
        )
        write_config(merged, base_folder, before, dtype, folder)
        _write_weights(merged, folder)
        copy_files(base_folder, tokenizer, folder)
    return adapted


def compare(adapted: Adapted, folder: Path, *, trust_remote_code: bool = False) -> Differences:
    """Load the merged checkpoint from disk, and compare it with the adapted model.

    Raises:
        RunError: it is not the model that was merged, or computes other log-probs.
    """
    import torch

    from mrpo_pipeline.models.loading import load_model
    from mrpo_pipeline.terminal import quiet_libraries

    source = ModelSource(model=str(folder), trust_remote_code=trust_remote_code).named("the merged model")
    with quiet_libraries(), torch.inference_mode():
        try:
            source = source.model_copy(update={"dtype": stored_dtype(source)})
            model, dtype = load_model(source, device=torch.device("cpu"), prefix="")
        except UserError as error:
            raise RunError(f"The merged model cannot be loaded from its own files: {error}") from error
        found = fingerprint(model)
        other = sorted(name for name in {*found, *adapted.weights} if found.get(name) != adapted.weights.get(name))
        if other or dtype != adapted.dtype:
            raise RunError(
                f"The merged model is another one once it is loaded from its files ({len(other):,} tensors differ, "
                f"{', '.join(other[:3])}; {dtype} for {adapted.dtype}): its architecture has no place for what this adapter changes."
            )
        settings = model.config.to_dict()
        changed = [key for key in adapted.settings if key[0] != "_" and settings.get(key) != adapted.settings[key]]
        changed = [key for key in changed if key not in ("transformers_version", "dtype", "architectures", "auto_map")]
        if changed:
            raise RunError(f"The merged model's configuration is another one once it is loaded ({', '.join(changed)}).")
        return Differences.between(adapted.base, adapted.logps, logps(model, adapted.rows), dtype)


def _unquantized(source: ModelSource) -> Path:
    """The base's folder.

    Raises:
        UserError: if this machine has none. NotMergeableError: its weights are quantized.
    """
    folder = locate(source.model, source.revision)
    if folder is None:
        raise UserError(
            f"The base model {source.model} is not on this machine: expected a folder or a downloaded model."
        )
    config = read_config(source.name, folder / "config.json") or {}
    parts = [config, config.get("text_config")]
    kind = next(
        (one["quantization_config"] for one in parts if isinstance(one, dict) and one.get("quantization_config")), None
    )
    if kind is not None:
        method = kind.get("quant_method", "unknown") if isinstance(kind, dict) else kind
        raise NotMergeableError(
            f"the weights of {source.model} are quantized ({method}), and a merged change would be rounded away"
        )
    return folder


def _vocab_size(settings: Mapping[str, Any]) -> int:
    text = settings.get("text_config")
    found = settings.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    return int(found) if isinstance(found, int) else sys.maxsize


def _separate_shared_weights(model: torch.nn.Module) -> bool:
    """Give every module its own copy of a shared weight; returns whether any was shared."""
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
    """Tie head and embeddings again if both stayed equal, and record in the configuration whether they are tied."""
    import torch

    embedding, head = (
        getattr(one, "weight", None) for one in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    if embedding is None or head is None:
        return
    equal = torch.equal(embedding, head)
    if equal:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = equal


def _write_weights(model: Any, folder: Path) -> None:
    """Write safetensors only. transformers refuses to save some configurations that it loads; `write_config` writes them."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    vars(model.config)["save_pretrained"] = lambda *_, **__: None
    model.save_pretrained(folder, max_shard_size=_SHARD)
    (folder / "generation_config.json").unlink(missing_ok=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    folder = Path(settings.pop("folder"))
    try:
        adapted = merge(ModelSource(**settings).named("the model"), folder)
    except NotMergeableError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(NOT_MERGEABLE)
    expected = {"vocab_size": adapted.vocab_size, "logps": adapted.short}
    (folder / EXPECTED).write_text(json.dumps(expected), encoding="utf-8")


if __name__ == "__main__":
    main()
