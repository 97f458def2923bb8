"""Backbone and output projection of a causal LM, used only after a comparison with the model's own forward pass."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mrpo_pipeline.models.head_logps import (
    LogitForm,
    frozen_logps,
    linear_chunk,
    logps_of_logits,
    module_chunk,
    trained_logps,
)

# Largest difference between the model's logits and ours, as a share of the largest logit.
_AGREEMENT = {torch.float32: 2e-5, torch.float64: 1e-9, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_PROBE_LENGTH = 8


class Head:
    """Backbone and output projection of one model.

    `notice` is None if the head is understood, else the reason why full logits are used, row by row.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        backbone: nn.Module | None = None,
        projection: nn.Module | None = None,
        form: LogitForm | None = None,
        vocab_size: int = 0,
        notice: str | None = None,
    ) -> None:
        self.model = model
        self.backbone = backbone
        self.projection = projection
        self.form = form or LogitForm()
        self.vocab_size = vocab_size
        self.notice = notice

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a Hugging Face causal LM, also of one inside a peft `PeftModel`.

        Compared with `model(...).logits` on a few tokens, once unchanged and once with the projection's input enlarged until a
        cap would show; falls back to full logits where they differ.
        """
        try:
            return _understand(model)
        except _NotUnderstoodError as reason:
            name = type(_inner(model)).__name__
            notice = (
                f"{name}: the output head is not one this program understands ({reason}); "
                "log-probs are taken from full logits, one row at a time, which is slower and takes more memory"
            )
            return cls(model, notice=notice)

    @property
    def is_plain(self) -> bool:
        """Whether full logits are computed, one row at a time, because the head is not understood."""
        return self.backbone is None

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """(B, T) ids to the (B, T, H) states before the output projection; differentiable.

        If `is_plain`, the "states" are the (B, T, V) logits; prefer `completion_logps`, which computes row by row.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in inputs.items() if value is not None}
        if self.backbone is None:
            return _logits(self.model(**given, use_cache=False))
        return _first(self.backbone(**given, use_cache=False))

    def token_logps(self, hidden: Tensor, targets: Tensor, *, chunked: bool = True) -> Tensor:
        """Log-probs (N,) float32, in nats, of `targets` (N,) after the states `hidden` (N, H); differentiable.

        If the projection is frozen, the gradient with respect to `hidden` is computed in the forward pass; otherwise the
        logits are recomputed in the backward pass. The log-softmax is float32 for every dtype of the model.

        Args:
            chunked: False keeps the logits of all positions for the backward pass, as autograd does, for comparison.
        """
        if self.projection is None:
            return logps_of_logits(hidden.float(), targets)
        module = self.projection
        if not chunked:
            return logps_of_logits(self.form(module(_as_the_projection_takes(hidden, module))), targets)
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters()):
            return trained_logps(_as_the_projection_takes(hidden, module), targets, self.vocab_size, module, self.form)
        if not (isinstance(module, nn.Linear) and _is_plain_linear(module)):
            return frozen_logps(hidden, targets, self.vocab_size, module_chunk(module, self.form))
        # The cast that autocast would make, once instead of per chunk.
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else module.weight.dtype
        weight = module.weight.detach().to(dtype)
        bias = None if module.bias is None else module.bias.detach()
        return frozen_logps(hidden.to(dtype), targets, self.vocab_size, linear_chunk(weight, bias, self.form))

    def completion_logps(
        self,
        input_ids: Tensor,
        rows: Tensor,
        positions: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Log-probs (N,) float32 of `targets[i]` as predicted at `positions[i]` of row `rows[i]`; differentiable.

        `input_ids` is (B, T). Works for every model: by the head if it is understood, else by full logits of one row at a time
        (of the requested positions only, if the model takes `logits_to_keep`).
        """
        if not self.is_plain:
            hidden = self.hidden_states(input_ids, attention_mask, position_ids)  # (B, T, H)
            return self.token_logps(hidden[rows, positions], targets)
        keeps = "logits_to_keep" in inspect.signature(_inner(self.model).forward).parameters
        parts, places = [], []
        for row in sorted(set(rows.tolist())):
            chosen = (rows == row).nonzero().squeeze(-1)
            end = int(positions[chosen].max()) + 1
            given: dict[str, Any] = {"input_ids": input_ids[row : row + 1, :end]}
            if attention_mask is not None:
                given["attention_mask"] = attention_mask[row : row + 1, :end]
            if position_ids is not None:
                given["position_ids"] = position_ids[row : row + 1, :end]
            if keeps:
                given["logits_to_keep"] = positions[chosen]
            logits = _logits(self.model(**given, use_cache=False))[0]
            if not keeps:
                logits = logits[positions[chosen]]
            parts.append(logps_of_logits(logits.float(), targets[chosen]))
            places.append(chosen)
        if not parts:
            return torch.empty(0, dtype=torch.float32, device=input_ids.device)
        order = torch.cat(places).argsort()
        return torch.cat(parts)[order]


class _NotUnderstoodError(Exception):
    """The head is of an unknown form; the text becomes part of `Head.notice`."""


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _first(output: Any) -> Tensor:
    states = getattr(output, "last_hidden_state", None)
    if states is None:
        states = output[0]
    return states  # type: ignore[no-any-return]


def _logits(output: Any) -> Tensor:
    return output.logits  # type: ignore[no-any-return]


def _as_the_projection_takes(hidden: Tensor, module: nn.Module) -> Tensor:
    # Mamba keeps its residual stream in float32 and casts before the projection; autocast does its own casting.
    if type(module) is nn.Linear and not torch.is_autocast_enabled(hidden.device.type):
        return hidden.to(module.weight.dtype)
    return hidden


def _is_plain_linear(module: nn.Module) -> bool:
    # A subclass, a wrapper or a hook may compute something other than weight and bias.
    return type(module) is nn.Linear and not (
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    )


def _understand(model: Any) -> Head:
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        raise _NotUnderstoodError("a prompt-learning adapter adds to its input")
    inner = _inner(model)
    backbone = getattr(inner, "base_model", None)
    projection = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(backbone, nn.Module) or backbone is inner or not isinstance(projection, nn.Module):
        raise _NotUnderstoodError("it has no separate backbone and output projection")
    with _probing(model), torch.no_grad():
        device = next(projection.parameters()).device
        rows = inner.get_input_embeddings().weight.shape[0]
        ids = torch.randint(0, rows, (1, _PROBE_LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
        try:
            hidden = _as_the_projection_takes(_first(backbone(input_ids=ids, use_cache=False))[0], projection)  # (T, H)
            raw = projection(hidden)
            ordinary = _logits(model(input_ids=ids, use_cache=False))[0].float()
        except Exception as error:
            raise _NotUnderstoodError(f"trying it failed with {type(error).__name__}: {error}") from error
        forms = list(_candidate_forms(inner.config))
        highest_cap = max((form.cap for form in forms if form.cap is not None), default=0.0)
        enlarge = max(100.0, 4 * highest_cap) / max(float(raw.float().abs().max()), 1e-6)
        enlarged = _enlarged_logits(model, projection, ids, enlarge)
        for form in forms:
            if _agree(form(raw), ordinary, raw.dtype) and _agree(
                form(projection(hidden * enlarge)), enlarged, raw.dtype
            ):
                return Head(model, backbone=backbone, projection=projection, form=form, vocab_size=raw.shape[-1])
    raise _NotUnderstoodError("its logits differ from projection, scale and cap")


def _candidate_forms(config: Any) -> Iterator[LogitForm]:
    """The forms that the configuration's numbers suggest, the likeliest first; the probe decides."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config

    def number(name: str) -> float | None:
        value = getattr(text, name, None)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value else None

    divisor = number("logits_scaling")
    multipliers = [
        number("logit_scale"),
        None if divisor is None else 1.0 / divisor,
        number("lm_head_multiplier"),
        1.0,
    ]
    caps = [number("final_logit_softcapping"), number("logits_soft_cap"), None]
    seen = set()
    for multiplier, cap in itertools.product(multipliers, caps):
        # None among the caps means "no cap".
        if multiplier is not None and (multiplier, cap) not in seen:
            seen.add((multiplier, cap))
            yield LogitForm(multiplier, cap)


def _enlarged_logits(model: Any, projection: nn.Module, ids: Tensor, factor: float) -> Tensor:
    """The model's own logits (T, V) with the projection's input multiplied by `factor`."""
    calls = 0

    def enlarge(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        return (inputs[0] * factor, *inputs[1:])

    handle = projection.register_forward_pre_hook(enlarge)
    try:
        logits = _logits(model(input_ids=ids, use_cache=False))[0].float()
    finally:
        handle.remove()
    if calls != 1:
        raise _NotUnderstoodError(f"its forward pass calls the output projection {calls} times")
    return logits


def _agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    if ours.shape != theirs.shape or not bool(torch.isfinite(theirs).all()):
        return False
    allowed = _AGREEMENT.get(dtype, _AGREEMENT[torch.bfloat16]) * max(float(theirs.abs().max()), 1e-3)
    return float((ours - theirs).abs().max()) <= allowed


@contextmanager
def _probing(model: nn.Module) -> Iterator[None]:
    """Eval mode while probing (dropout would make two passes differ), each module's own mode restored after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
