"""From a recipe: weights from a third split, step-scoped weights, and the settings of further losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_recipes import run_of
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.dataset.pair_targets import pair_targets, training_examples
from mrpo_pipeline.dataset.prepare import prepare_splits
from mrpo_pipeline.dataset.prepared_cache import recorded_log
from mrpo_pipeline.dataset.splits import check_method, examples_of, load_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.exports.targets_file import write_targets
from mrpo_pipeline.pairs import dump_prompt
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Method, parse_recipe
from mrpo_pipeline.recipe.describe_method import describe

VDW, VAW = "validation-discrimination", "validation-accuracy"
SPLITS = {"eval_fraction": 0.3, "weights_fraction": 0.4}


def rows(count: int) -> list[dict[str, Any]]:
    """Pairs with two columns of rewards: the length of each side, in tens of characters."""
    made = plain_pairs(count)
    for row in made:
        row |= {f"reward_{side}": len(row[side][0]["content"]) / 10 for side in ("chosen", "rejected")}
    return made


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("held-out")
    write_pairs(folder / "pairs.jsonl", rows(24))
    models = {
        "base": reference(folder / "base", "llama", "qwen"),
        "other": reference(folder / "other", "phi", "llama2", seed=1),
    }
    return run_of(folder, models, pairs={"train": str(folder / "pairs.jsonl"), **SPLITS})


def with_method(run: Any, **keys: Any) -> Any:
    document = run.model_dump(mode="json")
    for key in ("pairs", "output_dir"):
        if key in keys:
            document[key] = keys.pop(key)
    document["method"] |= keys
    return parse_recipe(document)


def splits_of(run: Any) -> dict[str, Any]:
    from mrpo_pipeline.dataset.reference_logps import open_caches

    return load_splits(run, open_caches(run))


@pytest.mark.parametrize("unit", ["token", "byte"])
def test_with_the_default_beta_a_unit_gets_one_notice_with_the_beta_that_keeps_margins(scored: Any, unit: str) -> None:
    splits = splits_of(scored)
    frame = splits["train"].pairs.frame
    sizes = [
        frame[f"{side}_ids"].list.len() if unit == "token" else frame[side].str.len_bytes()
        for side in ("chosen", "rejected")
    ]
    length = float(np.mean([size.to_numpy() for size in sizes]))
    run = with_method(scored, normalize=unit, weights=VAW)
    with recorded_log() as said:
        examples_of(splits["train"], run.method)
        examples_of(splits["eval"], run.method, report=False)
    weights, beta = (text for _, text in said)
    assert weights.startswith("Weights by validation-accuracy, from the")
    assert f"method.normalize {unit} β multiplies nats per {unit}" in beta
    assert f"set it to about {0.1 * length:.3g} (a completion has {length:,.0f} {unit}s on average)" in beta
    with recorded_log() as said:
        for keys in ({"normalize": unit, "beta": 5.0}, {}, {"normalize": unit, "loss": "ipo"}):
            examples_of(splits["train"], with_method(scored, **keys).method)
    assert not said


def test_no_column_of_the_examples_is_read_only_which_torch_warns_of(scored: Any) -> None:
    pairs = splits_of(scored)["train"].pairs
    examples, _ = training_examples(pairs, with_method(scored, normalize="byte").method)
    columns = {name: value for name, value in vars(examples).items() if isinstance(value, np.ndarray)}
    assert {"chosen_units", "rejected_units", "weights", "anchor_chosen"} <= columns.keys()
    assert [name for name, column in columns.items() if not column.flags.writeable] == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"weights_options": {"temperature": 2.0, "floor": 0.1}}, "adaptive weights (temperature 2, floor 0.1), trust"),
        (
            {"weights": "sliding-window", "weights_options": {"floor": 0.1}},
            "(the last 64 other pairs, floor 0.1), trust",
        ),
        ({"weights": "thompson", "weights_options": {"prior": 3.0}}, "after each step, prior 3), trust"),
        ({"compatibility": "official-code"}, "trust region adaptive (ε 0.1), by the authors' code; sigmoid"),
        ({"sft_weight": 0.5}, "; sigmoid + 0.5 sft loss, β 0.1."),
        ({"label_smoothing": 0.2, "sft_weight": 1.0}, "; sigmoid + sft loss with label smoothing 0.2, β 0.1."),
        (
            {"loss": {"hypo": 1.0, "anchored": 0.5}, "anchored_delta": 0.2},
            "; hypo + 0.5 anchored loss with anchored delta 0.2, β",
        ),
        ({"f_divergence_type": "js_divergence"}, "; sigmoid loss with f divergence type js_divergence, β 0.1."),
        ({"normalize": "byte", "beta": 4.0}, "; sigmoid loss, β 4 on nats per byte."),
        ({"loss": "hinge", "name": "dpo", "normalize": "token"}, "alone; hinge loss, β 0.1 on nats per token."),
        ({}, "MRPO with the harmonic aggregate, adaptive weights, trust region adaptive (ε 0.1); sigmoid loss, β 0.1."),
    ],
    ids=str,
)
def test_every_non_default_option_is_in_the_description(keys: dict[str, Any], says: str) -> None:
    assert says in describe(Method.model_validate(keys))


@pytest.mark.parametrize("weights", [VDW, VAW])
def test_weights_from_the_third_split_are_one_row_for_training_and_evaluation_alike(scored: Any, weights: str) -> None:
    run = with_method(scored, weights=weights)
    splits = splits_of(run)
    held_out = splits["weights"].pairs
    margins = held_out.logps_chosen - held_out.logps_rejected
    score = np.abs(margins).sum(axis=0) if weights == VDW else (margins > 0).sum(axis=0)
    expected = score / score.sum()
    for name in ("train", "eval"):
        targets = pair_targets(splits[name].pairs, run.method)
        np.testing.assert_allclose(targets.weights, np.tile(expected, (len(targets.weights), 1)), rtol=1e-12)
        assert any(f"from the {len(margins)} pairs of the weights split" in notice for notice in targets.notices)


def test_the_third_split_shares_no_prompt_with_the_others(scored: Any) -> None:
    prompts = {name: set(part.frame["prompt"]) for name, part in prepare_splits(scored).items()}
    assert set(prompts) == {"train", "eval", "weights"}
    assert sum(map(len, prompts.values())) == 24 == len(set.union(*prompts.values()))


def test_prompts_of_a_file_of_held_out_pairs_are_not_taken_for_the_third_split(scored: Any, tmp_path: Path) -> None:
    """One of the prompts that would be taken is in the file of held-out pairs: it stays in training."""
    taken = prepare_splits(with_method(scored, pairs={**scored.pairs.model_dump(), "eval_fraction": 0.0}))["weights"]
    one = taken.frame["prompt"][0]
    row = next(row for row in rows(24) if dump_prompt(row["prompt"]) == one)
    write_pairs(tmp_path / "eval.jsonl", [row])
    pairs = {**scored.pairs.model_dump(), "eval_fraction": 0.0, "eval": str(tmp_path / "eval.jsonl")}
    splits = prepare_splits(with_method(scored, pairs=pairs))
    assert set(splits["weights"].frame["prompt"]) == set(taken.frame["prompt"]) - {one}
    assert one in set(splits["train"].frame["prompt"])


def test_a_third_split_whose_prompts_are_all_held_out_names_its_fraction(scored: Any, tmp_path: Path) -> None:
    write_pairs(tmp_path / "eval.jsonl", rows(24))
    pairs = {"train": scored.pairs.train, "eval": str(tmp_path / "eval.jsonl"), "weights_fraction": 0.25}
    with pytest.raises(
        UserError, match=r"third split is empty: every prompt that pairs\.weights_fraction \(0\.25\).*Raise"
    ):
        prepare_splits(with_method(scored, pairs=pairs))


@pytest.mark.parametrize("weights", [VDW, VAW, "thompson"])
def test_without_a_third_split_such_weights_are_refused_before_anything_is_read(scored: Any, weights: str) -> None:
    pairs = {"train": "no-such-file.jsonl", "eval_fraction": 0.3}
    run = with_method(scored, weights=weights, pairs=pairs)
    with pytest.raises(UserError, match=r"expected pairs\.weights_fraction above 0"):
        check_method(run, run.method)
    with pytest.raises(UserError, match=r"expected pairs\.weights_fraction above 0"):
        train_recipe(run)
    alone = with_method(scored, weights=weights, pairs=pairs, aggregate="single:other")
    check_method(alone, alone.method)


@pytest.mark.parametrize(
    ("weights", "kind"), [("sliding-window", pl.Float64), ("thompson", pl.Float64), (VAW, None)], ids=str
)
def test_the_file_of_targets_has_null_targets_where_weights_are_of_a_step(
    scored: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, weights: str, kind: Any
) -> None:
    count = write_targets(with_method(scored, weights=weights), tmp_path / "targets.parquet")
    table = pl.read_parquet(tmp_path / "targets.parquet")
    assert table.height == count
    assert table["logps_chosen"].null_count() == 0
    assert table.schema["weights"] == pl.List(pl.Float64)
    nulls = [table[name].null_count() for name in ("weights", "target_chosen", "target_rejected")]
    assert nulls == [count if kind else 0] * 3
    assert ("change with every training step" in caplog.text) == bool(kind)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"weights": "sliding-window", "weights_options": {"window": 3}},
            "sliding-window weights (the last 3 other pairs)",
        ),
        ({"weights": "thompson", "weights_options": {"pairs": 4}}, "evaluated on 4 held-out pairs"),
        ({"loss": "mpo"}, "0.8 sigmoid + 0.2 bco + sft loss, β 0.1"),
    ],
    ids=str,
)
def test_a_recipe_trains_and_is_evaluated_with_what_its_training_came_to(
    scored: Any, tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    run = with_method(scored, output_dir=str(tmp_path), **keys)
    results = train_recipe(run)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    figures = evaluate_recipe(run)
    for name in ("loss", "rewards/margins", "accuracy/policy"):
        assert figures.after[name] == pytest.approx(results[f"eval_{name}"], rel=1e-4, abs=1e-6), name
    card = (tmp_path / "README.md").read_text()
    assert says in card
    assert says in describe(run.method)
    if keys.get("loss") == "mpo":
        assert results["rewards/running_mean"] != 0
        return
    table = pl.read_parquet(tmp_path / "weights.parquet")
    for name in ("base", "other"):
        own = table.filter(pl.col("reference") == name)["weight"]
        assert results[f"refs/{name}/weight"] == pytest.approx(own.mean())
        assert state["log_history"][0][f"refs/{name}/weight"] == pytest.approx(own[0])
    assert "refs/effective_k" not in results


MODPO = {
    "loss": "modpo",
    "modpo": {"length": {"weight": 0.25, "chosen": "reward_chosen", "rejected": "reward_rejected"}},
}


def test_modpo_takes_rewards_from_columns_and_from_two_references(scored: Any) -> None:
    """margin = 0.25·(r(y_w) − r(y_l)) + 0.35·β'·[(ℓ_other − ℓ_base)(y_w) − (ℓ_other − ℓ_base)(y_l)]; w_1 = 0.4."""
    implicit = {"weight": 0.35, "tuned": "other", "base": "base", "beta": 0.5}
    run = with_method(scored, **(MODPO | {"modpo": {**MODPO["modpo"], "safe": implicit}}))
    check_method(run, run.method)
    pairs = splits_of(run)["train"].pairs
    examples, _ = training_examples(pairs, run.method)
    lengths = [pairs.frame[side].str.len_chars().to_numpy() / 10 for side in ("chosen", "rejected")]
    difference = [side[:, 1] - side[:, 0] for side in (pairs.logps_chosen, pairs.logps_rejected)]
    expected = 0.25 * (lengths[0] - lengths[1]) + 0.35 * 0.5 * (difference[0] - difference[1])
    np.testing.assert_allclose(examples.margins, expected, rtol=1e-12)
    assert "modpo loss (0.4 preference, 0.25 length, 0.35 safe)" in describe(run.method)
    halved = with_method(run, normalize="token")
    own, _ = training_examples(pairs, halved.method)
    tokens = [pairs.frame[f"{side}_ids"].list.len().to_numpy() for side in ("chosen", "rejected")]
    per_token = 0.35 * 0.5 * (difference[0] / tokens[0] - difference[1] / tokens[1])
    np.testing.assert_allclose(own.margins, 0.25 * (lengths[0] - lengths[1]) + per_token, rtol=1e-12)


