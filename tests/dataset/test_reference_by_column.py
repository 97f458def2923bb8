"""Weights by a column of the pairs: each pair against one reference, from the pairs file to the trained adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_recipes import QUICK, run_of
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.compare.methods import contenders
from mrpo_pipeline.dataset import prepare as prepare_module
from mrpo_pipeline.dataset.pair_targets import pair_targets
from mrpo_pipeline.dataset.prepare import prepare_splits
from mrpo_pipeline.dataset.reference_by_column import check_column, chosen_references
from mrpo_pipeline.dataset.reference_logps import open_caches
from mrpo_pipeline.dataset.splits import check_columns, load_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.exports.targets_file import write_targets
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Method, parse_recipe
from mrpo_pipeline.recipe.describe_method import describe

NAMES = ["base", "coder", "mathy"]
WEIGHTS = {"column": "domain", "code": "coder", "math": "mathy", "other": "base"}


def rows(count: int) -> list[dict[str, Any]]:
    made = plain_pairs(count)
    for at, row in enumerate(made):
        row |= {
            "domain": ("code", "math", "poems", None)[at % 4],
            "level": at % 3,
            "tags": ["a"],
            "checked": at % 2 == 0,
        }
        if at % 5 == 4:
            del row["domain"]
    return made


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("routed")
    write_pairs(folder / "pairs.jsonl", rows(24))
    models = {
        name: reference(folder / name, "llama", ("qwen", "llama2", "gpt2")[at], seed=at)
        for at, name in enumerate(NAMES)
    }
    return run_of(folder, models, pairs={"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.25})


def with_method(run: Any, **keys: Any) -> Any:
    document = run.model_dump(mode="json")
    document["pairs"] |= keys.pop("pairs", {})
    document["output_dir"] = keys.pop("output_dir", document["output_dir"])
    document["method"] |= keys
    return parse_recipe(document)


def domains(frame: pl.DataFrame) -> list[str | None]:
    """The domain of each pair, from the file's own row."""
    lines = Path(frame["file"][0]).read_text(encoding="utf-8").splitlines()
    return [json.loads(lines[row]).get("domain") for row in frame["row"]]


EXPECTED = {"code": 1, "math": 2, "poems": 0, None: 0}


def test_mrpo_targets_has_the_reference_of_each_rows_value(scored: Any, tmp_path: Path) -> None:
    run = with_method(scored, weights=WEIGHTS)
    write_targets(run, tmp_path / "targets.parquet")
    written = pl.read_parquet(tmp_path / "targets.parquet")
    expected = [EXPECTED[value] for value in domains(written)]
    assert {0, 1, 2} == set(expected)
    assert [row.index(1.0) for row in written["weights"].to_list()] == expected
    for side in ("chosen", "rejected"):
        clipped = written[f"clipped_{side}"].to_list()
        assert written[f"target_{side}"].to_list() == [row[at] for row, at in zip(clipped, expected, strict=True)]


