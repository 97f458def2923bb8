"""Formats of text and numbers on the page; control characters are made visible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# Characters that are invisible or change the direction of the text around them, and their replacements.
_BAR = [
    0x061C,
    0x200E,
    0x200F,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    *range(0x80, 0xA0),
    *range(0xFFF9, 0xFFFC),
]
_SHOWN = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "␡",
    # Bars, because brackets are mirrored in right-to-left text. 0xD800 to 0xDFFF are lone surrogates.
    **{code: f"¦U+{code:04X}¦" for code in [*_BAR, *range(0xD800, 0xE000)]},
    **{plane + code: "\ufffd" for plane in range(0, 0x110000, 0x10000) for code in (0xFFFE, 0xFFFF)},
}


def visible(text: str) -> str:
    """A text with control characters as symbols, and without direction overrides.

    Line ends become ``\\n``; tabs stay. A NUL becomes ␀, an override such as U+202E becomes ¦U+202E¦.
    """
    return text.replace("\r\n", "\n").translate(_SHOWN)


def one_line(text: str) -> str:
    """A name or sentence from a file: visible characters on one line."""
    return " ".join(visible(text).split())


def before_training(name: str) -> str:
    """A method's name on the page; ``start`` is the policy before training."""
    return "before training" if name == "start" else one_line(name)


def real(value: Any) -> float | None:
    """A finite number from a file, or None."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # JSON integers have any size
        return None


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent without the sign, e.g. ``78.0``."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A signed difference of shares in percentage points, e.g. ``+1.3``, with a typographic minus sign."""
    if value is None:
        return "–"
    rounded = round(100 * value, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "\u2212")


def number(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, without an exponent for usual sizes."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        return f"{value:.{digits - 1}e}".replace("-", "\u2212")
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{places}f}".replace("-", "\u2212")


def fixed(value: float | None, places: int) -> str:
    """A number with ``places`` decimals."""
    if value is None:
        return "–"
    rounded = round(value, places)
    return f"{rounded + 0.0:,.{places}f}".replace("-", "\u2212") if rounded else f"{0:.{places}f}"


def count(value: float | None) -> str:
    """A whole number with commas."""
    return "–" if value is None or not math.isfinite(value) else f"{round(value):,}"


def p_value(value: float | None) -> str:
    """A probability with three decimals; ``< 0.001`` for smaller ones."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as seconds, minutes or hours."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
