"""How the command line becomes a recipe: names, lists, and what is asked for twice."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from mrpo_cli.commands import app
from mrpo_cli.options import COMPARE, METHOD, PAIRS, TASKS, takes_recipe
from typer.testing import CliRunner

from mrpo_pipeline.errors import UserError


def given(*arguments: str) -> Any:
    """The recipe that a command gets."""
    found: list[Any] = []

    @takes_recipe(COMPARE, PAIRS, METHOD, TASKS)
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


def test_what_lies_here_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert given("--train-file", "c,d.jsonl").pairs.train == "c,d.jsonl"  # neither is there: named as it was given
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
    assert given("--set", "method.trust_region.kind=off").method.trust_region.kind == "off"


@pytest.fixture
def own_messages() -> Iterator[None]:
    """The command sends its messages to its own stderr; afterwards they go where they went."""
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
            "label smoothing is defined for the sigmoid",
        ),
        (("targets", *MODELS, "--aggregate", "single:base", "--epsilon", "0.2"), "epsilon .* has no effect"),
    ],
)
@pytest.mark.usefixtures("own_messages")
def test_an_option_without_effect_is_refused(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        CliRunner().invoke(app, [*arguments, "--cache", str(tmp_path)], catch_exceptions=False)
