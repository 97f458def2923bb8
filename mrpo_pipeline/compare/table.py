"""A comparison as plain text: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrpo_pipeline.evaluation.pair_outcomes import COMPARABLE

_SHORT = {
    "accuracy/policy": "prefers chosen",
    "accuracy/policy_per_token": "… per token",
    "accuracy/anchor": "moved to chosen",
}


def terminal(document: Mapping[str, Any]) -> str:
    """The table, the differences that the verdict rests on, and the verdict."""
    parts = [_plain(*_shares(document)), _legend(document)]
    differences = _differences(document)
    if differences[1]:
        parts += [f"Differences in points, {_label(document)}:", _plain(*differences)]
    verdict = document["verdict"]
    return "\n\n".join([*parts, "\n".join([f"► {verdict['sentence']}", *(f"  {x}" for x in verdict["sentences"])])])


def markdown(document: Mapping[str, Any]) -> str:
    """The same for a document."""
    verdict = document["verdict"]
    parts = ["# Methods side by side", f"**{verdict['sentence']}**", *verdict["sentences"], _ruled(*_shares(document))]
    parts.append(_legend(document))
    differences = _differences(document)
    if differences[1]:
        parts += [f"## Differences in points, {_label(document)}", _ruled(*differences)]
    return "\n\n".join(parts) + "\n"


def _shares(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["method", *(_SHORT[metric] for metric in COMPARABLE), "s to train"]
    start = [f"{100 * document['start'][metric]:.1f}" if metric != "accuracy/anchor" else "–" for metric in COMPARABLE]
    rows = [["start", *start, "–"]]
    for method in document["methods"]:
        cells = [_share(method["metrics"][metric]) for metric in COMPARABLE]
        seconds = method["train_seconds"]
        rows.append([method["name"], *cells, f"{sum(seconds) / len(seconds):.0f}" if seconds else "–"])
    return header, rows


def _share(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['mean']:.1f} ({100 * figure['low']:.1f}–{100 * figure['high']:.1f})"


def _differences(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """On the verdict's metric, without those against the start."""
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
        "chosen”: more so than the anchor's."
    )


def _plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    texts = [
        "  ".join(
            cell.ljust(width) if i == 0 or header[i] == "against" else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    texts.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(texts)


def _ruled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])
