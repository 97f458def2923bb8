"""A recipe is read safely, invalid keys are named, and a written recipe reads back the same."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import TRAINING_DEFAULTS, Recipe, load_recipe, method_for, parse_recipe, parse_value
from mrpo_pipeline.recipe.check import put
from mrpo_pipeline.recipe.docs_page import keys

BASE: dict[str, Any] = {"policy": {"model": "m"}, "references": {"base": {"model": "m"}, "other": {"model": "n"}}}


def test_the_contract_s_example_is_read() -> None:
    text = """
pairs: {train: a.jsonl, eval_fraction: 0.1, columns: {prompt: prompt, id: id}, strings: text, weights_fraction: 0.0}
policy: {model: m, lora: {r: 8, alpha: 16, dropout: 0.0, target_modules: [q_proj, v_proj]}}
references:
  base: {model: m}
  hermes: {model: n, revision: null, adapter: null, tokenizer: null, template: auto, dtype: auto, quantization: null}
cache: DIR
limits: {max_prompt_length: 512, max_length: 1024}
scoring: {engine: auto}
method: {name: mrpo, aggregate: harmonic, weights: adaptive, weights_options: {floor: 0.0, temperature: 1.0},
  trust_region: {kind: adaptive, epsilon: 0.1}, compatibility: none, normalize: sum, beta: 0.1, loss: sigmoid,
  label_smoothing: 0.0, sft_weight: 0.0}
