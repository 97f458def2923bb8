"""Sample answers before and after training, to be read by a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl


@dataclass
class Sample:
    """A prompt, both sides of its pair, and the policy's answers."""

    prompt: str
    chosen: str
    rejected: str
    before: str = ""
    after: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def distinct_prompts(frame: pl.DataFrame, count: int) -> pl.DataFrame:
    """The first pair of each of that many prompts: pairs of one prompt would get the same answer."""
    return frame.unique("prompt_read", keep="first", maintain_order=True).head(count)


def generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[str]:
    """Greedy answers, one prompt at a time.

    Args:
        prompts: token ids of each prompt, as the policy reads it.
    """
    import torch

    model.eval()
    device = next(model.parameters()).device
    ends = {tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)} - {None}
    answers = []
    for ids in prompts:
        inputs = torch.tensor(ids, dtype=torch.long, device=device)[None]
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(ends) or None,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0),
            )
        answers.append(tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True))
    return answers


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def as_markdown(samples: Sequence[Sample]) -> str:
    """The samples, one after another."""
    parts = ["# Answers before and after training\n"]
    for number, sample in enumerate(samples, 1):
        parts.append(f"## {number}\n")
        for title in ("prompt", "before", "after", "chosen", "rejected"):
            text = getattr(sample, title).strip() or "(nothing)"
            quoted = "\n".join(f"> {line}" for line in text.splitlines())
            parts.append(f"**{title}**\n\n{quoted}\n")
    return "\n".join(parts)
