"""The linear modules of a base model that get an adapter: those of its language model.

A multimodal model also has vision and audio towers and projectors, whose modules often have the same names (``q_proj``).
Text does not train adapters there, and vLLM refuses or drops them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.probe_token_ids import ordinary_ids, special_ids

ALL_LINEAR = "all-linear"

_PROBE_LENGTH = 8


def linear_modules(model: Any) -> dict[str, list[str]]:
    """Last name → full names of the modules that an adapter can be added to, without the output head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            found.setdefault(name.rpartition(".")[2], []).append(name)
    return found


def target_modules(model: Any, setting: Sequence[str] | str) -> tuple[list[str] | str, list[str]]:
    """The modules of this model that ``policy.lora.target_modules`` selects.

    Returns:
        the value of peft's ``target_modules`` (the setting itself if it selects nothing outside the language model, else full
        names), and the full names.

    Raises:
        UserError: for names that the model does not have, or has only outside its language model.
    """
    every = [name for names in linear_modules(model).values() for name in names]
    if isinstance(setting, str) and setting.lower() == ALL_LINEAR:
        given: list[str] | str = ALL_LINEAR
        meant = {ALL_LINEAR: every}
    else:
        given = [setting] if isinstance(setting, str) else [*setting]
        meant = _named(given, model)
    outside = _outside_of_language_model(model)
    if not any(outside(name) for names in meant.values() for name in names):
        return given, [name for names in meant.values() for name in names]
    kept = {target: [name for name in names if not outside(name)] for target, names in meant.items()}
    unreached = [target for target, names in kept.items() if not names]
    if unreached:
        raise UserError(
            f"The setting policy.lora.target_modules names {', '.join(unreached)}, which {type(model).__name__} has outside its "
            f"language model alone ({meant[unreached[0]][0]}): text does not run through it, and would not train it. Expected some of "
            f"{', '.join(sorted({name.rpartition('.')[2] for name in every if not outside(name)}))}, or {ALL_LINEAR} for all of "
            "them. Correct policy.lora.target_modules."
        )
    names = list(dict.fromkeys(name for names in kept.values() for name in names))
    return names, names


def _named(targets: Sequence[str], model: Any) -> dict[str, list[str]]:
    """Full names of the modules that each name matches by peft's rule: the whole name or its end."""
    names = [name for name, _ in model.named_modules()]
    matches = {target: [n for n in names if n == target or n.endswith(f".{target}")] for target in targets}
    absent = [target for target, found in matches.items() if not found]
    if absent or not targets:
        raise UserError(
            f"The setting policy.lora.target_modules names {', '.join(absent) or 'no module'}, which "
            f"{type(model).__name__} does not have: expected some of {', '.join(sorted(linear_modules(model)))}, or {ALL_LINEAR} "
            "for all of them. Correct policy.lora.target_modules."
        )
    return matches


def _outside_of_language_model(model: Any) -> Callable[[str], bool]:
    """A predicate on full names: whether a module is outside the language model.

    It runs the model on a few tokens. Names are compared without layer and expert numbers, so an expert that got no token is
    inside if another one was called. A module that its layer uses without calling it (Mamba's fused kernels) is inside if the
    layer was called.
    """
    called = _called_modules(model)
    if called is None:
        return _outside_by_name(model)
    reached = {_numberless(name) for name in called}

    def outside(name: str) -> bool:
        pattern = _numberless(name)
        layer = pattern.rpartition(".")[0]
        return pattern not in reached and not ("*" in layer and layer in reached)

    return outside


def _outside_by_name(model: Any) -> Callable[[str], bool]:
    """The same by the decoder's name, for a model that can't run (such as one on the meta device)."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    inside = f"{names[id(decoder)]}." if names.get(id(decoder)) else ""
    return lambda name: not name.startswith(inside) and name != names.get(id(head))


def _called_modules(model: Any) -> set[str] | None:
    """Full names of the modules that a forward pass over text calls; None if it fails."""
    import torch

    called: set[str] = set()
    modules = list(model.named_modules())
    handles = [
        module.register_forward_hook(lambda *_, name=name, **__: called.add(name), with_kwargs=True)
        for name, module in modules
    ]
    training = {module: module.training for _, module in modules}
    model.eval()
    try:
        device = model.get_input_embeddings().weight.device
        rows = int(model.get_input_embeddings().weight.shape[0])
        ids = torch.from_numpy(ordinary_ids(rows, special_ids(model.config.to_dict()), _PROBE_LENGTH))[None].to(device)
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except Exception:  # of any type, by architecture
        return None
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return called


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