@pytest.mark.parametrize("bad", ["null", '"3"', "true", "NaN", None], ids=str)
def test_a_reward_that_is_no_number_is_refused_with_its_row_before_a_model_loads(
    scored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str | None
) -> None:
    lines = [json.dumps(row) for row in rows(24)]
    at = next(row for row in prepare_splits(scored)["train"].frame["row"] if row > 2)
    row = json.loads(lines[at])
    own = row.pop("reward_chosen")
    lines[at] = json.dumps(row)[:-1] + ("" if bad is None else f', "reward_chosen": {bad}') + "}"
    assert own > 0
    if bad == "NaN":
        table = pl.DataFrame(
            [json.loads(line) | ({"reward_chosen": float("nan")} if i == at else {}) for i, line in enumerate(lines)]
        )
        table.write_parquet(tmp_path / "pairs.parquet")
        file = tmp_path / "pairs.parquet"
    else:
        file = tmp_path / "pairs.jsonl"
        file.write_text("\n".join(lines) + "\n")
    run = with_method(scored, pairs={"train": str(file), **SPLITS}, **MODPO)
    from mrpo_pipeline.policy import train

    monkeypatch.setattr(train, "load_policy", lambda *_: pytest.fail("the policy was loaded"))
    with pytest.raises(UserError, match=rf"row {at}: the column 'reward_chosen', which method\.modpo\.length\.chosen"):
        train_recipe(run)


