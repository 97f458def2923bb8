"""JSON is split and decoded without inference: late keys, mixed types, long rows, chunk borders."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

import mrpo_pipeline.pairs.json_records as json_records
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import parse_prompt, read_pairs
from mrpo_pipeline.pairs.json_records import split_list

GOOD = {"prompt": "Q", "chosen": "a", "rejected": "b"}


def test_a_key_that_appears_late_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows: list[dict[str, Any]] = [GOOD] * 5000 + [{**GOOD, "note": "late", "id": "x"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    frame = read_pairs(str(path)).frame
    assert frame["extra"].drop_nulls().to_list() == ['{"note":"late"}']
    assert frame["id"][5000] == "x"


def test_a_column_may_change_its_type_from_row_to_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    metas = [1, 2.0, 12345678901234567890123, "3", None, {"x": 1}, ["y"], True, "2024-01-01", 1e-300]
    path.write_text("\n".join(json.dumps({**GOOD, "meta": meta}) for meta in metas))
    kept = [None if extra is None else json.loads(extra)["meta"] for extra in read_pairs(str(path)).frame["extra"]]
    assert [json.dumps(one) for one in kept] == [json.dumps(one) for one in metas]


def test_numbers_first_and_strings_later_are_not_turned_into_strings(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({**GOOD, "chosen": one}) for one in (1, 2, "three")))
    table = read_pairs(str(path), on_bad_row="skip")
    assert table.skipped == {"wrong type": 2}
    assert table.frame["chosen"].to_list() == ["three"]


TORTURE = [
    "emoji \U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f3fd flag \U0001f1e9\U0001f1ea",
    "combining e\u0301 \u1e9b\u0323 nfc \u00e9 ligature \ufb01 fullwidth \uff21",
    "separators \u2028 \u2029 \x85 \x0b \x0c \x1c end",
    "  leading, trailing \t\r\n",
    "\ufeffbyte order mark inside",
    "noncharacters \ufffe \uffff \U0010ffff \ufffd private \ue000",
    'quotes " \\ \\" / </script> \\ud800 \\u0000 {"a": [1, 2]}',
    "rtl \u202e abc \u05e9\u05dc\u05d5\u05dd zero\u200bwidth",
    "<|im_end|><s></s>[INST] <bos>",
    "control \x01 \x1f \x7f",
]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_text_comes_through_unchanged(tmp_path: Path, ascii_only: bool, suffix: str) -> None:
    path = tmp_path / f"pairs{suffix}"
    rows = [
        {"prompt": [{"role": "user", "content": text}], "chosen": text + "+", "rejected": text + "-", text: text}
        for text in TORTURE
    ]
    encoded = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes(("\n".join(encoded) if suffix == ".jsonl" else f"[{','.join(encoded)}]").encode())
    frame = read_pairs(str(path)).frame
    assert [parse_prompt(one)[0]["content"] for one in frame["prompt"]] == TORTURE  # type: ignore[index]
    assert frame["chosen"].to_list() == [text + "+" for text in TORTURE]
    assert frame["rejected"].to_list() == [text + "-" for text in TORTURE]
    assert [json.loads(extra) for extra in frame["extra"]] == [{text: text} for text in TORTURE]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_ten_megabyte_string_and_ten_thousand_messages_are_read(tmp_path: Path, suffix: str) -> None:
    long = 'line "one"\n\\' * 800_000
    turns = [{"role": ("user", "assistant")[index % 2], "content": f"turn {index}"} for index in range(10_001)]
    rows = [{**GOOD, "chosen": long}, {"prompt": turns, "chosen": "a", "rejected": "b"}]
    path = tmp_path / f"pairs{suffix}"
    path.write_text("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows))
    frame = read_pairs(str(path)).frame
    assert frame["chosen"][0] == long
    assert parse_prompt(frame["prompt"][1]) == turns


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_splitting_a_list_does_not_depend_on_chunk_size(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_records, "_CHUNK", chunk)
    dice = random.Random(chunk)

    def value(depth: int) -> Any:
        kind = dice.randrange(6 if depth else 4)
        if kind < 2:
            return "".join(dice.choice('a"\\[]{},:\né\U0001f600') for _ in range(dice.randrange(9)))
        if kind < 4:
            return dice.choice([None, True, -1.5e3, 0])
        if kind == 4:
            return [value(depth - 1) for _ in range(dice.randrange(4))]
        return {str(index): value(depth - 1) for index in range(dice.randrange(4))}

    for _ in range(40):
        elements = [{"v": value(3)} for _ in range(dice.randrange(1, 5))]
        text = "\n " + json.dumps(elements, indent=dice.choice([None, 1]), ensure_ascii=dice.random() < 0.5) + "\n"
        split = list(split_list(io.BytesIO(text.encode()), "x.json"))
        assert [json.loads(data) for _, data in split] == elements


def test_list_elements_are_rows_with_lines_and_fail_independently(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_bytes(
        b'[\n{"prompt": "q",\n "chosen": "a", "rejected": "b"},\n{"prompt": "q", "chosen": "\xff", "rejected": "b"},\n'
        b'{"prompt": "q", "chosen": "c" "rejected": "b"},\n\n\n7, {"prompt": "q", "chosen": "d", "rejected": "b"},\n]'
    )
    with pytest.raises(UserError) as caught:
        read_pairs(str(path))
    told = [one.strip().removeprefix(f"{path}: ") for one in str(caught.value).splitlines() if one.startswith("  ")]
    assert [": ".join(one.split(": ")[:2]) for one in told] == [
        "row 1 (line 4): invalid UTF-8",
        "row 2 (line 5): invalid JSON",
        "row 3 (line 8): not an object",
        "row 5 (line 9): invalid JSON",
    ]
    assert read_pairs(str(path), on_bad_row="skip").frame["chosen"].to_list() == ["a", "d"]
