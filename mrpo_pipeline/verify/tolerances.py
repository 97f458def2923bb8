"""How far two correct computations of one model differ, by dtype."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo_pipeline.models.source import AS_SERVED


@dataclass(frozen=True)
class Limits:
    """The largest |difference| that passes, in nats: of any token, and on average over all tokens."""

    token_max: float
    token_mean: float

    @property
    def beyond_rounding(self) -> float:
        """|difference| above which a token is not explained by rounding."""
        return min(self.token_max, 4 * self.token_mean)


_BY_DTYPE = {
    "float64": Limits(1e-3, 1e-3),
    "float32": Limits(1e-3, 1e-3),
    "float16": Limits(0.25, 0.0125),
    "bfloat16": Limits(2.0, 0.1),
}
_QUANTIZED = Limits(4.0, 0.2)


def limits_for(dtype: str, quantization: str = "none", *, token_max: float | None = None) -> Limits:
    """The limits for log-probs of a dtype.

    float32: a logit of 32 has a precision of 2e-6, and two orders of summation over some thousand terms differ by tens of that;
    1e-3 leaves room for deep models and is far below the effect of any fault in text or weights.

    float16 and bfloat16 have 11 and 8 significant bits: a logit of 16 to 32, usual in models of billions of weights, is rounded to
    steps of 1/64 or 1/8, and so is every activation before it. Two correct computations differ by a fraction of a step on average
    and by several steps at times. Measured: 0.05 on average and 0.32 at most over 25 tokens (Qwen3-1.7B in bfloat16, vLLM against
    transformers: vllm-project/vllm issue 18352); 0.003 and 0.07 over 17,000 tokens of two-layer models, whose logits are small,
    and an eighth of that in float16. The limits are sixteen steps for the worst token (1/4 and 2) and four fifths of a step for
    the average (1/80 and 1/10). A wrong prompt, template or revision changes the average by tenths of nats or more; a fault below
    rounding is not detectable.

    Quantized weights are unpacked by different kernels in each engine, and some engines round activations too: twice bfloat16's.

    Args:
        dtype: of the manifest; an unknown one has the limits of bfloat16.
        quantization: of the manifest. A served model has the limits of bfloat16: the same kernels recompute it.
        token_max: replaces the dtype's limit of the worst token, in nats; the average's limit scales with it.
    """
    limits = _BY_DTYPE.get(dtype, _BY_DTYPE["bfloat16"]) if quantization in ("none", AS_SERVED) else _QUANTIZED
    if token_max is None:
        return limits
    return Limits(token_max, token_max * limits.token_mean / limits.token_max)
