"""The intervals and verdicts of `mrpo compare` where the truth is known.

    python benchmarks/bench_intervals.py [--quick]

Held-out outcomes of methods with a known true difference are drawn repeatedly (evaluation/simulation.py) and passed to the
functions that `mrpo compare` calls. It counts how often the interval of a difference contains the true one, and how often a
verdict claims "better" when all methods are equally good.

With three or five seeds the true difference is that over all pairs and all seeds. With one seed it is that of the trained
policies over all pairs, as `mrpo compare` documents. How often the interval contains the difference over
all seeds is shown beside it, to show what one seed hides.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from measuring import claim, describe_machine, machine, table, write_results
from scipy import stats

from mrpo_pipeline.compare.comparisons import Outcomes, compare_outcomes, shares
from mrpo_pipeline.compare.methods import Contender
from mrpo_pipeline.compare.verdict import verdict_of
from mrpo_pipeline.evaluation.intervals import mean_known
from mrpo_pipeline.evaluation.simulation import World, draw
from mrpo_pipeline.recipe import Method

METRIC = "accuracy/policy"
# True points above the world's share, of DPO against base, abacus and atlas, and of Multi-DPO and MRPO.
CASES = {
    "all equal": (0.0, 0.0, 0.0, 0.0, 0.0),
    "as good as one that stands out": (0.0, 0.1, 0.0, 0.1, 0.1),
    "better by 3 points": (0.0, 0.0, 0.0, 0.03, 0.03),
}
SEEDS = (1, 3, 5)
SPREADS = {"small": 0.003, "large": 0.03}
DIFFERENCES = (0.0, 0.02)
WORLDS = (
    World("300 pairs"),
    World("2,000 pairs", prompts=2000),
    World("1,200 pairs of 300 prompts", prompts=300, pairs_each=4),
    World("300 pairs, methods much alike", own_pairs=0.1, own_runs=0.2),
    World("300 pairs, one in ten a tie", ties=0.1),
)
NAMES = ("base", "abacus", "atlas")
CONTENDERS = (
    *(Contender(f"dpo-{name}", Method(aggregate=f"single:{name}"), NAMES) for name in NAMES),
    Contender("multi-dpo", Method(name="multi-dpo"), NAMES),
    Contender("mrpo", Method(), NAMES),
)


def coverage(world: World, difference: float, seeds: int, trials: int, random: np.random.Generator) -> dict[str, Any]:
    """How often the interval of a paired difference contains the true one."""
    held = over_seeds = 0
    widths = []
    for _ in range(trials):
        drawn = draw(world, (0.0, difference), seeds, random)
        known = mean_known(drawn.outcomes[1] - drawn.outcomes[0], drawn.clusters)
        true = drawn.true[1] - drawn.true[0]
        of_seeds = float((drawn.true_of_seeds[1] - drawn.true_of_seeds[0]).mean())
        over_seeds += int(known.low <= true <= known.high)
        held += int(known.low <= (of_seeds if seeds == 1 else true) <= known.high)
        widths.append(known.high - known.low)
    return {
        "world": world.name,
        "seeds": seeds,
        "spread": world.seed_spread,
        "difference": difference,
        "trials": trials,
        "held": held,
        "rate": held / trials,
        "interval": exact(held, trials),
        "over_seeds": over_seeds / trials,
        "width": float(np.mean(widths)),
    }


def verdicts(world: World, seeds: int, case: str, trials: int, random: np.random.Generator) -> dict[str, Any]:
    """How often each kind of verdict is given, with three single references and two methods with several (see ``CASES``)."""
    true = CASES[case]
    better = true[-1] - max(true[:3])
    kinds = dict.fromkeys(("better", "none", "worse", "one seed"), 0)
    held = 0
    for _ in range(trials):
        drawn = draw(world, true, seeds, random)
        methods = {one.name: {METRIC: drawn.outcomes[i]} for i, one in enumerate(CONTENDERS)}
        start = {METRIC: np.full(len(drawn.clusters), 0.5)}
        outcomes = Outcomes(drawn.clusters, start, methods)
        compared = compare_outcomes(CONTENDERS, outcomes)
        verdict = verdict_of(CONTENDERS, compared, shares(outcomes), seeds)
        kinds[verdict.kind] += 1
        told = next(x.known for x in compared if (x.method, x.against) == (verdict.method, verdict.against))
        at = [CONTENDERS.index(one) for one in CONTENDERS if one.name in (verdict.method, verdict.against)]
        difference = drawn.true[at[1]] - drawn.true[at[0]]
        held += int(told.low <= difference <= told.high)
    return {
        "world": world.name,
        "seeds": seeds,
        "spread": world.seed_spread,
        "case": case,
        "truly_better_by": better,
        "trials": trials,
        "kinds": kinds,
        "claimed": kinds["better"] / trials,
        "interval": exact(kinds["better"], trials),
        "told_held": held / trials,
    }


def exact(count: int, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval for a rate."""
    found = stats.binomtest(count, trials).proportion_ci(method="exact")
    return float(found.low), float(found.high)