def test_the_column_is_there_when_pairs_are_kept_prepared(
    scored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(prepare_module, "CACHED_BYTES", 1)
    first, again = prepare_splits(scored), prepare_splits(scored)
    assert list((tmp_path / "home" / "pairs").iterdir())
    method = Method.model_validate({"weights": WEIGHTS})
    for split, part in again.items():
        found = chosen_references(method, NAMES, part.frame)
        assert found is not None
        assert found.tolist() == [EXPECTED[value] for value in domains(first[split].frame)]


def test_training_and_evaluation_take_the_routed_targets(scored: Any, tmp_path: Path) -> None:
    run = with_method(scored, weights=WEIGHTS, beta=0.3, trust_region={"kind": "off"}, output_dir=str(tmp_path / "out"))
    document = run.model_dump(mode="json") | {"training": {**QUICK, "max_steps": 2}}
    run = parse_recipe(document)
    results = train_recipe(run)
    splits = load_splits(run, open_caches(run))
    share = [EXPECTED[value] for value in domains(splits["train"].pairs.frame)]
    for at, name in enumerate(NAMES):
        assert results[f"refs/{name}/weight"] == pytest.approx(share.count(at) / len(share))
    assert results["refs/effective_k"] == 1
    assert "the reference of each pair by its domain (code: coder, math: mathy, other: base)" in (
        tmp_path / "out" / "README.md"
    ).read_text(encoding="utf-8")
    before = evaluate_recipe(run).before
    pairs = splits["eval"].pairs
    apart = [
        (pairs.logps_chosen[n, 0] - pairs.logps_chosen[n, k])
        - (pairs.logps_rejected[n, 0] - pairs.logps_rejected[n, k])
        for n, k in enumerate(EXPECTED[value] for value in domains(pairs.frame))
    ]
    assert before["rewards/margins"] == pytest.approx(0.3 * sum(apart) / len(apart), rel=1e-4)


def test_multi_dpo_has_the_loss_of_each_pairs_own_reference(scored: Any) -> None:
    run = with_method(scored, weights=WEIGHTS, name="multi-dpo")
    pairs = load_splits(run, open_caches(run))["train"].pairs
    inputs = pair_targets(pairs, run.method).loss_inputs()
    assert inputs.weights.argmax(axis=1).tolist() == [EXPECTED[value] for value in domains(pairs.frame)]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"column": "level", "0": "coder", "1": "mathy", "2": "base"}, lambda row: [1, 2, 0][row % 3]),
        ({"column": "checked", "true": "coder", "false": "base"}, lambda row: [1, 0][row % 2]),
    ],
    ids=["whole numbers", "true or false"],
)
def test_values_that_are_no_text_are_named_as_json_writes_them(
    scored: Any, weights: dict[str, str], expected: Any
) -> None:
    frame = prepare_splits(scored)["train"].frame
    found = chosen_references(Method.model_validate({"weights": weights}), NAMES, frame)
    assert found is not None and found.tolist() == [expected(row) for row in frame["row"]]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (
            {"column": "domain", "code": "coder", "math": "mathy"},
            r"pairs\.jsonl, row 2: the column 'domain', which method\.weights\.column names, holds 'poems', and no reference is given",
        ),
        (
            {"column": "domain", "code": "coder", "math": "mathy", "poems": "base"},
            r"pairs\.jsonl, row \d+: the column 'domain', .* holds nothing or null, .* \(so in \d+ of \d+ pairs\)",
        ),
        (
            {"column": "domian", "code": "coder", "other": "base"},
            r"'domian', and no row of the train pairs has a value there \(the first, .*row \d+, has domain, level, tags",
        ),
        (
            {"column": "domain", "cod": "coder", "other": "base"},
            r"method\.weights\.cod names a value of the column 'domain', and no row has it: .*(code|math|poems), ",
        ),
        (
            {"column": "tags", "a": "coder", "other": "base"},
            r"row \d+: the column 'tags', .* holds \['a'\]: expected text, a number, true or false",
        ),
        ({"column": "domain", "code": "nobody", "other": "base"}, r"method\.weights\.code is 'nobody'"),
    ],
)  # fmt: skip
def test_what_cannot_be_routed_is_one_error_with_the_row(
    scored: Any, tmp_path: Path, weights: dict[str, str], says: str
) -> None:
    run = with_method(scored, weights=weights)
    with pytest.raises(UserError, match=says):
        write_targets(run, tmp_path / "targets.parquet")
    with pytest.raises(UserError, match=says):
        train_recipe(with_method(scored, weights=weights, output_dir=str(tmp_path / "out")))


def frame_of(file: str, *extras: dict[str, Any] | None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "file": [file] * len(extras),
            "row": range(len(extras)),
            "extra": [None if extra is None else json.dumps(extra) for extra in extras],
        },
        schema={"file": pl.String, "row": pl.Int64, "extra": pl.String},
    )


def test_a_column_may_be_empty_in_a_split_of_a_file_that_has_it_and_not_in_a_file_of_its_own() -> None:
    method = Method.model_validate({"weights": {"column": "d", "x": "b", "other": "a"}})
    train = frame_of("train.jsonl", {"d": "x"}, {"e": 1})
    check_column(method, ["a", "b"], {"train": train, "eval": frame_of("train.jsonl", None, {"e": 2})})
    with pytest.raises(
        UserError, match=r"no row of the eval pairs has a value there \(the first, own\.jsonl, row 0, has e\)"
    ):
        check_column(method, ["a", "b"], {"train": train, "eval": frame_of("own.jsonl", {"e": 2})})
    # Held-out pairs only, as `mrpo evaluate` reads them, need not hold every value.
    check_column(method, ["a", "b"], {"eval": frame_of("own.jsonl", {"d": "y"})})
    with pytest.raises(UserError, match=r"method\.weights\.x names a value"):
        check_column(method, ["a", "b"], {"train": frame_of("train.jsonl", {"d": "y"})})


def test_a_comparison_checks_the_column_of_every_method(scored: Any) -> None:
    splits = load_splits(scored, open_caches(scored))
    check_columns(Method.model_validate({"weights": WEIGHTS}), splits)
    with pytest.raises(UserError, match="'nowhere'"):
        check_columns(Method.model_validate({"weights": WEIGHTS | {"column": "nowhere"}}), splits)


def test_in_a_comparison_weights_by_a_column_replace_others_completely() -> None:
    references = {name: {"model": name} for name in NAMES}
    entries = {"a": {"weights": {"column": "level", "other": "coder"}}, "b": {"weights": "uniform"}, "c": {}}
    run = parse_recipe({"references": references, "method": {"weights": WEIGHTS}, "compare": {"methods": entries}})
    found = {one.name: one.method.weights for one in contenders(run)}
    assert (found["a"], found["b"], found["c"]) == ({"column": "level", "other": "coder"}, "uniform", WEIGHTS)
    with pytest.raises(UserError, match=r"compare\.leave_one_out"):
        contenders(
            parse_recipe({"references": references, "method": {"weights": WEIGHTS}, "compare": {"leave_one_out": True}})
        )


def test_the_description_names_the_column() -> None:
    assert "by its domain (code: coder, math: mathy, other: base), trust" in describe(
        Method.model_validate({"weights": WEIGHTS})
    )
