"""The recipe beside a result reproduces it: a written recipe loads to the same recipe, for any content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.output_dir import check_output_folder
from mrpo_pipeline.recipe import Recipe, load_recipe, parse_recipe, parse_value
from mrpo_pipeline.recipe.plain_yaml import read_yaml
from tests.recipe.recipe_strategies import recipes


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=recipes())
def test_a_recipe_loads_from_what_it_is_written_as(document: dict[str, Any]) -> None:
    recipe = parse_recipe(document)
    assert parse_recipe(read_yaml(recipe.dump())) == recipe


@pytest.mark.parametrize(
    "document",
    [
        {"limits": {"max_length": None}},
        {"limits": {"max_prompt_length": None}},
        {"scoring": {"kv_cache_dtype": None}},
        {"training": {"data_seed": None, "max_grad_norm": float("inf")}},
        {"compare": {"methods": {"a": {"weights": "uniform"}}}},
        {"references": {"base": {"model": "1e5", "revision": "77e2", "scoring": {"seed": None}}}},
    ],
)
def test_nulls_and_texts_like_numbers_come_back(document: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse_recipe({**document, "output_dir": str(tmp_path)})
    recipe.write(tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    check_output_folder(recipe)  # the file is recognized as written by this program


def test_no_limit_stays_no_limit(tmp_path: Path) -> None:
    parse_recipe({"limits": {"max_length": None}}).write(tmp_path)
    limits = load_recipe(tmp_path / "recipe.yaml").limits
    assert (limits.max_length, limits.max_prompt_length) == (None, None)
    assert Recipe().limits.max_length == 1024


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1.0e5", 1e5), ("10", 10), ("-3", -3), (".5", 0.5), ("1_000", 1000), ("true", True), ("null", None),
        ("2024-01-01", "2024-01-01"), ("1:30", "1:30"), ("0512", "0512"), ("77e", "77e"),
    ],
)  # fmt: skip
def test_numbers_are_read_as_they_are_written(text: str, value: Any) -> None:
    assert (parse_value(text), type(parse_value(text))) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limits.max_length", "512"), ("limits.max_length", 512.0), ("limits.max_length", True), ("limits.max_length", "0512"),
        ("limits.max_prompt_length", "64"), ("method.beta", "0.1"), ("method.beta", True), ("method.weights", ["0.5", 0.5]),
        ("pairs.eval_fraction", "0.1"), ("policy.lora.r", "8"), ("policy.lora.use_dora", "yes"), ("policy.lora.use_dora", 1),
        ("policy.trust_remote_code", "false"), ("policy.model", 7), ("scoring.workers", "2"), ("scoring.unit", 4096.0),
        ("compare.seeds", ["0"]), ("compare.processes", "2"), ("evaluation.tasks_batch_size", "8"),
        ("evaluation.chat_template", "no"), ("training.learning_rate", "1e-4"), ("training.max_steps", "5"),
        ("training.max_steps", 5.0), ("training.gradient_checkpointing", "true"), ("training.seed", True),
        ("training.save_total_limit", "2"), ("references.base.trust_remote_code", 0),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_and_named(key: str, value: Any) -> None:
    document: dict[str, Any] = {"policy": {"model": "m"}, "references": {"base": {"model": "m"}}}
    *parents, last = key.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    with pytest.raises(UserError, match=f"`{key}") as error:
        parse_recipe(document)
    assert repr(value) in str(error.value) or isinstance(value, list)


def test_an_unquoted_off_is_the_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: {trust_region: {kind: off}}\ntraining: {save_strategy: no, eval_strategy: no}\n")
    recipe = load_recipe(path)
    assert recipe.method.trust_region.kind == "off"
    assert (recipe.training["save_strategy"], recipe.training["eval_strategy"]) == ("no", "no")
