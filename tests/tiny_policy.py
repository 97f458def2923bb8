"""Tiny policies, random pairs for them, and a slow plain computation of their log-probs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mrpo_pipeline.dataset.examples import PreferenceExamples

VOCABULARY = 96

_DECODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "llama": _DECODER | {"num_key_value_heads": 1},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "gpt_neox": _DECODER | {"rotary_pct": 0.25},
    "gemma2": _DECODER | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8},
}


def write_policy(folder: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A tiny model with wide random weights (log-probs differ by nats) and a word tokenizer, saved to a folder."""
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": VOCABULARY,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **KINDS[kind],
            **changes,
        },
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    torch.random.set_rng_state(state)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return folder


def load_base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plain_sum(model: Any, prompt: np.ndarray, completion: np.ndarray) -> torch.Tensor:
    """Log-prob of a completion by the full logits of one unpadded row, in float64; differentiable."""
    ids = torch.tensor(np.concatenate([prompt, completion]), dtype=torch.long)[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].double()
    logps = logits.log_softmax(-1)
    start = len(prompt)
    return sum(logps[start - 1 + i, token] for i, token in enumerate(completion.tolist()))


def plain_sums(model: Any, examples: PreferenceExamples) -> tuple[np.ndarray, np.ndarray]:
    """(N,) sums of both sides."""
    with torch.no_grad():
        return tuple(
            np.array([float(plain_sum(model, p, c)) for p, c in zip(examples.prompt_ids, side, strict=True)])
            for side in (examples.chosen_ids, examples.rejected_ids)
        )


def make_examples(
    count: int, *, seed: int = 0, references: int = 1, base: Any = None, longest: int = 20
) -> PreferenceExamples:
    """Random pairs of different lengths. With a base model, every reference column and the anchor are its own sums."""
    random = np.random.default_rng(seed)

    def rows() -> list[np.ndarray]:
        return [random.integers(3, VOCABULARY, random.integers(1, longest + 1)).astype(np.int32) for _ in range(count)]

    prompts, chosen, rejected = rows(), rows(), rows()
    lengths = [np.array([len(ids) for ids in side], dtype=np.float64) for side in (chosen, rejected)]
    numbers = [-4.5 * side[:, None] + random.normal(0, 2, (count, references)) for side in lengths]
    examples = PreferenceExamples(
        pair_ids=[f"pair-{i}" for i in range(count)],
        prompt_ids=prompts,
        chosen_ids=chosen,
        rejected_ids=rejected,
        reference_chosen=numbers[0],
        reference_rejected=numbers[1],
        weights=random.dirichlet(np.ones(references), count),
        anchor_chosen=numbers[0][:, 0].copy(),
        anchor_rejected=numbers[1][:, 0].copy(),
    )
    if base is not None:
        own = plain_sums(base, examples)
        examples.anchor_chosen, examples.anchor_rejected = own
        examples.reference_chosen[:], examples.reference_rejected[:] = own[0][:, None], own[1][:, None]
    return examples
