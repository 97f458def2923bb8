"""Keys of `training` that are not transformers' own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mrpo_pipeline.settings import Settings


class FastPaths(Settings):
    """What makes the training step cheap; none of it changes what is computed. Keys of the recipe's ``training``.

    Each can be switched off to see what it gives.
    """

    share_prompt: bool = True
    """Run a prompt once for both of its completions, where the model then gives the same log-probs."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = "auto"
    """How many tokens a micro-batch holds at most. ``auto``: as many as ``per_device_train_batch_size`` pairs of the longest
    kind have, so no more than a micro-batch of that many pairs can have, and on a CPU no more than stay in its caches.
    ``off``: ``per_device_train_batch_size`` pairs in every micro-batch."""
    fused_lora: bool = True
    """Compute a linear layer and its adapter in one operation."""
    chunked_head: bool = True
    """Take log-probs and their gradient in chunks of positions, and not from the logits of all of them."""


_PRECISION = "evaluation would compute in another dtype than training and scoring. Expected false. Take it out."


_COMPILING = (
    "it would compile the policy anew for the lengths of the steps, which cost minutes a step where it was tried (a CPU). Expected "
    "false. Take it out."
)


# Keys of TrainingArguments that this trainer cannot have, and why. docs/recipes.md lists them.
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
