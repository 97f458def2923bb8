"""Targets against the formulas evaluated as written, on the probabilities themselves, with 80 decimal digits.

The oracle has no logsumexp: with enough digits e^−5000 is an ordinary number.
"""

import itertools
import warnings
from decimal import Decimal, localcontext

import numpy as np
import pytest
from tiny_methods import settings_of

from mrpo_pipeline.targets.compute import compute_targets

DIGITS = 80
AGREEMENT = 1e-9
KINDS_OF_WEIGHTS = ("uniform", "adaptive", "given", "given with zeros")


def decimals(values):
    return [Decimal(float(value)) for value in values]


def oracle(chosen, rejected, *, aggregate, weights, trust_region, epsilon, official):
    """(α, clipped chosen, clipped rejected, log π̃ chosen, log π̃ rejected) of one pair, as Decimal."""
    with localcontext() as context:
        context.prec = DIGITS
        context.Emin, context.Emax = -(10**8), 10**8
        sides = [decimals(chosen), decimals(rejected)]
        count = len(sides[0])
        epsilon = Decimal(epsilon)
        if weights == "uniform":
            alpha = [1 / Decimal(count)] * count
        elif weights == "adaptive":
            sizes = [abs(w - rejected_logp) for w, rejected_logp in zip(*sides, strict=True)]
            if official:
                other = sizes[1] / (sizes[0] + sizes[1] + Decimal("0.000001"))
                alpha = [1 - other, other]
            else:
                alpha = [size / sum(sizes) if sum(sizes) else 1 / Decimal(count) for size in sizes]
        else:
            alpha = [weight / sum(decimals(weights)) for weight in decimals(weights)]
        means = [abs(sum(side) / count) for side in sides]
        share = means[0] / sum(means)
        widths = {"adaptive": [epsilon * share, epsilon * (1 - share)], "fixed": [epsilon] * 2}.get(trust_region)
        clipped, targets = [], []
        for position, (anchor, *others) in enumerate(sides):
            low, high = Decimal("-Infinity"), Decimal("Infinity")
            if widths is not None:
                low, high = (1 + widths[position]) * anchor, (1 - widths[position]) * anchor
            side = [anchor, *(min(max(logp, low), high) for logp in others)]
            clipped.append(side)
            pi = [logp.exp() for logp in side]
            if official:
                targets.append((pi[0] * pi[1] / (alpha[1] * pi[1] + alpha[0] * pi[0])).ln())
            elif aggregate == "harmonic":
                targets.append((1 / sum(a / p for a, p in zip(alpha, pi, strict=True))).ln())
            elif aggregate == "geometric":
                targets.append(sum(a * logp for a, logp in zip(alpha, side, strict=True)))
            else:
                targets.append(sum(a * p for a, p in zip(alpha, pi, strict=True)).ln())
        return alpha, *clipped, *targets


def logps(size, references, seed):
    """Six pairs around −size: references a nat apart, tens of nats apart, equal sides, one certain reference."""
    random = np.random.default_rng(seed)
    chosen = -size * (1 + random.uniform(-0.3, 0.3, (6, references)))
    rejected = -size * (1 + random.uniform(-0.3, 0.3, (6, references)))
    chosen[1] = rejected[1] - random.uniform(-1, 1, references)
    rejected[2] = chosen[2]
    chosen[3] = chosen[3, 0] + random.uniform(-0.5, 0.5, references)
    chosen[4, -1] = -1e-3
    return chosen, rejected


def given_weights(kind, references):
    if not kind.startswith("given"):
        return kind
    values = [float(k + 1) for k in range(references)]
    if kind == "given with zeros":
        values[1::2] = [0.0] * len(values[1::2])
    return values


@pytest.mark.parametrize("size", [5.0, 5000.0])
@pytest.mark.parametrize("references", [1, 2, 3, 8])
@pytest.mark.parametrize("trust_region", ["adaptive", "fixed", "off"])
def test_targets_agree_with_the_formulas_to_a_billionth(size, references, trust_region):
    chosen, rejected = logps(size, references, seed=references)
    for aggregate, kind in itertools.product(("harmonic", "geometric", "arithmetic"), KINDS_OF_WEIGHTS):
        check(chosen, rejected, references, aggregate, kind, trust_region, official=False)


@pytest.mark.parametrize("size", [5.0, 5000.0])
@pytest.mark.parametrize("kind", KINDS_OF_WEIGHTS)
def test_official_code_agrees_with_the_authors_formula_to_a_billionth(size, kind):
    chosen, rejected = logps(size, 2, seed=7)
    for trust_region in ("adaptive", "fixed", "off"):
        check(chosen, rejected, 2, "harmonic", kind, trust_region, official=True)


def check(chosen, rejected, references, aggregate, kind, trust_region, *, official):
    weights = given_weights(kind, references)
    settings = settings_of(
        reference_names=[f"r{k}" for k in range(references)],
        aggregate=aggregate,
        weights=weights,
        trust_region=trust_region,
        epsilon=0.125,
        compatibility="official-code" if official else "none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets = compute_targets(chosen, rejected, *settings)
    for row in range(len(chosen)):
        alpha, clipped_chosen, clipped_rejected, target_chosen, target_rejected = oracle(
            chosen[row],
            rejected[row],
            aggregate=aggregate,
            weights=weights,
            trust_region=trust_region,
            epsilon=0.125,
            official=official,
        )
        where = f"{aggregate}, {kind}, pair {row}"
        np.testing.assert_allclose(targets.weights[row], [float(a) for a in alpha], rtol=0, atol=1e-12, err_msg=where)
        for found, expected in (
            (targets.clipped_chosen[row], clipped_chosen),
            (targets.clipped_rejected[row], clipped_rejected),
            (targets.target_chosen[row : row + 1], [target_chosen]),
            (targets.target_rejected[row : row + 1], [target_rejected]),
        ):
            np.testing.assert_allclose(found, [float(e) for e in expected], rtol=0, atol=AGREEMENT, err_msg=where)
