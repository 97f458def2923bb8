"""Simulated held-out outcomes of methods whose true difference is known, to test intervals and verdicts.

A policy is right on a pair if a latent value is above 0:

    z = μ_method + pair + method × pair + seed + method × seed + pair × seed × method

with normal effects. A part of the pair's effect is common to all pairs of its prompt, and a part of the method's seed effect to
all methods with that seed (they share start and batches). The true share of a method, over all pairs and seeds or over all pairs
for the drawn seeds, is then a value of the normal distribution function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Half the variance of a pair's ease is common to its prompt, half the variance of a seed's luck to all methods.
_PROMPT_SHARE = 0.5
_COMMON_LUCK = 0.5


@dataclass(frozen=True)
class World:
    """A world of pairs and seeds.

    Attributes:
        prompts, pairs_each: held-out pairs. share: of pairs that a method is right on.
        seed_spread: standard deviation over seeds of a method's true share (0.01 is one point).
        own_pairs, own_runs: standard deviations of method × pair and of pair × seed × method, where a pair's is 1.
        ties: the share of pairs that count one half, by chance.
    """

    name: str
    prompts: int = 300
    pairs_each: int = 1
    share: float = 0.7
    seed_spread: float = 0.0
    own_pairs: float = 0.3
    own_runs: float = 0.5
    ties: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """One drawing: ``outcomes`` (M, N, S); ``clusters`` (N,); the true shares (M,) over seeds, and (M, S) for those drawn."""

    outcomes: Floats
    clusters: npt.NDArray[np.int64]
    true: Floats
    true_of_seeds: Floats


def draw(world: World, differences: Sequence[float], seeds: int, random: np.random.Generator) -> Drawn:
    """Methods whose true shares differ from ``world.share`` by these differences (0.01 is one point), on the same pairs."""
    from scipy.special import ndtr, ndtri

    methods, count = len(differences), world.prompts * world.pairs_each
    clusters = np.repeat(np.arange(world.prompts), world.pairs_each)
    within = 1 + world.own_pairs**2 + world.own_runs**2
    level = ndtri(world.share)
    # How far a share moves with the latent value, by the normal density there.
    luck = world.seed_spread * np.sqrt(within) * np.sqrt(2 * np.pi) * np.exp(level**2 / 2)
    total = np.sqrt(within + luck**2)
    means = ndtri(world.share + np.asarray(differences)) * total

    ease = np.sqrt(_PROMPT_SHARE) * random.normal(size=world.prompts)[clusters]
    ease += np.sqrt(1 - _PROMPT_SHARE) * random.normal(size=count)
    lucky = np.sqrt(_COMMON_LUCK) * random.normal(size=seeds) + np.sqrt(1 - _COMMON_LUCK) * random.normal(
        size=(methods, seeds)
    )
    lucky *= luck
    z = means[:, None, None] + ease[:, None] + lucky[:, None, :]
    z += world.own_pairs * random.normal(size=(methods, count))[:, :, None]
    z += world.own_runs * random.normal(size=(methods, count, seeds))
    outcomes = np.where(random.random(z.shape) < world.ties, 0.5, (z > 0).astype(np.float64))

    def with_ties(share: Floats) -> Floats:
        return (1 - world.ties) * share + world.ties / 2

    return Drawn(
        outcomes, clusters, with_ties(ndtr(means / total)), with_ties(ndtr((means[:, None] + lucky) / np.sqrt(within)))
    )
