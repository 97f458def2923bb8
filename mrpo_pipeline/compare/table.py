"""A comparison as plain text: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrpo_pipeline.evaluation.pair_outcomes import COMPARABLE
from mrpo_pipeline.terminal import text_table

_SHORT = {
    "accuracy/policy": "prefers chosen",
    "accuracy/policy_per_token": "… per token",
    "accuracy/anchor": "moved to chosen",
}


def terminal(document: Mapping[str, Any]) -> str:
    """The table, the differences behind the verdict, and the verdict."""
    parts = [_plain(*_shares(document)), _legend(document)]
    differences = _differences(document)
    if differences[1]:
        parts += [f"Differences in points, {_label(document)}:", _plain(*differences)]
    verdict = document["verdict"]
    return "\n\n".join([*parts, "\n".join([f"► {verdict['sentence']}", *(f"  {x}" for x in verdict["sentences"])])])


def markdown(document: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    verdict = document["verdict"]
    parts = ["# Methods side by side", f"**{verdict['sentence']}**", *verdict["sentences"], _ruled(*_shares(document))]
    parts.append(_legend(document))
    differences = _differences(document)
    if differences[1]:
        parts += [f"## Differences in points, {_label(document)}", _ruled(*differences)]
    return "\n\n".join(parts) + "\n"


def _shares(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["method", *(_SHORT[metric] for metric in COMPARABLE), "drift", "s to train"]
    start = [f"{100 * document['start'][metric]:.1f}" if metric != "accuracy/anchor" else "–" for metric in COMPARABLE]
    before = {name: {"mean": value} for name, value in document["start"].items()}
    rows = [["start", *start, _drift(before), "–"]]
    for method in document["methods"]:
        cells = [_share(method["metrics"][metric]) for metric in COMPARABLE]
        cells.append(_drift(method["metrics"]))
        seconds = method["train_seconds"]
        rows.append([method["name"], *cells, f"{sum(seconds) / len(seconds):.0f}" if seconds else "–"])
    return header, rows


def _drift(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The drift of chosen and rejected sides, nats a token, ± half of the interval."""
    sides = (figures[f"drift/{side}_per_token"] for side in ("chosen", "rejected"))
    return " / ".join(f"{side['mean']:+.3f}{_half(side)}" for side in sides).replace("-", "\N{MINUS SIGN}")


def _half(figure: Mapping[str, Any]) -> str:
    low, high = figure.get("low"), figure.get("high")
    return "" if low is None or high is None else f"±{(high - low) / 2:.3f}"


def _share(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['mean']:.1f} ({100 * figure['low']:.1f}–{100 * figure['high']:.1f})"


def _differences(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The differences in the verdict's metric, except those from the start."""
    header = ["method", "against", "difference", "95%", "p", "p corrected"]
    rows = []
    for one in document["comparisons"]:
        if one["metric"] != document["verdict_metric"] or one["against"] == "start":
            continue
        low, high = (f"{100 * one[side]:+.1f}" for side in ("low", "high"))
        figures = [f"{100 * one['difference']:+.1f}", f"{low} to {high}", _p(one["p"]), _p(one["p_corrected"])]
        rows.append([one["method"], one["against"], *figures])
    return header, rows


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _label(document: Mapping[str, Any]) -> str:
    return COMPARABLE[document["verdict_metric"]]


def _legend(document: Mapping[str, Any]) -> str:
    seeds, pairs = document["seeds"], document["held_out"]
    first = (
        f"{pairs:,} held-out pair{'s' * (pairs != 1)}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}. In % of pairs, "
        "a tie counting one half, with 95% intervals "
    )
    first += (
        "over pairs and seeds." if len(seeds) > 1 else "over pairs alone: of the policies trained with this one seed."
    )
    return (
        f"{first} “prefers chosen”: the policy's own log-prob is higher on the chosen side (needs no reference). “moved to "
        "chosen”: more so than the anchor's. “drift”: nats a token by which the policy finds the held-out chosen / rejected sides "
        "likelier than the anchor does, ± half its 95% interval."
    )


def _plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return text_table(header, rows, left=("against",))


def _ruled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])
