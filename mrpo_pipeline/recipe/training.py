"""Keys of `training` that this project adds to transformers' or refuses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mrpo_pipeline.settings_base import Settings


class FastPaths(Settings):
    """Optimizations of the training step, under the recipe's ``training``. Each can be turned off.

    Only ``group_by_prompt`` changes what is computed: it changes which pairs make up a step.
    """

    share_prompt: bool = True
    """Run a prompt once for both of its completions, if the model then gives the same log-probs."""
    group_by_prompt: bool | Literal["auto"] = "auto"
    """Put all pairs of a prompt into one optimizer step, and run each of its completions once for all its pairs. A step then has at
    most ``per_device_train_batch_size`` × ``gradient_accumulation_steps`` × processes pairs, and its loss is divided by the number
    that it has. A prompt with more pairs fills steps of its own; the remainder shares a step with other prompts. It is fastest if
    ``per_device_train_batch_size`` is at least the number of pairs of a prompt (21 for 7 answers). ``auto``: group ranked
    answers, where a completion is in 1.5 sides of pairs on average or more."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = "auto"
    """The most tokens of a micro-batch. ``auto``: the tokens of ``per_device_train_batch_size`` pairs as long as the longest, and on
    a CPU at most what fits its caches. ``off``: ``per_device_train_batch_size`` pairs in every micro-batch."""
    fused_lora: bool = True
    """Compute a linear layer and its adapter in one operation."""
    chunked_head: bool = True
    """Compute log-probs and their gradient in chunks of positions, without the logits of all positions."""


_PRECISION = "evaluation would compute in another dtype than training and scoring. Expected false. Take it out."


_COMPILING = (
    "it would recompile the policy for the lengths of each step, which takes minutes per step (measured on a CPU). Expected false. "
    "Take it out."
)


# Keys of TrainingArguments that this trainer does not support, and the reason. docs/recipes.md lists them.
REFUSED = {
    "resume_from_checkpoint": "a run is resumed from its last complete checkpoint by --resume. Expected no value. Take it out, and "
    "give --resume.",
    "label_smoothing_factor": "it smooths labels of a language model; for preferences, expected method.label_smoothing. Move it "
    "there.",
    "auto_find_batch_size": "it would change the number of pairs in an optimizer step, and so the result. Expected false. Lower "
    "training.per_device_train_batch_size and raise training.gradient_accumulation_steps by the same factor instead.",
    "use_liger_kernel": "it patches a loss that is not used here. Expected false. Take it out.",
    "torch_compile": _COMPILING,
    "torch_compile_backend": _COMPILING,
    "torch_compile_mode": _COMPILING,
    "bf16_full_eval": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "hub_token": "it would be written into the recipe beside the results and into the model card. Expected the token in the "
    "environment (HF_TOKEN) or from `hf auth login`. Take it out.",
}