REFUSED = {
    "no objective": ({"modpo": {}}, "expected one at least under method.modpo"),
    "weights that leave nothing": (
        {"modpo": {"a": {"weight": 0.5, "tuned": "other", "base": "base"}, "b": {"weight": 0.5, "chosen": "x", "rejected": "y"}}},
        "sum to 1: expected less than 1",
    ),
    "half of a reward": ({"modpo": {"a": {"weight": 0.5, "chosen": "x"}}}, "has chosen: expected"),
    "both kinds": ({"modpo": {"a": {"weight": 0.5, "chosen": "x", "rejected": "y", "base": "base"}}}, "Give one of the two"),
    "a reference that is not there": ({"modpo": {"a": {"weight": 0.5, "tuned": "x", "base": "base"}}}, "one of base, other"),
    "a reference against itself": ({"modpo": {"a": {"weight": 0.5, "tuned": "base", "base": "base"}}}, "Name two references"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_objectives_that_cannot_be_are_refused(scored: Any, case: str) -> None:
    keys, message = REFUSED[case]
    run = with_method(scored, loss="modpo", **keys)
    with pytest.raises(UserError) as refusal:
        check_method(run, run.method)
    assert message in str(refusal.value)


@pytest.mark.parametrize("weight", [0, 1, 1.5, -0.2])
def test_an_objectives_weight_is_within_the_simplex(scored: Any, weight: float) -> None:
    with pytest.raises(UserError, match=r"method\.modpo\.a\.weight"):
        with_method(scored, loss="modpo", modpo={"a": {"weight": weight, "chosen": "x", "rejected": "y"}})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"loss": "mpo", "sft_weight": 0.5}, "method.sft_weight is 0.5"),
        ({"loss": "aot", "name": "multi-dpo"}, "method.name is multi-dpo"),
        ({"loss": {"sigmoid": 1.0, "hypo-each": 1.0}, "name": "multi-dpo"}, "method.name is multi-dpo"),
        ({"loss": "hypo-each", "weights": "sliding-window"}, "changes from step to step"),
        ({"loss": "hypo-each", "compatibility": "official-code"}, "official-code"),
    ],
    ids=str,
)
def test_losses_that_do_not_fit_the_rest_of_the_method_are_refused(
    scored: Any, keys: dict[str, Any], says: str
) -> None:
    run = with_method(scored, **keys)
    with pytest.raises(UserError, match=says):
        check_method(run, run.method)


