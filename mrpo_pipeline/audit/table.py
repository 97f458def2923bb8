"""The audit at a terminal: figures first, what looks broken last, where the eye rests."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrpo_pipeline.audit.report import Audit

_NAME = 16  # characters of a reference's name
_SHORT = {"validation-discrimination": "VDW", "validation-accuracy": "VAW"}


def render(audit: Audit, width: int) -> str:
    """The whole text, in lines of at most ``width`` characters (names and tables are cut to fit, sentences wrapped)."""
    parts = [_pairs(audit, width), _worth(audit), _deciding(audit)]
    if len(audit.references) > 1:
        parts += [_weights(audit, width), _agreement(audit)]
    parts += [_by_length(audit), _findings(audit, width)]
    return "\n\n".join(part for part in parts if part)


def _pairs(audit: Audit, width: int) -> str:
    lines = []
    for split, counts in audit.pairs.items():
        lost = [
            f"{count:,} {what.removeprefix('pairs ')}"
            for what, count in counts.items()
            if what.startswith("pairs dropped")
        ]
        told = [f"{count:,} {what}" for what, count in counts.items() if not what.startswith("pairs ") and count]
        line = f"{split}: {counts['pairs in']:,} pairs read, {counts['pairs out']:,} kept"
        lines += textwrap.wrap("; ".join([line, *lost, *told]), width, subsequent_indent="  ")
    lines += textwrap.wrap(
        f"Figures are of the {audit.split} pairs ({audit.prompts:,} prompts); single tokens were looked at in {audit.sampled:,} "
        "of their completions.",
        width,
    )
    return "\n".join(lines)


def _worth(audit: Audit) -> str:
    head = [
        f"{'':<{_NAME}} {'nats/byte':>13}  {'nats/token':>13}  {'ranked rightly':>18}  {'mean Δ':>8} {'median |Δ|':>10}  looks",
        f"{'':<{_NAME}} {'chosen  rej.':>13}  {'chosen  rej.':>13}  {'share (95%)':>18}  {'nats':>8} {'nats':>10}",
    ]
    lines = []
    for name, one in audit.references.items():
        byte, token, right, delta = one["nats_per_byte"], one["nats_per_token"], one["ranked_rightly"], one["delta"]
        lines.append(
            f"{_name(name)} {byte['chosen']:>6.3f} {byte['rejected']:>6.3f}  {token['chosen']:>6.2f} {token['rejected']:>6.2f}  "
            f"{_percent(right['share']):>6} ({_percent(right['low'])}–{_percent(right['high'])})".ljust(_NAME + 50)
            + f"  {delta['mean']:>+8.2f} {delta['median_size']:>10.2f}  {one['looks']}"
        )
    return "\n".join([*head, *lines])


def _deciding(audit: Audit) -> str:
    if len(audit.references) < 2:
        return ""
    settings = audit.mrpo["settings"]
    head = (
        f"Under MRPO (harmonic mean, adaptive weights, trust region {settings['trust_region']} ε {settings['epsilon']:g}, "
        f"{settings['normalize']}):\neffective K {audit.mrpo['effective_k']:.2f} of {len(audit.references)}"
    )
    lines = [f"{'':<{_NAME}} {'is the smallest':>16} {'clipped':>9} {'Δ turned by clipping':>21}"]
    for name, one in audit.references.items():
        lines.append(
            f"{_name(name)} {_percent(one['argmin_share']):>16} {_percent(one['clip_rate']):>9} {_percent(one['sign_flips']):>21}"
        )
    return "\n".join([head, *lines])


def _weights(audit: Audit, width: int) -> str:
    found = audit.weightings["weights"]
    head = f"{'Mean weights':<{_NAME}} " + " ".join(f"{_SHORT.get(kind, kind):>10}" for kind in found)
    lines = [
        f"{_name(name)} " + " ".join(f"{_percent(row[name]):>10}" for row in found.values())
        for name in audit.references
    ]
    word = textwrap.wrap(
        "VDW and VAW (validation-discrimination, validation-accuracy) are computed on "
        f"{audit.weightings['validation_on']}, {audit.weightings['held_out_pairs']:,} pairs.",
        width,
    )
    return "\n".join([head, *lines, *word])


def _agreement(audit: Audit) -> str:
    head = f"{'Two references':<{2 * _NAME + 3}} {'rank alike':>10} {'Δ corr.':>8} {'nats/byte':>10} {'hard words':>11} {'in place':>9}"
    lines = []
    for one in audit.agreement:
        first, second = one["references"]
        lines.append(
            f"{_name(first).rstrip() + ' · ' + _name(second).rstrip():<{2 * _NAME + 3}} {_percent(one['ranked_alike']):>10} "
            f"{_number(one['delta']):>8} {_number(one['nats_per_byte']):>10} {_number(one['hard_words']):>11} "
            f"{_number(one['hard_places']):>9}"
        )
    return "\n".join([head, *lines])


def _by_length(audit: Audit) -> str:
    """Share ranked rightly and median |Δ| by the pairs' bytes."""
    bins: Sequence[dict[str, Any]] = next(iter(audit.references.values()))["by_length"]
    if len(bins) < 2:
        return ""
    head = f"{'By bytes of both':<{_NAME}} " + " ".join(
        f"{one['bytes_from']:,}–{one['bytes_to']:,}".rjust(17) for one in bins
    )
    cell: Callable[[dict[str, Any]], str] = lambda one: (  # noqa: E731
        f"{_percent(one['ranked_rightly']['share'])}, |Δ| {one['delta_median_size']:.1f}".rjust(17)
    )
    lines = [
        f"{_name(name)} " + " ".join(cell(bin_) for bin_ in one["by_length"]) for name, one in audit.references.items()
    ]
    return "\n".join([head, *lines])


def _findings(audit: Audit, width: int) -> str:
    lines = []
    for finding in audit.findings:
        says = "BROKEN" if finding.severity == "broken" else "SUSPECT"
        lines += textwrap.wrap(
            f"{says} {finding.reference} ({finding.fault}): {finding.sentence}", width, subsequent_indent="  ",
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
    for remark in audit.remarks:
        lines += textwrap.wrap(
            f"note {remark['reference']}: {remark['sentence']}", width, subsequent_indent="  ",
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
    if not audit.findings:
        lines += textwrap.wrap(
            "Nothing in the cached numbers looks broken. What their statistics cannot show (a doubled BOS that the rows do not "
            "tell of, other weights) `mrpo cache verify RECIPE --check 64` computes again.",
            width,
        )
    return "\n".join(lines)


def _name(name: str) -> str:
    return f"{name if len(name) <= _NAME else name[: _NAME - 1] + '…':<{_NAME}}"


def _percent(share: float) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}%"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
