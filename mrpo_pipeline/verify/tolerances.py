"""How far two right computations of one model may lie apart, by the dtype they were made in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The largest |difference| that passes, in nats: of any token, and on average over all tokens."""

    token_max: float
    token_mean: float

    @property
    def clearly_off(self) -> float:
        """|difference| from which on a token is not a matter of rounding: what the patterns of a fault are made of."""
        return min(self.token_max, 4 * self.token_mean)


_BY_DTYPE = {
    "float64": Limits(1e-3, 1e-3),
    "float32": Limits(1e-3, 1e-3),
    "float16": Limits(0.25, 0.0125),
    "bfloat16": Limits(2.0, 0.1),
}
_QUANTIZED = Limits(4.0, 0.2)


def limits_for(dtype: str, quantization: str = "none", *, asked: float | None = None) -> Limits:
    """The limits for numbers made in a dtype.

    float32: logits of magnitude 32 are known to 2e-6, and two orders of summation over some thousand terms differ by some
    tens of that; 1e-3 leaves room for deep models and still is far below what any fault in text or weights does.

    float16 and bfloat16 keep 11 and 8 significant bits: a logit of 16 to 32, as models of billions of weights have, is
    rounded to steps of 1/64 or 1/8, in each computation for itself, and so is every activation before it. Two right
    computations so differ by a fraction of a step on average and by some steps now and then. Seen: 0.05 on average and 0.32
    at most over 25 tokens (Qwen3-1.7B in bfloat16, vLLM against transformers: vllm-project/vllm issue 18352); 0.003 and 0.07
    over 17,000 tokens where logits are small (models of two layers), and an eighth of that in float16. Hence sixteen steps
    for the worst token (1/4 and 2) and four fifths of one for the average (1/80 and 1/10). A wrong prompt, template or
    revision moves the average by tenths of nats and more; what is smaller than rounding cannot be told from it.

    Quantized weights are unpacked by other kernels in each engine, and some engines round activations as well: twice
    bfloat16's.

    Args:
        dtype: as the manifest names it; one that is not known here is taken for bfloat16.
        quantization: as the manifest names it.
        asked: the user's own limit for the worst token, in nats; the average's then keeps its proportion to it.
    """
    limits = _BY_DTYPE.get(dtype, _BY_DTYPE["bfloat16"]) if quantization == "none" else _QUANTIZED
    if asked is None:
        return limits
    return Limits(asked, asked * limits.token_mean / limits.token_max)
