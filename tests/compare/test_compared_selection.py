"""A selection of the training pairs beside all pairs: what is trained, and what is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from compared import recipe_of, scored

from mrpo_pipeline.compare import compare_recipe, contenders
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports.pair_advice import write_selection
from mrpo_pipeline.recipe import parse_recipe


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return scored(tmp_path_factory.mktemp("selection"))


def test_the_recipes_method_is_trained_on_the_selected_pairs_as_well(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    write_selection(recipe_of(document, tmp_path / "unused"), file, order="certainty", count=6)
    ids = pl.read_ndjson(file)["pair_id"].to_list()
    changes = {
        "compare": {"selection": str(file), "methods": {"mrpo": {}}},
        "training": {"max_steps": -1, "num_train_epochs": 1},
    }
    by_steps = recipe_of(document, tmp_path / "out", **changes)
    found = compare_recipe(by_steps).as_dict()
    pairs = {one["name"]: one["pairs"] for one in found["methods"]}
    assert pairs == {"dpo-base": 16, "dpo-other": 16, "simpo": 16, "mrpo": 16, "mrpo-selected": 6}
    describes = {one["name"]: one["describes"] for one in found["methods"]}
    assert describes["mrpo-selected"].endswith("On 6 selected of 16 pairs, for as many steps as mrpo.")

    def steps(output: str, name: str) -> int:
        state = json.loads((tmp_path / output / name / "seed-0" / "trainer_state.json").read_text())
        return int(state["global_step"])

    assert steps("out", "mrpo") == steps("out", "mrpo-selected") == 8
    trained = (tmp_path / "out/mrpo-selected/seed-0/README.md").read_text()
    assert "not selected" in trained and len(set(ids)) == 6
    (asked,) = [x for x in found["comparisons"] if x["method"] == "mrpo-selected" and x["metric"] == "accuracy/policy"
                and x["against"] != "start"]  # fmt: skip
    assert (asked["against"], asked["question"]) == ("mrpo", "do the selected pairs do better than all")
    told = " ".join(found["verdict"]["sentences"])
    assert "Do the selected pairs do? On 6 of 16 training pairs, against all of them: mrpo" in told
    assert (tmp_path / "out/report.html").read_text().count("mrpo-selected") > 2
    changes["compare"]["selection_as_many"] = "epochs"
    compare_recipe(recipe_of(document, tmp_path / "epochs", **changes))
    assert (steps("epochs", "mrpo"), steps("epochs", "mrpo-selected")) == (8, 3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("none.jsonl", "lists none of the 16 training pairs"),
        ("all.parquet", "lists all of the 16 training pairs"),
        ("not there.jsonl", "can't be read"),
        ("pairs.csv", "neither .parquet nor .jsonl"),
    ],
)
def test_a_file_that_selects_nothing_is_refused(
    document: dict[str, Any], tmp_path: Path, content: str, says: str
) -> None:
    file = tmp_path / content
    if content == "none.jsonl":
        file.write_text('{"pair_id": "x"}\n')
    if content == "all.parquet":
        write_selection(recipe_of(document, tmp_path / "unused"), file)
    changed = recipe_of(document, tmp_path / "out", compare={"selection": str(file), "methods": {"mrpo": {}}})
    with pytest.raises(UserError, match=says):
        compare_recipe(changed)


def test_the_method_on_all_pairs_has_to_be_among_those_compared() -> None:
    references = {name: {"model": name} for name in ("base", "other")}
    plain = {"references": references, "compare": {"selection": "keep.jsonl"}}
    one = contenders(parse_recipe(plain))[-1]
    assert (one.name, one.whole, one.several, one.baseline) == ("mrpo-selected", "mrpo", False, False)
    alone = contenders(parse_recipe({**plain, "method": {"name": "dpo"}}))[-1]
    assert (alone.name, alone.whole, alone.baseline) == ("dpo-base-selected", "dpo-base", False)
    assert replace(alone, whole=None).baseline
    other = {**plain, "compare": {"selection": "keep.jsonl", "methods": {"mine": {"beta": 0.3}}}}
    with pytest.raises(UserError, match="do not list it"):
        contenders(parse_recipe(other))
