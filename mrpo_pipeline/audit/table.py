"""The audit as text for a terminal: metrics first, findings last."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrpo_pipeline.audit.result import Audit

MIN_WIDTH = 40
_NAME = 16  # characters of a reference's name, at most
_SHORT = {"validation-discrimination": "VDW", "validation-accuracy": "VAW"}

Column = Sequence[str]
"""The lines of a heading, then a cell for each row."""


def render(audit: Audit, width: int) -> str:
    """Lines of at most ``width`` characters (at least 40): names are shortened, sentences wrapped, and the columns of a wide table
    continue below."""
    width = max(width, MIN_WIDTH)
    parts = [_pairs(audit, width), _metrics(audit, width)]
    if len(audit.references) > 1:
        parts += [_under_mrpo(audit, width), _weights(audit, width), _agreement(audit, width)]
    return "\n\n".join([*parts, _findings(audit, width)])


def _pairs(audit: Audit, width: int) -> str:
    lines = [line for split, counts in audit.pairs.items() for line in _wrapped(f"{split}: {counts}", width)]
    text = (
        f"Metrics are over the {audit.split} pairs ({audit.prompts:,} prompt{'s' * (audit.prompts != 1)}); tokens were examined in "
        f"{audit.sampled_completions:,} of their completions."
    )
    return "\n".join(lines + _wrapped(text, width, indent=""))


def _metrics(audit: Audit, width: int) -> str:
    every = audit.references.values()
    right = [one["accuracy"] for one in every]
    shares = [f"{_percent(one['share'])} ({100 * one['low']:.1f}–{100 * one['high']:.1f})" for one in right]
    columns = [
        ["nats/byte", "chosen   rej.", *_sides([one["nats_per_byte"] for one in every], ".3f")],
        ["nats/token", "chosen   rej.", *_sides([one["nats_per_token"] for one in every], ".2f")],
        ["accuracy", "share (95%)", *shares],
        ["mean", "Δ nats", *(f"{one['delta']['mean']:+.2f}" for one in every)],
        ["median", "|Δ| nats", *(f"{one['delta']['median_abs']:.2f}" for one in every)],
        ["Δ by", "length", *(_number(one["delta"]["length_correlation"], "+.2f") for one in every)],
        ["", "assessment", *(one["assessment"] for one in every)],
    ]
    note = "Δ by length: rank correlation of Δ with the chosen side's bytes minus the rejected side's."
    return "\n".join([_table(["", "", *_names(audit)], columns, width), *_wrapped(note, width, indent="")])


def _sides(metrics: Sequence[dict[str, float]], digits: str) -> list[str]:
    return [f"{one['chosen']:{digits}} {one['rejected']:6{digits}}" for one in metrics]


def _under_mrpo(audit: Audit, width: int) -> str:
    settings = audit.mrpo["settings"]
    text = (
        f"Under MRPO (harmonic mean, adaptive weights, trust region {settings['trust_region']} ε {settings['epsilon']:g}, "
        f"{settings['normalize']}): effective K {audit.mrpo['effective_k']:.2f} of {len(audit.references)}"
    )
    headings = {"argmin_share": "smallest", "clip_rate": "clipped", "sign_flips": "Δ sign flipped"}
    columns = [
        [heading, *(_percent(one[key]) for one in audit.references.values())] for key, heading in headings.items()
    ]
    return "\n".join([*_wrapped(text, width), _table(["", *_names(audit)], columns, width)])


def _weights(audit: Audit, width: int) -> str:
    columns = [
        [_SHORT.get(kind, kind), *(_percent(row[name]) for name in audit.references)]
        for kind, row in audit.weightings["weights"].items()
    ]
    note = (
        "VDW and VAW (validation-discrimination, validation-accuracy) are computed on "
        f"{audit.weightings['validation_on']}, {audit.weightings['held_out_pairs']:,} pairs."
    )
    return "\n".join([_table(["Mean weights", *_names(audit)], columns, width), *_wrapped(note, width, indent="")])


def _agreement(audit: Audit, width: int) -> str:
    most = min(_NAME, (width - 16) // 2)  # of each name, beside " · " and one column
    names = [" · ".join(_name(name, most) for name in one["references"]) for one in audit.agreement]
    columns = [
        ["same rank", *(_percent(one["same_ranking"]) for one in audit.agreement)],
        ["Δ corr.", *(_number(one["delta"]) for one in audit.agreement)],
        ["nats/byte", *(_number(one["nats_per_byte"]) for one in audit.agreement)],
    ]
    return _table(["Correlation", *names], columns, width)


def _findings(audit: Audit, width: int) -> str:
    lines = []
    for finding in audit.findings:
        text = f"{finding.severity.upper()} {finding.reference} ({finding.fault}): {finding.sentence}"
        lines += _wrapped(text, width)
    for warning in audit.warnings:
        lines += _wrapped(f"warning {warning['reference']}: {warning['sentence']}", width)
    if not audit.findings:
        text = (
            "No cached log-probs look broken. `mrpo cache verify RECIPE --check 64` finds what statistics do not show, such as other "
            "weights, by recomputing some."
        )
        lines += _wrapped(text, width, indent="")
    return "\n".join(lines)


def _table(rows: Sequence[str], columns: Sequence[Column], width: int) -> str:
    """Columns beside the rows' names, as many as fit; the others below, beside the names again.

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
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _names(audit: Audit) -> list[str]:
    return [_name(name, _NAME) for name in audit.references]


def _name(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _percent(share: float) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}%"


def _number(value: float, digits: str = ".2f") -> str:
    return "–" if math.isnan(value) else format(value, digits)
