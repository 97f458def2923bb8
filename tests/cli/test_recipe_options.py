"""From the command line to a recipe: names, lists, and repeated options."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from mrpo_cli.closing_lines import with_same_recipe
from mrpo_cli.commands import app
from mrpo_cli.option_values import value_of
from mrpo_cli.recipe_decorator import takes_recipe
from mrpo_cli.recipe_options import COMMANDS, COMPARE, METHOD, PAIRS, TASKS, options_of
from typer.testing import CliRunner

from mrpo_pipeline.errors import UserError


def given(*arguments: str) -> Any:
    """The recipe of a command."""
    found: list[Any] = []
    COMMANDS["every group"] = (COMPARE, PAIRS, METHOD, TASKS)

    @takes_recipe("every group")
    def command(recipe: Any) -> None:
        found.append(recipe)

    one = typer.Typer()
    one.command()(command)
    result = CliRunner().invoke(one, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def test_a_reference_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="--reference names base twice, as a and as b"):
        given("--reference", "base=a", "--reference", "base=b")
    assert list(given("--reference", "base=a", "--reference", "other=a").references) == ["base", "other"]


def test_a_local_file_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = given("paper")
    (tmp_path / "paper").mkdir()
    assert given("paper") == shipped
    (tmp_path / "small").write_text("method: {beta: 0.7}\n")
    assert given("small").method.beta != 0.7
    assert given("./small").method.beta == given(str(tmp_path / "small")).method.beta == 0.7
    (tmp_path / "demo.yaml").write_text("method: {beta: 0.7}\n")
    assert given("demo.yaml").method.beta == 0.7
    with pytest.raises(UserError, match="not there"):
        given("nowhere")


def test_a_comma_in_a_name_is_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "a,b.jsonl", "x,y.yaml"):
        (tmp_path / name).write_text("")
    (tmp_path / "d,e").mkdir()
    assert given("--train-file", "a,b.jsonl").pairs.train == "a,b.jsonl"
    assert given("--train-file", "a.jsonl,b.jsonl", "--eval-file", "d,e").pairs.train == ["a.jsonl", "b.jsonl"]
    assert given("--eval-file", "d,e").pairs.eval == "d,e"
    assert given("--train-file", "c,d.jsonl").pairs.train == "c,d.jsonl"  # neither exists: named as given
    assert given("--train-file", "s3://a/x.parquet,s3://a/y.parquet").pairs.train == [
        "s3://a/x.parquet",
        "s3://a/y.parquet",
    ]
    assert given("--train-file", "s3://a/x,y.parquet").pairs.train == "s3://a/x,y.parquet"
    assert given("--train-file", "?.jsonl,d,e").pairs.train == "?.jsonl,d,e"
    assert given("--train-file", "?.jsonl,a,b.jsonl").pairs.train == "?.jsonl,a,b.jsonl"
    assert given("--tasks", "x,y.yaml").evaluation.tasks == ["x,y.yaml"]
    assert given("--tasks", "gsm8k, ifeval").evaluation.tasks == ["gsm8k", "ifeval"]


def test_numbers_and_words_of_options_have_the_recipe_s_types() -> None:
    found = given(
        "--processes",
        "2",
        "--seeds",
        "3,4",
        "--tasks-batch-size",
        "8",
        "--weights",
        "0.3,0.7",
        "--set",
        "limits.max_length=null",
    )
    assert (found.compare.processes, found.compare.seeds, found.evaluation.tasks_batch_size) == (2, [3, 4], 8)
    assert (found.method.weights, found.limits.max_length) == ([0.3, 0.7], None)
    assert given("--processes", "auto").compare.processes == "auto"
    by_column = {"column": "domain", "code": "other", "other": "base"}
    assert given("--weights", "{column: domain, code: other, other: base}").method.weights == by_column
    assert given("--set", "method.trust_region.kind=off").method.trust_region.kind == "off"


def test_text_becomes_what_its_key_takes() -> None:
    assert (value_of("method.beta", "1"), value_of("method.beta", "1e-4")) == (1.0, 1e-4)
    assert type(value_of("method.beta", "1")) is float and type(value_of("training.seed", "010")) is int
    assert value_of("policy.model", "1") == "1" and value_of("pairs.subset", "2.0") == "2.0"
    assert value_of("policy.lora.target_modules", "q_proj,v_proj") == ["q_proj", "v_proj"]
    assert value_of("policy.lora.target_modules", "all-linear") == "all-linear"
    assert value_of("method.beta", "fast") == "fast"  # the recipe reports the error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--beta", "fast"], r"--beta \(`method.beta`\) is 'fast': expected a number"),
        (["--beta", "0"], r"--beta \(`method.beta`\) is 0.0: expected more than 0"),
        (["--loss-type", "sigmod"], r"--loss-type \(`method.loss`\) is 'sigmod': expected 'sigmoid', 'hinge'"),
        (["--seeds", "1,x"], r"--seeds \(`compare.seeds.1`\) is 'x': expected a whole number"),
        (["--set", "training.seed=x"], r"--set \(`training.seed`\) is 'x': expected a whole number"),
        (["--set", "training.sed=1"], "Unknown key `training.sed` in --set"),
        (["--set", "method.bta=1"], "Unknown key `method.bta` in --set: the nearest valid one is `beta`"),
    ],
)
def test_an_error_names_the_option_that_was_typed(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        given(*arguments)


def test_the_next_command_takes_the_options_that_it_knows() -> None:
    typed = {"beta": "0.2", "train_file": "my pairs.jsonl", "check_anchor": False, "learning_rate": "1e-4"}
    typed |= {"reference": ["base=m"], "set_": ["method.normalize=token"]}
    audit = with_same_recipe("audit", "r.yaml", options_of("train"), typed)
    assert (
        audit
        == "mrpo audit r.yaml --train-file 'my pairs.jsonl' --beta 0.2 --reference base=m --set method.normalize=token"
    )
    scored = with_same_recipe("score-refs", None, options_of("train"), typed)
    assert scored.startswith("mrpo score-refs --train-file 'my pairs.jsonl' --no-check-anchor --reference base=m")


@pytest.fixture
def own_messages() -> Iterator[None]:
    """The command logs to its own stderr; afterwards the handlers are restored."""
    log = logging.getLogger("mrpo")
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


MODELS = ("--model", "m", "--reference", "base=m", "--reference", "other=n", "--train-file", "x.jsonl")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", *MODELS, "--eval-file", "e.jsonl", "--seed", "3"), "Give --seeds 3"),
        (("train", *MODELS, "--trust-region", "off", "--epsilon", "0.2"), "epsilon .* has no effect: .* is off"),
        (("train", *MODELS, "--method", "dpo", "--weights", "uniform"), "method.weights .* has no effect: .* dpo"),
        (
            ("train", *MODELS, "--label-smoothing", "0.1", "--loss-type", "ipo"),
            "label smoothing is defined for sigmoid, robust, exo",
        ),
        (("targets", *MODELS, "--aggregate", "single:base", "--epsilon", "0.2"), "epsilon .* has no effect"),
    ],
)
@pytest.mark.usefixtures("own_messages")
def test_an_option_without_effect_is_refused(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.jsonl", "e.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=says):
        CliRunner().invoke(app, [*arguments, "--cache", str(tmp_path / "cache")], catch_exceptions=False)
