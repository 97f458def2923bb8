"""Load an adapter onto its base model: resize the vocabulary to the adapter's, and require that every weight of its file is used."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrpo_pipeline.models.files import locate


def put_adapter(model: Any, adapter: str, **settings: Any) -> Any:
    """``PeftModel.from_pretrained`` for any adapter, including one with tokens that the base lacks.

    The base's vocabulary is resized to the adapter's. peft keeps the random initialization of a weight that the file lacks,
    and ignores a weight without a place in the model: both are errors here.

    Args:
        model: the base; changed in place. adapter: folder or hub name. settings: of ``PeftModel.from_pretrained``.

    Raises:
        ValueError: naming some of those weights. Also any error of peft.
    """
    from peft import PeftModel

    folder = locate(adapter)
    before = None if folder is None else _resize(model, folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, adapter, **settings)
    lacking = next((str(one.message) for one in caught if "missing adapter keys" in str(one.message)), None)
    if lacking is not None:
        raise ValueError(f"its files lack weights of modules that it names: {lacking[:200]}")
    _require_all_used(adapted, adapter)
    if before is not None:
        _require_new_rows(adapted, before)
    return adapted


def saves_embeddings(adapted: Any) -> bool:
    """Whether the adapter's file must include the embeddings, because they differ from those in the base's own files.

    True for an adapter with added tokens that stores them neither as `modules_to_save` nor as trainable tokens.
    """
    return bool(getattr(adapted, "own_embeddings", False))


def file_tensors(folder: Path) -> Iterator[tuple[str, str | None, list[int]]]:
    """(module, kind, shape) of every tensor in an adapter's file; kind is None for a weight or bias saved in full."""
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return
    with safe_open(str(path), framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            yield *_split(name), file.get_slice(name).get_shape()


def _split(name: str) -> tuple[str, str | None]:
    """(module, kind) of a tensor in an adapter's file; kind is None for a weight or bias saved in full."""
    parts = name.removeprefix("base_model.model.").split(".")
    for place, part in enumerate(parts):
        if part.startswith(("lora_", "token_adapter")):
            return ".".join(parts[:place]), part
    return ".".join(part for part in parts[:-1] if part != "base_layer"), None


def _vocabulary_rows(model: Any, folder: Path) -> int | None:
    """Rows of embeddings or head that the adapter's tensors imply; None if no tensor shows it.

    Raises:
        ValueError: if they disagree.
    """
    embedding, head = (_name_of(model, module) for module in (model.get_input_embeddings(), _head(model)))
    found: dict[str, int] = {}
    for module, kind, shape in file_tensors(folder):
        last = module.rpartition(".")[2]
        if last not in (embedding, head) or not shape:
            continue
        if kind is None or (last == head and kind == "lora_B"):
            found[f"{module} {kind or ''}".strip()] = shape[0]
        elif kind == "lora_embedding_A":
            found[f"{module} {kind}"] = shape[-1]
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name}: {rows:,}" for name, rows in found.items())
        raise ValueError(f"its tensors are of vocabularies of different sizes ({listed})")
    rows = next(iter(found.values()), None)
    tokens = trained_tokens(folder)
    if rows is None and tokens and max(tokens) >= model.get_input_embeddings().weight.shape[0]:
        return max(tokens) + 1
    return rows


def trained_tokens(folder: Path) -> set[int]:
    """Ids of the tokens that the adapter trains individually."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        given = config.get("trainable_token_indices") or config.get("token_indices") or []
    except (OSError, ValueError, AttributeError):
        return set()  # peft reports what is wrong with it
    lists = given.values() if isinstance(given, dict) else [given]
    return {index for one in lists if isinstance(one, list) for index in one if isinstance(index, int)}


def _resize(model: Any, folder: Path) -> int | None:
    """Resize the base's vocabulary to the adapter's; returns the size before, or None if it is unchanged.

    New rows are NaN until the adapter's file fills them.
    """
    import torch

    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if embedding is None or getattr(embedding, "weight", None) is None:
        return None
    before = int(embedding.weight.shape[0])
    rows = _vocabulary_rows(model, folder)
    if rows is None or rows == before:
        return None
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), _head(model)):
            for parameter in [] if module is None else module.parameters(recurse=False):
                parameter[before:] = float("nan")
    return before


def _require_new_rows(adapted: Any, before: int) -> None:
    """Raise ValueError unless the adapter's file filled all rows from `before` on; clear these rows in peft's copy of the base's."""
    import torch

    base = adapted.get_base_model()
    for module in (base.get_input_embeddings(), _head(base)):
        if module is None:
            continue
        rows = module.weight[before:]
        if not bool(torch.isfinite(rows).all()):
            name = next((name for name, one in base.named_modules() if one is module), "the embeddings")
            raise ValueError(
                f"it adds {len(rows):,} tokens to the {before:,} of the base, and its files do not hold all their rows of {name}"
            )
        original = getattr(module, "original_module", module)
        with torch.no_grad():
            for parameter in original.parameters(recurse=False):
                parameter[before:] = parameter[before:].nan_to_num(0.0)


def _require_all_used(adapted: Any, adapter: str) -> None:
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import load_peft_weights, set_peft_model_state_dict
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not isinstance(adapted.base_model, BaseTuner):
        return
    weights = load_peft_weights(adapter, device="cpu")
    # Where embeddings are wrapped, peft writes them a second time, under names that it does not read itself.
    again = (".modules_to_save.", ".token_adapter.", ".original_module.")
    unused = set_peft_model_state_dict(adapted, weights).unexpected_keys
    unused = [key for key in unused if not any(mark in key for mark in again)]
    if unused:
        raise ValueError(
            f"its files hold {len(unused):,} weights that have no place in the model ({', '.join(sorted(unused)[:3])})"
        )
    base = adapted.get_base_model()
    embedding = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    name = _name_of(base, embedding)
    in_full = any(kind is None and module.rpartition(".")[2] == name for module, kind in map(_split, weights))
    adapted.own_embeddings = in_full and not isinstance(embedding, AuxiliaryTrainingWrapper)


def _head(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _name_of(model: Any, module: Any) -> str | None:
    """The last part of the module's name, wrapped by peft or not."""
    names = [name for name, one in model.named_modules() if module is not None and one is module]
    return names[0].rpartition(".")[2] if names else None
