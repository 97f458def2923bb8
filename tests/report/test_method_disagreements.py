"""The pairs on which methods disagree, in order, with the right signs."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from made_comparison import make_comparison
from page_reader import Page

from mrpo_pipeline.report.method_disagreements import disagreements_of
from mrpo_pipeline.report.results_folder import read_folder
from mrpo_pipeline.report.write import write_report

# Margins of two methods with two seeds each on four pairs. Pair c is disputed by all seeds, b by one, a and d by none.
MARGINS = {
    ("dpo", 0): {"a": 4.0, "b": 1.0, "c": 2.0, "d": -1.0},
    ("dpo", 1): {"a": 3.0, "b": 1.5, "c": 2.0, "d": -2.0},
    ("mrpo", 0): {"a": 1.0, "b": -0.5, "c": -3.0, "d": -1.0},
    ("mrpo", 1): {"a": 1.0, "b": -0.7, "c": -5.0, "d": 0.0},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_comparison(
        tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0, 1), stepwise=(), steps=20
    )
    texts = {"pair_id": list("abcd"), "prompt": list("pqrs"), "chosen": list("ABCD"), "rejected": ["r"] * 4}
    pl.DataFrame(texts).write_parquet(made / "held_out.parquet")
    for (method, seed), margins in MARGINS.items():
        # In another order, as a run may write them.
        rows = sorted(margins.items(), reverse=bool(seed))
        frame = pl.DataFrame({"pair_id": [pair for pair, _ in rows], "logps_chosen": [-10 + m for _, m in rows]})
        frame.with_columns(logps_rejected=pl.lit(-10.0)).write_parquet(made / method / f"seed-{seed}" / "pairs.parquet")
    return made


def test_pairs_on_which_methods_disagree_are_found_and_described(folder: Path) -> None:
    found = disagreements_of(read_folder(folder))
    assert found is not None and (found.split, found.pairs) == (2, 4)
    assert {pair.pair_id for pair in found.shown} == {"b", "c"}
    pair = next(pair for pair in found.shown if pair.pair_id == "c")
    assert pair.chosen == "C"
    assert [(stand.method, stand.margin, stand.right) for stand in pair.methods] == [
        ("dpo", 2.0, 1.0),
        ("mrpo", -4.0, 0.0),
    ]


def test_of_pairs_with_the_same_votes_the_one_whose_margins_lie_further_apart_comes_first(folder: Path) -> None:
    found = disagreements_of(read_folder(folder))
    assert found is not None
    assert [pair.pair_id for pair in found.shown] == ["c", "b"]


def test_votes_count_before_margins(folder: Path) -> None:
    # Now b's margins differ much more than c's, and one and a half of mrpo's two seeds are wrong on it.
    for seed, margin in ((0, -100.0), (1, 0.0)):
        path = folder / "mrpo" / f"seed-{seed}" / "pairs.parquet"
        changed = pl.when(pl.col("pair_id") == "b").then(margin - 10.0).otherwise(pl.col("logps_chosen"))
        pl.read_parquet(path).with_columns(logps_chosen=changed).write_parquet(path)
    found = disagreements_of(read_folder(folder))
    assert found is not None
    assert [(pair.pair_id, pair.methods[1].right) for pair in found.shown] == [("c", 0.0), ("b", 0.25)]


def test_of_pairs_with_one_prompt_the_first_is_shown(folder: Path) -> None:
    texts = pl.read_parquet(folder / "held_out.parquet").with_columns(prompt=pl.lit("p"))
    texts.write_parquet(folder / "held_out.parquet")
    found = disagreements_of(read_folder(folder))
    assert found is not None and [pair.pair_id for pair in found.shown] == ["c"] and found.split == 2


def test_seeds_that_differ_are_shown_so_and_a_tie_is_half(folder: Path) -> None:
    frame = pl.read_parquet(folder / "mrpo" / "seed-1" / "pairs.parquet")
    frame.with_columns(logps_chosen=pl.lit(-10.0)).write_parquet(folder / "mrpo" / "seed-1" / "pairs.parquet")
    page = Page(write_report(folder).read_text())
    (first, *_) = page.all("ul", class_="preferences")
    assert "±mrpo25% of its seeds prefer the chosen side:" in first.text.replace("\n", "")
    assert "✓dpoprefers the chosen side:+2.0" in first.text.replace("\n", "")


def test_the_page_states_that_all_agree(folder: Path) -> None:
    for seed in (0, 1):
        frame = pl.read_parquet(folder / "dpo" / f"seed-{seed}" / "pairs.parquet")
        frame.write_parquet(folder / "mrpo" / f"seed-{seed}" / "pairs.parquet")
    text = Page(write_report(folder).read_text()).text
    assert "On each of 4 held-out pairs, every method prefers the same side." in text


def test_with_one_method_there_are_no_disagreements(folder: Path) -> None:
    for seed in (0, 1):
        (folder / "mrpo" / f"seed-{seed}" / "pairs.parquet").unlink()
    assert disagreements_of(read_folder(folder)) is None


def test_a_very_long_text_is_cut_with_a_note(folder: Path) -> None:
    texts = pl.read_parquet(folder / "held_out.parquet").with_columns(chosen=pl.lit("é" * 30_000))
    texts.write_parquet(folder / "held_out.parquet")
    page = Page(write_report(folder).read_text())
    fold = page.all("details", class_="fold")[0]
    assert "show all 30,000 characters" in fold.text and "Only the first 20,000 characters" in fold.text
    assert fold.text.count("é") == 420 + 20_000
