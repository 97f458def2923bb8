"""Settings of stage two, as plain dataclasses: the recipe maps its keys to these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685), named as peft names them without the ``lora_`` prefix."""

    r: int = 8
    """Rank."""
    alpha: float = 16
    """The update is scaled by alpha / r (by alpha / √r with ``use_rslora``)."""
    dropout: float = 0.0
    """Dropout on the adapter's input, in training only."""
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    """Names of linear modules, or ``all-linear``: every linear module of the language model but the output head."""
    use_rslora: bool = False
    """Rank-stabilized scaling (arXiv 2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed adapters (arXiv 2402.09353)."""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The policy's start, its adapters, and whether its start is checked against the cached anchor."""

    model: str
    """A folder or a hub name."""
    revision: str | None = None
    adapter: str | None = None
    """A LoRA adapter to go on training; its own rank, scaling and modules then hold instead of ``lora``."""
    tokenizer: str | None = None
    """Where the tokenizer saved beside the adapter comes from; None for the model's own."""
    template: str = "auto"
    """``auto``, ``plain``, or a Jinja file, which is then saved as the tokenizer's chat template."""
    dtype: str = "auto"
    """Of the base weights: ``auto`` | ``float32`` | ``bfloat16`` | ``float16``. The adapter's are float32."""
    quantization: str | None = None
    """Of the frozen base: ``nf4``, 4 bits with double quantization (QLoRA, arXiv 2305.14314), on a GPU; None for none."""
    trust_remote_code: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    check_anchor: bool = False
    """Compare the policy's start with the cached anchor, and stop before the first step where they differ."""
    anchor_dtype: str | None = None
    """The dtype in which the anchor was scored; None for the policy's own."""
    anchor_differences: Sequence[str] = ()
    """What is known to make the two differ, one clause for each: the cause, where they do."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The preference loss; see ``mrpo_pipeline.losses``."""

    beta: float = 0.1
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    """γ: the weight of the negative log-likelihood per token of the chosen completion."""
    preference_weight: float = 0.8
    """``mpo``: of the sigmoid loss."""
    quality_weight: float = 0.2
    """``mpo``: of the quality loss (BCO)."""
    first_weight: float = 1.0
    """``modpo``: w_1, the preference's own weight among the objectives."""
