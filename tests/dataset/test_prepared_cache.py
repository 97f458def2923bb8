"""Cached prepared pairs: equal to freshly prepared ones, and never those of other files, limits or tokenizers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny_references import pair, reference, write_pairs

from mrpo_pipeline.dataset import prepare
from mrpo_pipeline.files.unused import UNUSED_DAYS
from mrpo_pipeline.recipe import parse_recipe

ROWS = [pair(f"question {i}", f"a good answer {i}", f"a bad one {i}") for i in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("models") / "base", "llama", "qwen")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, in which even few pairs are cached."""
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(prepare, "CACHED_BYTES", 0)
    return tmp_path / "home" / "pairs"


def prepared(folder: Path, model: Path, rows: list[dict[str, Any]] | None = None, **limits: int) -> Any:
    if rows is not None:
        write_pairs(folder / "pairs.jsonl", rows)
    document = {
        "pairs": {"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.3},
        "policy": {"model": str(model)},
        "limits": limits,
    }
    return prepare.prepare_splits(parse_recipe(document))


def made_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that are cut and tokenized from now on."""
    made: list[str] = []
    really = prepare.prepare

    def watched(*args: Any, **kwargs: Any) -> Any:
        made.append(kwargs["what"])
        return really(*args, **kwargs)

    monkeypatch.setattr(prepare, "prepare", watched)
    return made


def test_the_second_command_finds_what_the_first_made(
    tmp_path: Path, model: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS, pair("a control token", "<|im_end|> in an answer", "none"), pair("q", "long " * 60, "short")]
    monkeypatch.setattr(prepare, "CACHED_BYTES", 1 << 40)
    fresh = prepared(tmp_path, model, rows, max_length=40)
    assert not home.exists(), "so few are not worth it"
    monkeypatch.setattr(prepare, "CACHED_BYTES", 0)
    first = prepared(tmp_path, model, max_length=40)
    made = made_here(monkeypatch)
    with caplog.at_level(logging.INFO, logger="mrpo"):
        caplog.clear()
        second = prepared(tmp_path, model, max_length=40)
    assert not made
    assert "control strings" in caplog.text and "pairs read" in caplog.text, "what was found is told again"
    for split in ("train", "eval"):
        for other in (first[split], second[split]):
            assert other.frame.equals(fresh[split].frame)
            assert other.counts == fresh[split].counts
    assert fresh["train"].counts.cut_completions + fresh["eval"].counts.cut_completions == 1


def test_other_rows_limits_or_splits_are_prepared_again(
    tmp_path: Path, model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, model, ROWS)
    made = made_here(monkeypatch)
    assert prepared(tmp_path, model, max_length=30)["train"].frame.height
    assert made, "other limits"
    made.clear()
    changed = [pair("question 0", "an answer as long", "a bad one 0"), *ROWS[1:]]
    frames = prepared(tmp_path, model, changed)
    assert made, "another row"
    assert any("an answer as long" in part.frame["chosen"].to_list() for part in frames.values())
    made.clear()
    other = reference(tmp_path / "other", "llama", "gpt2")
    prepared(tmp_path, other)
    assert made, "another tokenizer"
    made.clear()
    prepared(tmp_path, model)
    assert not made, "what was kept first is still there"


@pytest.mark.parametrize("harm", ["flipped", "cut short", "gone", "no account", "false account"])
def test_what_is_not_as_written_is_made_again(
    tmp_path: Path, model: Path, home: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    with monkeypatch.context() as unkept:
        unkept.setattr(prepare, "CACHED_BYTES", 1 << 40)
        before = prepared(tmp_path, model, ROWS)["train"].frame  # not mapped from the files that are damaged below
    prepared(tmp_path, model)
    (folder,) = home.iterdir()
    table, about = folder / "train.arrow", folder / "about.json"
    data = bytearray(table.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 1
        table.write_bytes(bytes(data))
    elif harm == "cut short":
        table.write_bytes(bytes(data[: len(data) // 2]))
    elif harm == "gone":
        table.unlink()
    elif harm == "no account":
        about.write_text("{")
    else:
        about.write_text(json.dumps({"digests": [], "counts": {}, "messages": []}))
    made = made_here(monkeypatch)
    assert prepared(tmp_path, model)["train"].frame.equals(before)
    assert made == ["train pairs", "eval pairs"]
    made.clear()
    assert prepared(tmp_path, model)["train"].frame.equals(before)
    assert not made


def test_where_nothing_can_be_kept_the_pairs_come_all_the_same(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    home.parent.mkdir(parents=True)
    home.write_text("a file where the folder would be")
    assert sum(part.frame.height for part in prepared(tmp_path, model, ROWS).values()) == len(ROWS)


def test_what_was_not_used_for_a_month_goes(tmp_path: Path, model: Path, home: Path) -> None:
    import os
    import time

    prepared(tmp_path, model, ROWS)
    (old,) = home.iterdir()
    long_ago = time.time() - (UNUSED_DAYS + 1) * 86_400
    os.utime(old, (long_ago, long_ago))
    prepared(tmp_path, model, ROWS[:20])
    assert not old.exists() and len(list(home.iterdir())) == 1
