"""Formats of text and numbers on the page."""

from __future__ import annotations

import math

from mrpo_pipeline.report.formatting import count, duration, fixed, listed, number, p_value, points, real, visible


def test_numbers_are_written_one_way() -> None:
    assert [points(value) for value in (0.0213, -0.05, 0.0, -0.0001, None)] == ["+2.1", "\u22125.0", "0.0", "0.0", "–"]
    assert [number(value) for value in (1234.5, 0.01234, -2.5, 0, 3e-7, None)] == [
        "1,234",
        "0.0123",
        "\u22122.50",
        "0",
        "3.00e\u221207",
        "–",
    ]
    assert [fixed(value, 2) for value in (-0.001, -1.239, None)] == ["0.00", "\u22121.24", "–"]
    assert [p_value(value) for value in (0.00001, 0.0456, None)] == ["< 0.001", "0.046", "–"]
    assert [duration(value) for value in (8.24, 512.4, 7300.0, 59.99)] == ["8.2 s", "8 min 32 s", "2 h 1 min", "60.0 s"]
    assert listed(["a", "b", "c"]) == "a, b and c" and listed([]) == ""


def test_control_characters_are_shown() -> None:
    assert visible("a\r\nb\tc\x00\x85\ufffe") == "a\nb\tc␀¦U+0085¦\ufffd"


def test_what_is_no_number_is_none_or_a_dash() -> None:
    assert [real(value) for value in ("1", None, math.nan, math.inf, 10**400, 2)] == [None] * 5 + [2.0]
    assert duration(math.nan) == count(math.inf) == number(math.nan) == "–"