def test_hypo_each_trains_against_the_aggregate_of_floored_margins(scored: Any) -> None:
    """Geometric with weights ¼ and ¾ by hand; with harmonic, −log(¼·e^−a + ¾·e^−b)."""
    keys = {"loss": "hypo-each", "trust_region": {"kind": "off"}, "weights": [0.25, 0.75]}
    pairs = splits_of(scored)["train"].pairs
    a, b = np.maximum(pairs.logps_chosen - pairs.logps_rejected, 0).T
    assert (a == 0).any() and (b > 0).any()
    for aggregate, expected in (
        ("geometric", a / 4 + 3 * b / 4),
        ("harmonic", -np.log(np.exp(-a) / 4 + 3 * np.exp(-b) / 4)),
    ):
        run = with_method(scored, **keys, aggregate=aggregate)
        examples, _ = training_examples(pairs, run.method)
        np.testing.assert_allclose(examples.floored_margins, expected, rtol=1e-12, atol=1e-12)
    single = with_method(scored, loss="hypo-each", aggregate="single:other")
    np.testing.assert_allclose(training_examples(pairs, single.method)[0].floored_margins, b, rtol=1e-12)


def test_rows_of_several_pairs_have_no_column_for_each_side(scored: Any, tmp_path: Path) -> None:
    from mrpo_pipeline.dataset.modpo_rewards import objective_margins

    run = with_method(scored, **MODPO)
    frame = pl.DataFrame(
        {"file": ["f"], "row": [3], "pair_in_row": [1], "extra": ['{"reward_chosen":1,"reward_rejected":2}']}
    )
    with pytest.raises(UserError, match="f, row 3: this row makes several pairs"):
        objective_margins(run.method, frame, {})
