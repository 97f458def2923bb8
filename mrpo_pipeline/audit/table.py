"""The audit at a terminal: figures first, what looks broken last, where the eye rests."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrpo_pipeline.audit.result import Audit

NARROWEST = 40
_NAME = 16  # characters of a reference's name, at most
_SHORT = {"validation-discrimination": "VDW", "validation-accuracy": "VAW"}

Column = Sequence[str]
"""The lines of a heading, then a cell for each row."""


def render(audit: Audit, width: int) -> str:
    """The whole text, in lines of at most ``width`` characters, 40 at least: names are cut, sentences wrapped, and a table that
    is wider goes on below itself with the columns that are left."""
    width = max(width, NARROWEST)
    parts = [_pairs(audit, width), _worth(audit, width), _deciding(audit, width)]
    if len(audit.references) > 1:
        parts += [_weights(audit, width), _agreement(audit, width)]
    parts += [_by_length(audit, width), _findings(audit, width)]
    return "\n\n".join(part for part in parts if part)


def _pairs(audit: Audit, width: int) -> str:
    lines = []
    for split, counts in audit.pairs.items():
        told = [
            f"{count:,} {what.removeprefix('pairs ') if what.startswith('pairs dropped') else what}"
            for what, count in counts.items()
            if what not in ("pairs in", "pairs out") and (count or what.startswith("pairs dropped"))
        ]
        line = f"{split}: {counts['pairs in']:,} pairs read, {counts['pairs out']:,} kept"
        lines += _wrapped("; ".join([line, *told]), width)
    lines += _wrapped(
        f"Figures are of the {audit.split} pairs ({audit.prompts:,} prompt{'s' * (audit.prompts != 1)}); single tokens were "
        f"looked at in {audit.sampled:,} of their completions.",
        width,
        indent="",
    )
    return "\n".join(lines)


def _worth(audit: Audit, width: int) -> str:
    every = audit.references.values()
    right = [one["ranked_rightly"] for one in every]
    shares = [f"{_percent(one['share'])} ({100 * one['low']:.1f}–{100 * one['high']:.1f})" for one in right]
    columns = [
        ["nats/byte", "chosen   rej.", *_sides([one["nats_per_byte"] for one in every], ".3f")],
        ["nats/token", "chosen   rej.", *_sides([one["nats_per_token"] for one in every], ".2f")],
        ["ranked rightly", "share (95%)", *shares],
        ["mean", "Δ nats", *(f"{one['delta']['mean']:+.2f}" for one in every)],
        ["median", "|Δ| nats", *(f"{one['delta']['median_size']:.2f}" for one in every)],
        ["", "looks", *(one["looks"] for one in every)],
    ]
    return _table(["", "", *_names(audit)], columns, width)


def _sides(figures: Sequence[dict[str, float]], places: str) -> list[str]:
    return [f"{one['chosen']:{places}} {one['rejected']:6{places}}" for one in figures]


def _deciding(audit: Audit, width: int) -> str:
    if len(audit.references) < 2:
        return ""
    settings = audit.mrpo["settings"]
    head = [
        *_wrapped(
            f"Under MRPO (harmonic mean, adaptive weights, trust region {settings['trust_region']} ε {settings['epsilon']:g}, "
            f"{settings['normalize']}):",
            width,
        ),
        f"effective K {audit.mrpo['effective_k']:.2f} of {len(audit.references)}",
    ]
    columns = [
        [*heading, *(_percent(one[key]) for one in audit.references.values())]
        for heading, key in (
            (("is the", "smallest"), "argmin_share"),
            (("", "clipped"), "clip_rate"),
            (("Δ turned", "by clipping"), "sign_flips"),
        )
    ]
    return "\n".join([*head, _table(["", "", *_names(audit)], columns, width)])


def _weights(audit: Audit, width: int) -> str:
    found = audit.weightings["weights"]
    columns = [
        [_SHORT.get(kind, kind), *(_percent(row[name]) for name in audit.references)] for kind, row in found.items()
    ]
    word = _wrapped(
        "VDW and VAW (validation-discrimination, validation-accuracy) are computed on "
        f"{audit.weightings['validation_on']}, {audit.weightings['held_out_pairs']:,} pairs.",
        width,
        indent="",
    )
    return "\n".join([_table(["Mean weights", *_names(audit)], columns, width), *word])


def _agreement(audit: Audit, width: int) -> str:
    most = min(_NAME, (width - 16) // 2)  # of each name, where " · " and a column stand beside the two
    names = [" · ".join(_name(name, most) for name in one["references"]) for one in audit.agreement]
    headings = {"ranked_alike": "rank alike", "delta": "Δ corr.", "nats_per_byte": "nats/byte"}
    columns = [
        [heading, *((_percent if key == "ranked_alike" else _number)(one[key]) for one in audit.agreement)]
        for key, heading in headings.items()
    ]
    return _table(["Two references", *names], columns, width)


def _by_length(audit: Audit, width: int) -> str:
    """Share ranked rightly and median |Δ| by the pairs' bytes, and how Δ goes with the sides' difference in bytes."""
    bins: Sequence[dict[str, Any]] = next(iter(audit.references.values()))["by_length"]
    if len(bins) < 2:
        return ""
    cell: Callable[[dict[str, Any]], str] = lambda one: (  # noqa: E731
        f"{_percent(one['ranked_rightly']['share'])}, |Δ| {one['delta_median_size']:.1f}"
    )
    every = audit.references.values()
    columns = [
        [f"{one['bytes_from']:,}–{one['bytes_to']:,}", *(cell(other["by_length"][at]) for other in every)]
        for at, one in enumerate(bins)
    ]
    columns.append(["Δ by length", *(f"{_number(one['delta']['by_length_difference'], '+.2f')}" for one in every)])
    word = _wrapped(
        "Δ by length: how Δ goes with the bytes that the chosen side has more than the rejected one (rank correlation): +1, the "
        "longer side is always liked more; −1, less; 0, length plays no part.",
        width,
        indent="",
    )
    return "\n".join([_table(["By bytes of both", *_names(audit)], columns, width), *word])


def _findings(audit: Audit, width: int) -> str:
    lines = []
    for finding in audit.findings:
        says = "BROKEN" if finding.severity == "broken" else "SUSPECT"
        lines += _wrapped(f"{says} {finding.reference} ({finding.fault}): {finding.sentence}", width)
    for remark in audit.remarks:
        lines += _wrapped(f"note {remark['reference']}: {remark['sentence']}", width)
    if not audit.findings:
        lines += _wrapped(
            "Nothing in the cached numbers looks broken. What their statistics cannot show (a doubled BOS that the rows do not "
            "tell of, other weights) `mrpo cache verify RECIPE --check 64` computes again.",
            width,
            indent="",
        )
    return "\n".join(lines)


def _table(rows: Sequence[str], columns: Sequence[Column], width: int) -> str:
    """Columns side by side behind the rows' names, as many as fit; the others below, behind the names again.

    Args:
        rows: lines of the heading, then the rows' names.
    """
    first = max(map(len, rows))
    lines = [row.ljust(first) for row in rows]
    done: list[str] = []
    for column in columns:
        room = max(map(len, column))
        if len(lines[0]) > first and len(lines[0]) + 2 + room > width:
            done += lines
            lines = [row.ljust(first) for row in rows]
        lines = [f"{line}  {cell:>{room}}" for line, cell in zip(lines, column, strict=True)]
    return "\n".join(line.rstrip() for line in [*done, *lines])


def _wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )  # fmt: skip


def _names(audit: Audit) -> list[str]:
    return [_name(name, _NAME) for name in audit.references]


def _name(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _percent(share: float) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}%"


def _number(value: float, places: str = ".2f") -> str:
    return "–" if math.isnan(value) else format(value, places)
