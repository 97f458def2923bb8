"""Tiny real causal LMs with random weights, of many architectures: no download, a few hundred kilobytes each.

`build("llama", folder)` writes `config.json` and `model.safetensors` and returns the folder; `build_config` returns only
the configuration. The weights are wide enough that log-probs differ by nats from token to token, and biases and norm
weights are random too, so that a missing bias or scale is visible.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# head_dim is 32 in all of them: the smallest that vLLM's CPU attention has.
_DECODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
_GQA: dict[str, Any] = _DECODER | {"num_key_value_heads": 1}
_WITH_HEAD_DIM: dict[str, Any] = _GQA | {"head_dim": 32}

# kind -> (transformers model type, settings that differ from that type's defaults)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GQA | {"rope_theta": 10000.0}),
    "qwen2": ("qwen2", _GQA | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _WITH_HEAD_DIM | {"tie_word_embeddings": True}),
    "mistral": ("mistral", _WITH_HEAD_DIM | {"sliding_window": 16}),
    "gemma2": (
        "gemma2",
        _WITH_HEAD_DIM
        | {
            "sliding_window": 16,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 6.0,  # low enough to bend these logits
        },
    ),
    "gemma3": ("gemma3_text", _WITH_HEAD_DIM | {"sliding_window": 16, "query_pre_attn_scalar": 32}),
    "phi": ("phi", _DECODER | {"partial_rotary_factor": 0.5}),  # its head has a bias
    "phi3": ("phi3", _GQA),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}),
    "gpt_neox": ("gpt_neox", _DECODER | {"rotary_pct": 0.25}),
    "mixtral": ("mixtral", _WITH_HEAD_DIM | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "qwen2_moe",
        _GQA
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "cohere": ("cohere", _GQA | {"logit_scale": 0.25}),
    "granite": (
        "granite",
        _GQA | {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    ),
    "opt": ("opt", {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64} | _DECODER),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 2}),  # ALiBi: no limit of positions
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "recurrent_gemma": (
        "recurrent_gemma",
        _WITH_HEAD_DIM | {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 16, "logits_soft_cap": 6.0},
    ),
    "falcon_h1": (
        "falcon_h1",
        _WITH_HEAD_DIM
        | {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 2,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_chunk_size": 16,
            "lm_head_multiplier": 0.5,
        },
    ),
}


def build_config(kind: str, *, vocab_size: int = 320, **changes: Any) -> Any:
    """The tiny configuration of one kind, with `changes` on top. Raises KeyError for a kind that is not in `KINDS`."""
    from transformers import AutoConfig

    model_type, settings = KINDS[kind]
    special: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    wide = {"initializer_range": 0.2}
    config = AutoConfig.for_model(model_type, **(special | wide | settings | {"vocab_size": vocab_size} | changes))
    if "tie_word_embeddings" in settings and "tie_word_embeddings" not in changes:
        config.tie_word_embeddings = settings["tie_word_embeddings"]
    return config


def make(kind: str, *, vocab_size: int = 320, seed: int = 0, dtype: str = "float32", **changes: Any) -> Any:
    """One model of a kind in memory, in eval mode, its weights drawn from `seed`."""
    import torch
    from transformers import AutoModelForCausalLM

    config = build_config(kind, vocab_size=vocab_size, **changes)
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and "mixer" not in name and "mamba" not in name and "rg_lru" not in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    finally:
        torch.random.set_rng_state(state)
    return model.to(getattr(torch, dtype)).eval()


def build(
    kind: str, path: str | Path, *, vocab_size: int = 320, seed: int = 0, dtype: str = "float32", **changes: Any
) -> Path:
    """Save one tiny model (no tokenizer) under `path`; returns the path."""
    model = make(kind, vocab_size=vocab_size, seed=seed, dtype=dtype, **changes)
    path = Path(path)
    model.save_pretrained(path)
    return path
