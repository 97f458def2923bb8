"""Caches of real tiny models: correct numbers pass, each planted fault fails and is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny_tokenizers
import torch
from planted import by_transformers, plant, recipe_of, wanted_of
from tiny_models import KINDS, build
from tiny_references import hard_pairs, pair, plain_pairs, reference

from mrpo_pipeline.cache import CompletionRow, ReferenceCache
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.rendering import Rendered, Renderer
from mrpo_pipeline.scoring import score_references
from mrpo_pipeline.verify import check_numbers, measure_drift
from mrpo_pipeline.verify.oracle import PlainModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("models") / "base", "llama", "llama3")


@pytest.fixture(scope="module")
def other_revision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("models") / "later", "llama", "llama3", seed=1)


def failure(recipe: Recipe, **more: Any) -> str:
    with pytest.raises(RunError) as caught:
        check_numbers(recipe, "base", wanted_of(recipe), 64, **more)
    return str(caught.value)


# Right numbers.


@pytest.mark.parametrize(
    ("kind", "tokenizer", "dtype"),
    [
        ("llama", "llama3", "float32"),
        ("gemma2", "gemma", "float32"),
        ("gpt2", "t5", "float32"),
        ("llama", "qwen", "bfloat16"),
        ("qwen3", "llama2", "float16"),
    ],
)
def test_scored_numbers_pass(tmp_path: Path, kind: str, tokenizer: str, dtype: str) -> None:
    path = reference(tmp_path / "model", kind, tokenizer)
    recipe = recipe_of(tmp_path, path, rows=hard_pairs(), dtype=dtype)
    score_references(recipe)
    drift = check_numbers(recipe, "base", wanted_of(recipe), 64)
    assert drift.passed and drift.failure() is None and not drift.reasons
    assert drift.dtype == dtype == drift.recomputed_by["dtype"]
    assert drift.differences.completions == drift.served == 20
    assert drift.differences.tokens == ReferenceCache.open(recipe.cache, "base").stats().tokens
    if dtype == "float32":
        assert drift.differences.token_max < 1e-4
    else:  # rounding shows that the dtype of the cache was used
        assert drift.differences.token_max > 1e-5
    assert 0 < drift.differences.token_mean <= drift.differences.token_max >= drift.differences.token_p99 > 0


def test_truncated_rows_are_compared_up_to_their_end(tmp_path: Path, model: Path) -> None:
    rows = [pair("Tell me", "word " * 60, "brief"), pair("Tell me more", "thing " * 50, "no")]
    recipe = recipe_of(tmp_path, model, rows=rows)
    short = recipe.model_copy(update={"limits": recipe.limits.model_copy(update={"max_length": 60})})
    score_references(short)
    wanted = wanted_of(short)
    assert wanted["cut"].is_not_null().sum() == 2
    drift = check_numbers(short, "base", wanted, 10)
    assert drift.differences.completions == 4 and drift.longest_tokens < 80
    # Under a longer limit the cache has complete rows only.
    assert check_numbers(recipe, "base", wanted_of(recipe), 10).served == 2
    score_references(recipe)  # longer rows serve the shorter cut as well
    drift = check_numbers(short, "base", wanted, 10)
    assert drift.longest_tokens > 80 and drift.differences.token_max < 1e-4


def test_the_sample_is_drawn_across_lengths_and_has_the_longest(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model, pairs=30)
    score_references(recipe)
    wanted = wanted_of(recipe)
    lengths = ReferenceCache.open(recipe.cache, "base").rows(wanted)["token_ids"].list.len()
    drift = measure_drift(recipe, "base", wanted, 5)
    assert (drift.differences.completions, drift.served) == (5, 60)
    assert drift.longest_tokens == lengths.max() and drift.shortest_tokens < lengths.mean()
    shuffled = measure_drift(recipe, "base", wanted.sample(fraction=1.0, shuffle=True, seed=3), 5)
    assert shuffled.differences == drift.differences
    assert measure_drift(recipe, "base", wanted, 5, seed=1).differences != drift.differences


def test_completions_beyond_the_context_are_not_drawn(tmp_path: Path) -> None:
    small = reference(tmp_path / "small", "gpt2", "qwen", n_positions=64)
    rows = [*plain_pairs(3), pair("Long?", "many words " * 40, "few words")]
    recipe = recipe_of(tmp_path, small, rows=rows)
    score_references(recipe)
    assert check_numbers(recipe, "base", wanted_of(recipe), 10).served == 7


def test_results_are_stored_beside_the_manifest_newest_first(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model, pairs=3)
    cache = plant(recipe)
    wanted = wanted_of(recipe)
    check_numbers(recipe, "base", wanted, 2)
    with pytest.raises(RunError):
        check_numbers(recipe, "base", wanted, 3, limit=1e-12)
    assert len(list((tmp_path / "cache/base/checks").glob("*.json"))) == 2
    newest, first = cache.checks()
    assert (first["passed"], first["differences"]["completions"]) == (True, 2)
    assert (newest["passed"], newest["differences"]["completions"]) == (False, 3)
    assert newest["limits"]["token_max"] == 1e-12
    assert (
        first["scored_by"]["engine"] == "planted" and first["recomputed_by"]["versions"]["torch"] == torch.__version__
    )
    assert json.dumps(first)
    assert [report.problem for report in cache.verify()] == [None]


def test_a_read_only_cache_is_checked(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path, model, pairs=3)
    plant(recipe)

    def refuse(self: ReferenceCache, result: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(ReferenceCache, "record_check", refuse)
    assert check_numbers(recipe, "base", wanted_of(recipe), 2).passed


# Planted faults.


def test_bos_doubled_by_the_text_is_named(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)
    renderer = Renderer.of(recipe.sources()[0])

    def doubled(items: list[tuple[str, str]]) -> list[Rendered]:
        return [
            replace(one, prompt_ids=np.concatenate([one.prompt_ids[:1], one.prompt_ids]))
            for one in renderer.render(items)
        ]

    plant(recipe, render=doubled)
    message = failure(recipe)
    assert "24 have a prompt of another length" in message and "different token ids" not in message
    assert "confirmed: the prompt's first token (such as BOS) was doubled" in message


def test_a_bos_doubled_only_by_the_engine_is_named(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)
    plant(recipe, fed=lambda prompt: np.concatenate([prompt[:1], prompt]))
    message = failure(recipe)
    assert "a prompt of another length" not in message
    assert "confirmed: the prompt's first token (such as BOS) was doubled" in message
    assert "weights" not in message  # a confirmed cause needs no guess


def test_bos_missing_is_named(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)
    plant(recipe, fed=lambda prompt: prompt[1:])
    assert "confirmed: the prompt's first token (such as BOS) was missing" in failure(recipe)


def test_the_template_of_another_model_is_named(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)
    (tmp_path / "other.jinja").write_text(tiny_tokenizers.VICUNA)
    other = Renderer.of(ModelSource(model=str(model), template=str(tmp_path / "other.jinja")).named("base"))
    plant(recipe, render=other.render)
    message = failure(recipe)
    assert "24 have different token ids" in message and "another tokenizer, template" in message
    assert "Worst: completion" in message  # named although no token could be compared


def test_a_template_with_a_system_prompt_of_its_own_is_named(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)
    system = tiny_tokenizers.LLAMA3.replace("{{- bos_token }}", "{{- bos_token }}You are a helpful assistant.", 1)
    (tmp_path / "system.jinja").write_text(system)
    other = Renderer.of(ModelSource(model=str(model), template=str(tmp_path / "system.jinja")).named("base"))
    plant(recipe, render=other.render)
    message = failure(recipe)
    assert "every prompt had" in message and "system prompt" in message


@pytest.mark.parametrize("kind", ["other weights", "some only"])
def test_numbers_of_another_revision_are_named(tmp_path: Path, model: Path, other_revision: Path, kind: str) -> None:
    recipe = recipe_of(tmp_path, model)
    of_another = by_transformers(ModelSource(model=str(other_revision)).named("base"))
    if kind == "other weights":
        plant(recipe, score=of_another)
        assert "other weights (another revision or model)" in failure(recipe)
    else:
        right = by_transformers(recipe.sources()[0])

        def mixed(requests: Any) -> Any:
            both = zip(right(requests), of_another(requests), strict=True)
            return [b if place % 3 == 0 else a for place, (a, b) in enumerate(both)]

        plant(recipe, score=mixed)
        assert "8 of 24 completions are off throughout and the others agree" in failure(recipe)


def test_weights_swapped_under_a_cache_are_refused_by_the_fingerprint(
    tmp_path: Path, model: Path, other_revision: Path
) -> None:
    plant(recipe_of(tmp_path, model))
    recipe = recipe_of(tmp_path, other_revision)
    with pytest.raises(UserError, match="weights"):
        check_numbers(recipe, "base", wanted_of(recipe), 8)


def test_an_adapter_left_out_is_named(tmp_path: Path, model: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings).save_pretrained(tmp_path / "adapter")
    recipe = recipe_of(tmp_path, model, adapter=str(tmp_path / "adapter"))
    plant(recipe)
    assert check_numbers(recipe, "base", wanted_of(recipe), 64).passed
    plant(recipe_of(tmp_path, model, adapter=str(tmp_path / "adapter")).model_copy(update={"cache": str(tmp_path / "b")}),
          score=by_transformers(ModelSource(model=str(model)).named("base")))  # fmt: skip
    recipe = recipe.model_copy(update={"cache": str(tmp_path / "b")})
    assert "confirmed: the adapter was not loaded" in failure(recipe)


def test_a_temperature_is_named(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)

    def cooled(requests: Any) -> list[np.ndarray]:
        plain = PlainModel(recipe.sources()[0])
        found = []
        for request in requests:
            ids = torch.from_numpy(np.concatenate([request.prompt_ids, request.completion_ids]).astype(np.int64))
            with torch.no_grad():
                every = torch.log_softmax(plain._model(input_ids=ids[None]).logits[0] / 0.9, dim=-1)
            first = len(request.prompt_ids)
            found.append(every[first - 1 : -1].gather(1, ids[first:, None])[:, 0].numpy())
        return found

    plant(recipe, score=cooled)
    assert "a temperature, logit scale" in failure(recipe)


def test_positions_of_another_rope_are_named(tmp_path: Path) -> None:
    """A sliding window that the engine ignores changes only the positions after it."""
    windowed = reference(tmp_path / "windowed", "mistral", "llama3", sliding_window=64)
    without = reference(tmp_path / "without", "mistral", "llama3", sliding_window=None)
    rows = [pair(f"Number {i}?", f"It is {i} and so on, " * 8, f"Not {i}. " * 6) for i in range(6)]
    recipe = recipe_of(tmp_path, windowed, rows=rows)
    plant(recipe, score=by_transformers(ModelSource(model=str(without)).named("base")))
    message = failure(recipe)
    assert "every token up to position 6" in message and "sliding window" in message


def test_other_ids_are_named_with_their_position(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)

    def swap(place: int, row: CompletionRow) -> CompletionRow:
        ids = row.token_ids.copy()
        ids[3] += 1
        return replace(row, token_ids=ids) if place == 5 else row

    plant(recipe, change=swap)
    message = failure(recipe)
    assert "1 have different token ids" in message and "a prompt of another length" not in message
    identifier = wanted_of(recipe)["completion_id"][5]
    ids = Renderer.of(recipe.sources()[0]).render(list(wanted_of(recipe).select("prompt", "completion").iter_rows()))[5]
    expected = f"token 3: id {ids.completion_ids[3] + 1} in the cache, {ids.completion_ids[3]} in the text"
    assert f"Worst: completion {identifier}" in message and expected in message


def test_a_truncated_row_marked_complete_is_named(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)
    plant(
        recipe,
        change=lambda _, row: replace(
            row, token_ids=row.token_ids[:-1], logprobs=row.logprobs[:-1], byte_ends=row.byte_ends[:-1]
        ),
    )
    assert "truncated rows marked as complete" in failure(recipe)


def test_another_end_of_turn_token_is_named(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)

    def other_end(_: int, row: CompletionRow) -> CompletionRow:
        return replace(row, token_ids=np.append(row.token_ids[:-1], 3).astype(np.int32))

    plant(recipe, change=other_end)
    assert "in the end-of-turn token only" in failure(recipe)


def test_the_worst_completion_is_named_with_its_text_token_and_both_values(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)
    wanted = wanted_of(recipe)
    of = {}

    def off(place: int, row: CompletionRow) -> CompletionRow:
        logps = row.logprobs.copy()
        if place in (4, 9):
            logps[2] -= place
            of[place] = (row.completion_id, logps[2])
        return replace(row, logprobs=logps)

    plant(recipe, change=off)
    drift = measure_drift(recipe, "base", wanted, 64)
    assert drift.worst is not None
    identifier, cached = of[9]
    assert (drift.worst.completion_id, drift.worst.position) == (identifier, 2)
    assert drift.worst.cached == pytest.approx(cached) and drift.worst.recomputed == pytest.approx(cached + 9, abs=1e-4)
    text = wanted.filter(pl.col("completion_id") == identifier)["completion"].item()
    assert text.startswith(drift.worst.text.rstrip("…")) and drift.worst.token in text and drift.worst.token
    assert identifier in str(drift.failure()) and identifier in drift.summary()
    assert drift.differences.token_max == pytest.approx(9, abs=1e-4)
    assert check_numbers(recipe, "base", wanted, 64, limit=9.1).passed


def test_in_16_bits_many_small_differences_fail_where_one_would_pass(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model, dtype="bfloat16")
    plant(recipe, change=lambda place, row: replace(row, logprobs=row.logprobs - np.float32(0.15)))
    message = failure(recipe)
    assert (
        "no token is far off, but too many are slightly off" in message and "expected 0.1 and 2 in bfloat16" in message
    )
    assert check_numbers(recipe, "base", wanted_of(recipe), 64, limit=4.0).limits.token_mean == 0.2


# What cannot be checked.


def test_an_unscored_reference_is_an_error(tmp_path: Path, model: Path) -> None:
    recipe = recipe_of(tmp_path, model)
    with pytest.raises(UserError, match="is not scored yet"):
        check_numbers(recipe, "base", wanted_of(recipe), 4)
    with pytest.raises(UserError, match="has no reference hermes: expected one of base"):
        check_numbers(recipe, "hermes", wanted_of(recipe), 4)


def test_unscored_pairs_are_an_error(tmp_path: Path, model: Path) -> None:
    plant(recipe_of(tmp_path, model))
    recipe = recipe_of(tmp_path, model, rows=[pair("Else?", "Other", "Things")])
    with pytest.raises(UserError, match="has none of the 2 completions"):
        check_numbers(recipe, "base", wanted_of(recipe), 4)


# Computing again.


@pytest.mark.parametrize("kind", ["llama", "gemma2", "bloom"])
def test_the_oracle_is_a_plain_forward_pass_also_in_pieces(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    assert kind in KINDS
    path = build(kind, tmp_path / kind)
    draw = np.random.default_rng(0)
    prompt, completion = draw.integers(3, 320, 9).astype(np.int32), draw.integers(3, 320, 41).astype(np.int32)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([*prompt.tolist(), *completion.tolist()])
    with torch.no_grad():
        every = torch.log_softmax(plain(input_ids=ids[None]).logits[0].double(), dim=-1)
    expected = [float(every[at - 1, ids[at]]) for at in range(9, 50)]
    model = PlainModel(ModelSource(model=str(path)).named("tiny"), "cpu")
    np.testing.assert_allclose(model.logps(prompt, completion), expected, atol=1e-4, rtol=0)
    monkeypatch.setattr("mrpo_pipeline.verify.oracle.LOGIT_BYTES", 16 * 320 * 4)
    monkeypatch.setattr("mrpo_pipeline.verify.oracle.SOFTMAX_ROWS", 5)
    np.testing.assert_allclose(model.logps(prompt, completion), expected, atol=1e-4, rtol=0)