def cells() -> Iterator[tuple[World, int, str]]:
    for world, seeds, (spread, sd) in itertools.product(WORLDS, SEEDS, SPREADS.items()):
        yield replace(world, seed_spread=sd), seeds, spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    trials = 400 if parser.parse_args().quick else 4000
    found = machine()
    random = np.random.default_rng(20261122)
    covered, claimed = [], []
    for world, seeds, spread in cells():
        for difference in DIFFERENCES:
            covered.append(coverage(world, difference, seeds, trials, random) | {"spread_name": spread})
            print(covered[-1], flush=True)
    for world, seeds, spread in cells():
        if seeds == 1:
            continue  # nothing is ever claimed
        for case in CASES:
            number = trials // 2 if CASES[case][-1] <= max(CASES[case][:3]) else trials // 8
            claimed.append(verdicts(world, seeds, case, number, random) | {"spread_name": spread})
            print(claimed[-1], flush=True)
    report(found, covered, claimed)


def report(found: dict[str, Any], covered: list[dict[str, Any]], claimed: list[dict[str, Any]]) -> None:
    rows = [
        [
            one["world"], str(one["seeds"]), one["spread_name"], f"{100 * one['difference']:g}", rate(one["rate"], one["interval"]),
            "–" if one["seeds"] > 1 else f"{100 * one['over_seeds']:.1f} %", f"{100 * one['width']:.1f}",
        ]
        for one in covered
    ]  # fmt: skip
    false = [one for one in claimed if one["truly_better_by"] <= 0]
    verdict_rows = [
        [
            one["world"], str(one["seeds"]), one["spread_name"], one["case"], rate(one["claimed"], one["interval"]),
            f"{100 * one['kinds']['worse'] / one['trials']:.1f} %", f"{100 * one['told_held']:.1f} %",
        ]
        for one in claimed
    ]  # fmt: skip
    low = min(one["interval"][1] for one in covered)
    worst = max(one["interval"][0] for one in false)
    pooled = sum(one["held"] for one in covered) / sum(one["trials"] for one in covered)
    claims = [
        claim("Coverage, all cells together, %", 100 * pooled, at_least=94.5, form="{:.2f}"),
        claim("Coverage: the upper binomial limit of the least covered cell, %", 100 * low, at_least=95.0, form="{:.2f}"),
        claim('False "better": the lower binomial limit of the worst cell, %', 100 * worst, at_most=5.0, form="{:.2f}"),
    ]  # fmt: skip
    text = "\n\n".join(
        [
            "# Intervals and verdicts of `mrpo compare`, the truth being known",
            f"{covered[0]['trials']:,} drawings for each line of coverage, {false[0]['trials']:,} for each verdict that can be false "
            f"({claimed[-1]['trials']:,} for the others). Seeds move a "
            f"method's true share by {100 * SPREADS['small']:g} (small) or {100 * SPREADS['large']:g} points (large), standard "
            "deviation. In brackets: 95% binomial intervals (Clopper and Pearson).",
            describe_machine(found),
            "## Does the 95% interval of a difference hold the true one?",
            table(
                ["world", "seeds", "spread", "true points", "held", "… over all seeds", "mean width, points"],
                rows,
            ),
            "With one seed the interval is of the policies that were trained; the last but one column shows how rarely it holds the "
            "difference over all seeds where seeds matter, which is why `mrpo compare` claims nothing with one seed.",
            '## How often is "better" claimed?',
            table(["world", "seeds", "spread", "truth", '"better"', '"worse"', "told interval held"], verdict_rows),
            "Three single references, two methods with several. Where all are equal, and where the two are just as good as one that is "
            '10 points better than the others, "better" and "worse" are false. "Told interval" is that of the verdict\'s sentence, '
            "whose two methods were picked by the same pairs. With one seed nothing is ever claimed.",
        ]
    )  # fmt: skip
    write_results("intervals", {"machine": found, "covered": covered, "verdicts": claimed, "claims": claims}, text)


def rate(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


if __name__ == "__main__":
    main()
