"""Inputs and measures of the GPU benchmark: random models of real shapes, random token ids, operation counts, clocks and memory.

Needs torch, transformers and numpy; no tokenizer, no file and no network.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_cells import release

# The shapes of Llama-3.2-1B and Llama-3.1-8B (their config.json).
VOCABULARY = 128_256
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
}  # fmt: skip
TINY_VOCABULARY = 512
TINY = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip

# Median tokens of prompts and completions in long-answer preference data (UltraFeedback), with its long tail.
MEDIANS, SPREAD = (220, 330), 0.8
FEWEST = 8
FIRST_ID = 8  # lower ids are special tokens in many vocabularies
# Weights with a standard deviation of this / √hidden keep a layer's output as wide as its input, so that a log-prob depends on all
# earlier tokens. Those of the output projection, times the scale, give largest logits near 20, as in trained models.
GAIN, LOGIT_SCALE = 1.0, 4.5


@dataclass(frozen=True)
class Place:
    """The device and the sizes of a run.

    Attributes:
        device: ``cuda`` or ``cpu``. folder: for this run's results. scratch: for files that are removed at the end of the stage.
        max_length: most tokens of prompt and completion. checkpointing: whether training recomputes activations.
    """

    device: str
    tiny: bool
    folder: str
    scratch: str
    max_length: int
    checkpointing: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights for measuring speed: bfloat16 if the device computes in it, else float32."""
        return (
            torch.bfloat16 if self.device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) else torch.float32
        )

    @property
    def vocabulary(self) -> int:
        return TINY_VOCABULARY if self.tiny else VOCABULARY

    def pick(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


def config_of(place: Place, shape: str) -> Any:
    from transformers import LlamaConfig

    sizes = SHAPES[shape] | (TINY if place.tiny else {})
    return LlamaConfig(
        vocab_size=place.vocabulary, max_position_embeddings=max(4096, place.max_length + 8), rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=GAIN / sizes["hidden_size"] ** 0.5, **sizes,
    )  # fmt: skip


def random_model(place: Place, shape: str, dtype: torch.dtype | None = None, seed: int = 0) -> Any:
    """A causal language model in eval mode with random weights drawn on the device; its logits are as wide as a trained model's.

    Weights are drawn in bfloat16 whatever the dtype: one seed gives the same model in each.
    """
    from transformers import LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(place.device):
            model = LlamaForCausalLM(config_of(place, shape))
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(LOGIT_SCALE)
    return cast(model, dtype or place.dtype).eval().requires_grad_(False)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in this dtype; the rotary frequencies stay in float32, as in a loaded model."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


@dataclass(frozen=True)
class Pairs:
    """N random pairs: int32 ids of the prompt and of both completions."""

    prompts: list[Any]
    chosen: list[Any]
    rejected: list[Any]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, part: slice) -> Pairs:
        return Pairs(self.prompts[part], self.chosen[part], self.rejected[part])

    @property
    def tokens(self) -> int:
        """Tokens of all completions, each with its prompt: what a plain run without padding reads."""
        return 2 * sum(map(len, self.prompts)) + sum(map(len, self.chosen)) + sum(map(len, self.rejected))


def made_up_pairs(place: Place, count: int, *, equal: bool = False, seed: int = 0) -> Pairs:
    """Random ids of the model's vocabulary; the first pair is of the full length.

    Args:
        equal: every prompt is a quarter of ``max_length`` and every completion the rest, so that there is no padding.
    """
    random = np.random.default_rng(seed)
    longest = place.max_length
    scale = min(1.0, longest / 2048)
    prompts, chosen, rejected = (
        np.clip(random.lognormal(np.log(median * scale), SPREAD, count), FEWEST, longest // 2).astype(int)
        for median in (MEDIANS[0], MEDIANS[1], MEDIANS[1])
    )
    if equal:
        prompts[:], chosen[:], rejected[:] = longest // 4, longest - longest // 4, longest - longest // 4
    prompts[0], chosen[0] = longest // 4, longest - longest // 4

    def ids(lengths: Any) -> list[Any]:
        return [random.integers(FIRST_ID, place.vocabulary, n).astype(np.int32) for n in lengths.tolist()]

    return Pairs(ids(prompts), ids(chosen), ids(rejected))


@dataclass(frozen=True)
class Work:
    """The work of a forward pass over pairs, without padding: see ``Architecture.forward_flops``."""

    tokens: int
    squares: int
    projected: int

    @classmethod
    def of(cls, pairs: Pairs, *, shared: bool) -> Work:
        """Args: shared: whether a prompt runs once for both of its completions."""
        sides = [(len(p), len(c), len(r)) for p, c, r in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)]
        once = sum(p for p, _, _ in sides) if shared else 0
        squares = sum((p + c) ** 2 + (p + r) ** 2 - (p * p if shared else 0) for p, c, r in sides)
        return cls(pairs.tokens - once, squares, sum(c + r for _, c, r in sides))


def architecture(place: Place, shape: str) -> Any:
    """Parameter counts of a shape, from a model on torch's meta device."""
    from mrpo_pipeline.plan.architecture import describe, empty_model

    return describe(empty_model(config_of(place, shape), dtype=torch.bfloat16))


class Meter:
    """Wall seconds and peak memory on a device, after waiting for asynchronous work."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device == "cuda"

    def now(self) -> float:
        if self.on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def start_memory(self) -> None:
        """Count the peak from here on; on a CPU that of the process, if Linux allows resetting it."""
        release()
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").is_file():
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                return

    def peak_bytes(self) -> int:
        if self.on_cuda:
            return int(torch.cuda.max_memory_allocated())
        import resource

        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.is_file() else []
        peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
        return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if peak is None else peak)

    def seconds(self, work: Callable[[], Any], repeats: int, warm: int = 1) -> float:
        """The median over some repeats, after some warm-up runs."""
        taken = []
        for _ in range(warm + repeats):
            began = self.now()
            work()
            taken.append(self.now() - began)
        return statistics.median(taken[warm:])


def matmul_flops(place: Place, dtype: torch.dtype, size: int) -> float:
    """Operations per second of a square matrix product on random numbers: the peak for shares."""
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, device=place.device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / Meter(place.device).seconds(lambda: a @ b, repeats=10, warm=3)


def measured_peak(place: Place) -> float | None:
    """Operations per second measured by the stage ``machine`` of this run, or None."""
    path = Path(place.folder) / "machine.json"
    if not path.is_file():
        return None
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = [one["value"] * 1e12 for one in cells.values() if one.get("unit") == "TFLOP/s"]
    return max(found, default=None)


def speed(place: Place, tokens: float, flops: float, seconds: float) -> dict[str, Any]:
    """A cell's figures for work that took this long."""
    peak = measured_peak(place)
    share = {} if peak is None else {"peak_share": flops / seconds / peak}
    return {"value": tokens / seconds, "unit": "tokens/s", "seconds": seconds, "flops": flops, **share}


def requests_of(pairs: Pairs) -> list[Any]:
    """Every completion of the pairs as an engine request."""
    from mrpo_pipeline.engines import ScoringRequest

    sides: Sequence[tuple[Any, Any]] = [
        (prompt, completion)
        for prompt, *both in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
        for completion in both
    ]
    return [ScoringRequest(prompt, completion) for prompt, completion in sides]
