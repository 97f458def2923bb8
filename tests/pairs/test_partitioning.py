"""Parts of a file: between them they hold every row once."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_pipeline.pairs import partitioning
from mrpo_pipeline.pairs.json_records import split_lines
from mrpo_pipeline.pairs.partitioning import in_parts
from mrpo_pipeline.pairs.sources import find_files


@given(
    lines=st.lists(st.binary(max_size=8).filter(lambda data: b"\n" not in data), max_size=12),
    ends=st.booleans(),
    edges=st.lists(st.integers(0, 120), max_size=4),
)
def test_every_line_begins_in_one_part(lines: list[bytes], ends: bool, edges: list[int]) -> None:
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    places = [0, *sorted(min(edge, len(data)) for edge in edges), len(data)]
    found = [line for begin, end in pairwise(places) for _, line in split_lines(io.BytesIO(data), (begin, end))]
    expected = [line for _, line in split_lines(io.BytesIO(data))]
    assert [line.rstrip(b"\n") for line in found] == [line.rstrip(b"\n") for line in expected]


@pytest.mark.parametrize("data", [b"first\nsecond\n\nthird", b"\n\nabc\nd\n", b"one line alone"])
def test_wherever_a_file_is_parted_each_line_is_read_once(data: bytes) -> None:
    whole = [line.strip() for _, line in split_lines(io.BytesIO(data))]
    for edge in range(len(data) + 1):
        parts = [(0, edge), (edge, len(data))]
        assert [line.strip() for part in parts for _, line in split_lines(io.BytesIO(data), part)] == whole


def test_small_files_and_those_read_from_their_beginning_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b.json", "c.jsonl.gz"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    files = find_files(str(tmp_path))
    assert in_parts(files, 2) == [files]
    monkeypatch.setattr(partitioning, "_SMALLEST", 500)
    dealt = in_parts(files, 2)
    pieces = [piece for part in dealt for piece in part]
    assert len(dealt) == 2
    assert sorted((piece.suffix, piece.part) for piece in pieces) == [
        (".json", None), (".jsonl", (0, 500)), (".jsonl", (500, 1000)), (".jsonl.gz", None),
    ]  # fmt: skip
