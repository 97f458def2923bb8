"""Words and numbers for the page: text from data made harmless to look at, figures written the same way everywhere."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

# Beyond this a text is cut in the page; the whole one lies in held_out.parquet.
LONGEST = 20_000
OPENING = 420

# What turns the direction of the text round it. Isolation of each text keeps it from the page; inside the text it is shown.
_DIRECTION = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def visible(text: str) -> str:
    """A text with its control characters shown as symbols, and nothing that overrides the direction of writing.

    Line ends become ``\\n`` alone; tabs stay. A NUL becomes ␀, an override such as U+202E becomes ¦U+202E¦.
    """
    shown = []
    for character in text.replace("\r\n", "\n"):
        code = ord(character)
        if character in "\n\t":
            shown.append(character)
        elif code < 0x20:
            shown.append(chr(0x2400 + code))
        elif code == 0x7F:
            shown.append("␡")
        elif (
            code in _DIRECTION
            or 0x80 <= code < 0xA0
            or 0xFFF9 <= code <= 0xFFFB
            or unicodedata.category(character) == "Cs"
        ):
            # A bar, since brackets are mirrored where text runs from right to left.
            shown.append(f"¦U+{code:04X}¦")
        elif code & 0xFFFE == 0xFFFE:
            shown.append("\ufffd")
        else:
            shown.append(character)
    return "".join(shown)


def one_line(text: str) -> str:
    """A name or sentence from a file: visible characters, on one line."""
    return " ".join(visible(text).split())


def before_training(name: str) -> str:
    """A method's name as the page says it; the start is what a policy was before."""
    return "before training" if name == "start" else one_line(name)


def shorten(text: str, length: int) -> str:
    """At most so many characters, the middle left out: names that differ in their ends stay apart."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent without the sign, e.g. ``78.0``."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, signed, e.g. ``+1.3``; the minus sign is as wide as the plus."""
    if value is None:
        return "–"
    rounded = round(100 * value, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "\u2212")


def number(value: float | None, digits: int = 3) -> str:
    """A figure with so many significant digits, no exponent for what a reader meets, a true minus sign."""
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
    """A figure with so many decimals, as a column wants them; a true minus sign."""
    if value is None:
        return "–"
    rounded = round(value, places)
    return f"{rounded + 0.0:,.{places}f}".replace("-", "\u2212") if rounded else f"{0:.{places}f}"


def count(value: float | None) -> str:
    """A whole number with thousands parted."""
    return "–" if value is None else f"{round(value):,}"


def p_value(value: float | None) -> str:
    """A probability: three places, and no false zero."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person would say them."""
    if seconds is None:
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
