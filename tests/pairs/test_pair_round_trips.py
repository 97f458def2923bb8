"""Random rows give the same table in every format, equal to a direct reading of the row."""

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from mrpo_pipeline.pairs import read_pairs

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
SPOKEN = TEXT.filter(str.strip)


def message(role: str, text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({"role": st.just(role), "content": text})


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    prompt = draw(st.lists(message("system", TEXT), max_size=1))
    for turn in draw(st.lists(st.tuples(message("user", TEXT), message("assistant", TEXT)), max_size=2)):
        prompt.extend(turn)
    prompt.append(draw(message("user", SPOKEN)))
    chosen, rejected = draw(
        st.lists(message("assistant", SPOKEN), min_size=2, max_size=2, unique_by=lambda m: m["content"])
    )
    head = prompt if draw(st.booleans()) else []
    row: dict[str, Any] = {"prompt": prompt, "chosen": [*head, chosen], "rejected": [*head, rejected]}
    if head and draw(st.booleans()):
        del row["prompt"]
    for column, kind in (("id", TEXT), ("note", TEXT), ("score", st.floats(allow_nan=False, allow_infinity=False))):
        if draw(st.booleans()):
            row[column] = draw(kind)
    return {"row": row, "expected": (prompt, chosen["content"], rejected["content"], row.get("id"))}


@settings(max_examples=60, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=4), st.booleans())
def test_every_format_reads_the_same_rows_the_same(drawn: list[dict[str, Any]], ascii_only: bool) -> None:
    plain = [one["row"] for one in drawn]
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in plain]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.jsonl").write_bytes("\n".join(lines).encode())
        (folder / "b.jsonl.gz").write_bytes(gzip.compress("\r\n".join(lines).encode()))
        (folder / "c.json").write_text(json.dumps(plain, indent=3), encoding="utf-8")
        # Columns in the order that rows of JSON have them, so `extra` is comparable as text.
        order = ("prompt", "chosen", "rejected", "id", "note", "score")
        table = {key: [row.get(key) for row in plain] for key in order if any(key in row for row in plain)}
        pq.write_table(pa.table(table), folder / "d.parquet", row_group_size=2)
        frames = [read_pairs(str(path)).frame.drop("file") for path in sorted(folder.iterdir())]
    first = frames[0]
    for frame in frames[1:]:
        assert frame.equals(first)
    for index, one in enumerate(drawn):
        prompt, chosen, rejected, row_id = one["expected"]
        pair = first.row(index, named=True)
        assert json.loads(pair["prompt"]) == prompt
        assert (pair["chosen"], pair["rejected"], pair["id"], pair["row"]) == (chosen, rejected, row_id, index)