training: {learning_rate: 1.0e-5, num_train_epochs: 1, per_device_train_batch_size: 2, gradient_accumulation_steps: 4, seed: 0}
output_dir: DIR
"""
    recipe = parse_recipe(yaml.safe_load(text))
    assert [source.name for source in recipe.sources()] == ["base", "hermes"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"metod": {}}, "`metod`.*nearest valid one is `method`"),
        ({"method": {"bta": 1}}, "`method.bta`.*`beta`"),
        ({"method": {"trust_region": {"kidn": "off"}}}, "`method.trust_region.kidn`.*`kind`"),
        ({"references": {"base": {"modell": "m"}}}, "`references.base.modell`.*`model`"),
        ({"references": {"base": {}}}, "`references.base.model` is missing"),
        ({"method": {"beta": "strong"}}, "`method.beta`.*'strong'"),
        ({"method": {"beta": 0}}, r"`method\.beta` in the recipe is 0: expected more than 0\. Correct"),
        ({"method": {"weights": {"a": 1}}}, r"`method\.weights\.a` in the recipe is 1: expected text\."),
        ({"method": {"weights": 7}}, r"`method\.weights` in the recipe is 7: expected "),
        ({"method": {"weights": [0.5, "b"]}}, r"`method\.weights\.1` in the recipe is 'b': expected a number\."),
        (
            {"method": {"aggregate": "single:"}},
            "is 'single:': expected harmonic, geometric, arithmetic, or single: and",
        ),
        ({"compare": {"processes": 0}}, r"`compare\.processes` in the recipe is 0: expected 'auto', or 1 or more\."),
        ({"compare": {"processes": "all"}}, r"`compare\.processes`.*'all': expected 'auto', or a whole number\."),
        ({"compare": {"seeds": []}}, r"`compare\.seeds` in the recipe is \[\]: expected a list of 1 or more\."),
        ({"compare": {"seeds": [0, "a"]}}, r"`compare\.seeds\.1` in the recipe is 'a': expected a whole number\."),
        ({"pairs": {"train": [1]}}, r"`pairs\.train\.0` in the recipe is 1: expected text\."),
        ({"pairs": []}, r"`pairs` in the recipe is \[\]: expected keys under it\."),
        ({"references": {1: {"model": "m"}}}, r"`references\.1`.*expected keys that are text"),
        (
            {"policy": {"model": "m", "lora": {"target_modules": [1]}}},
            r"target_modules\.0` in the recipe is 1: expected text",
        ),
        ({"training": {"logging_first_step": "maybe"}}, r"`training\.logging_first_step`.*expected true or false"),
        ({"method": {"loss": "kto"}}, "`method.loss`.*sigmoid"),
        ({"training": {"learning_rat": 1}}, "`training.learning_rat`.*`learning_rate`"),
        ({"training": {"learning_rate": "fast"}}, "`training.learning_rate`.*'fast'"),
        ({"training": {"output_dir": "x"}}, "`training.output_dir`.*at the top"),
        ({"limits": {"max_length": 64, "max_prompt_length": 64}}, "room for a completion"),
        ({"pairs": {"eval": "a", "eval_fraction": 0.5}}, "expected one of them"),
        ({"pairs": {"columns": {"promt": "x"}}}, "`pairs.columns.promt`"),
        ({"compare": {"methods": {"a": {"bet": 1}}}}, "compare.methods.a.*`beta`|`bet`.*compare.methods.a"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_expected(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_recipe({**BASE, **change})


WRONG: list[Any] = [None, True, -1, 1.5, "", "x", [], ["a"], [1], [[1]], {}, {"a": 1}, {1: 2}, {"a": {"b": 1}}, 10**9]


def test_no_wrong_value_is_answered_in_pydantic_s_words() -> None:
    """Every key with every wrong value is named as written, with the expectation in plain words."""
    every = [key.replace("references.NAME", "references.base").replace("modpo.NAME", "modpo.x") for key, _ in keys()]
    for key in every:
        for value in WRONG if key != "training" else ():
            document = copy.deepcopy(BASE)
            put(document, key, value)
            try:
                parse_recipe(document)
            except UserError as error:
                told = str(error)
                named = re.search(r"`([^`]*)`", told)
                assert named is None or re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)*", named[1]), told
                words = r"Input|should|valid (integer|number|string|list|dict|bool)|instance|validation|constrained|expected \."
                assert not re.search(words, told), told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method: {beta: 0.1, beta: 0.2}", "is given twice"),
        ("a: &x [1]\nb: *x", "alias"),
        ("policy: !!python/object/apply:os.system [ls]", "can't be read"),
        ("- a\n- b", "list at the top level"),
        ("a: [1, 2", "can't be read"),
        ("a: \x00", "can't be read"),
        ("x: " + "y" * (1 << 20), "1,048,57"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=expected):
        load_recipe(path)


def test_options_win_over_the_file_and_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: {beta: 0.1, trust_region: {epsilon: 0.3}}\ntraining: {learning_rate: 1e-5}\n")
    recipe = load_recipe(path, {"method.beta": 0.2, "method.trust_region.kind": "off", "training.seed": 7})
    assert recipe.method.beta == 0.2
    assert (recipe.method.trust_region.kind, recipe.method.trust_region.epsilon) == ("off", 0.3)
    assert recipe.training == {**TRAINING_DEFAULTS, "learning_rate": 1e-5, "seed": 7}
    assert parse_value("1e-4") == 1e-4


def test_what_is_written_reads_back_as_the_same_recipe(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {**BASE, "scoring": {"engine": "vllm", "gpu_memory_utilization": 0.4}, "method": {"weights": [0.3, 0.7]}}
    )
    recipe.write(tmp_path)
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again.dump() == recipe.dump()
    assert again.scoring.engine_options == {"gpu_memory_utilization": 0.4}


def test_a_prompt_may_take_half_by_default() -> None:
    limits = {n: parse_recipe({**BASE, "limits": {"max_length": n}}).limits.max_prompt_length for n in (256, 2048)}
    assert limits == {256: 128, 2048: 1024}
    assert Recipe().limits.max_prompt_length == 512
    assert parse_recipe({**BASE, "limits": {"max_length": None}}).limits.max_prompt_length is None


def test_a_compared_method_is_the_recipe_s_own_with_its_changes() -> None:
    document = {**BASE, "method": {"beta": 0.3, "trust_region": {"kind": "fixed"}}}
    recipe = parse_recipe(
        {**document, "compare": {"methods": {"a": {"trust_region": {"epsilon": 0.5}}, "b": {"name": "dpo"}}}}
    )
    changed = method_for(recipe, "a")
    assert (changed.beta, changed.trust_region.kind, changed.trust_region.epsilon) == (0.3, "fixed", 0.5)
    assert method_for(recipe, "b").name == "dpo"
