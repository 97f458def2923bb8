"""Completions with context inside, from the cache to the gradient: scored, cut, checked, trained on, and recomputed.

The renderer is patched: `§` separates messages, every second of which is a tool's, and a leading `¶` makes the template write the
prompt differently.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recipes import QUICK, recipe
from tiny_references import pair, reference, write_pairs
from transformers import AutoModelForCausalLM

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.pair_targets import training_examples
from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
from mrpo_pipeline.dataset.reference_logps import join_references, open_caches
from mrpo_pipeline.dataset.shared_prompt import own_prompts
from mrpo_pipeline.exports import export_targets
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.rendering import Rendered, Renderer
from mrpo_pipeline.scoring import score_references
from mrpo_pipeline.verify import check_numbers

TOOL = "I look it up.§The tool says at length: 42.§So it is 42, as it always was."
ROWS = [
    pair("Question one?", TOOL, "It is 41."),
    pair("Question two?", "¶It is 43.", "Who knows?"),
    pair("Question three?", "It is 44.", "¶" + TOOL.replace("42", "45")),
    pair("Question four?", "A plain one.", "Another."),
]


@pytest.fixture(autouse=True)
def read_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Renderer.render

    def render(self: Renderer, items: Sequence[tuple[str, str]]) -> list[Rendered]:
        return [by_hand(self, prompt, text) for prompt, text in items]

    def by_hand(renderer: Renderer, prompt: str, text: str) -> Rendered:
        parts = text.split("§")
        read = plain(renderer, [(prompt, part) for part in parts])
        ids, ends, scored, start = [], [], [], 0
        for number, (part, one) in enumerate(zip(parts, read, strict=True)):
            ids.append(one.completion_ids)
            ends.append(start + one.byte_ends if number % 2 == 0 else np.full(len(one.byte_ends), ends[-1][-1]))
            scored.append(np.full(len(one.byte_ends), number % 2 == 0))
            start += len(part.encode()) + len("§".encode())
        prompt_ids = read[0].prompt_ids
        if text.startswith("¶"):
            prompt_ids = np.concatenate([prompt_ids[:-3], prompt_ids[[0, 2, 1, 0]]])
        mask = None if len(parts) == 1 else np.concatenate(scored)
        return Rendered(prompt_ids, np.concatenate(ids), np.concatenate(ends).astype(np.int32), mask)

    monkeypatch.setattr(Renderer, "render", render)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("models") / "base", "llama", "qwen")


def run_of(folder: Path, model: Path, **more: Any) -> Any:
    document = {"training": QUICK | {"per_device_train_batch_size": 4}, "output_dir": str(folder / "out"), **more}
    return recipe(folder, {"base": model}, write_pairs(folder / "pairs.jsonl", ROWS), **document)


def oracle(model: Path, one: Rendered) -> np.ndarray:
    """(S,) sums from full logits of each row alone, log-softmax, and a mask."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor(np.concatenate([one.prompt_ids, one.completion_ids]), dtype=torch.long)[None]
    with torch.no_grad():
        logps = loaded(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    own = logps.gather(-1, ids[0, 1:, None])[len(one.prompt_ids) - 1 :, 0].numpy()
    return own if one.scored is None else own[one.scored]


def sums_by_hand(model: Path, frame: Any, side: str) -> np.ndarray:
    """(N,) sums of prepared pairs, each side with its own prompt."""
    sums = []
    for prompt, ids, scored in frame.select("prompt_ids", f"{side}_ids", f"{side}_scored").iter_rows():
        mask = None if scored is None else np.array(scored)
        sums.append(oracle(model, Rendered(np.array(prompt), np.array(ids), np.array(ids), mask)).sum())
    return np.array(sums)


@pytest.mark.usefixtures("forked_vllm")
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])])
def test_the_cache_holds_the_scored_tokens_and_serves_training(tmp_path: Path, model: Path, engine: str) -> None:
    run = run_of(tmp_path, model, scoring={"engine": engine})
    (report,) = score_references(run)
    assert report.scored == 8
    (prepared,) = prepare_splits(run).values()
    wanted = wanted_completions([prepared])
    cache = ReferenceCache.open(run.cache, "base")
    rows = {row["completion_id"]: row for row in cache.rows(wanted).iter_rows(named=True)}
    rendered = Renderer.of(run.sources()[0]).render(list(wanted.select("prompt", "completion").iter_rows()))
    for identifier, one in zip(wanted["completion_id"], rendered, strict=True):
        row = rows[identifier]
        assert row["token_ids"] == one.scored_ids.tolist() and row["byte_ends"] == one.scored_ends.tolist()
        assert row["complete"] and row["prompt_tokens"] == len(one.prompt_ids)
        np.testing.assert_allclose(row["logprobs"], oracle(model, one), atol=1e-4, rtol=0)
    assert check_numbers(run, "base", wanted, 8).passed
    # After the shared prompt, every side reads its own prompt; the policy is compared with the cached numbers.
    frame = prepared.frame
    by_text = dict(zip(wanted["completion"], rendered, strict=True))
    for side in ("chosen", "rejected"):
        assert own_prompts(frame, side) == [by_text[text].prompt_ids.tolist() for text in frame[side]]
    pairs = join_references(open_caches(run), prepared)
    np.testing.assert_allclose(pairs.logps_chosen[:, 0], sums_by_hand(model, frame, "chosen"), atol=1e-3)
    np.testing.assert_allclose(pairs.logps_rejected[:, 0], sums_by_hand(model, frame, "rejected"), atol=1e-3)
    by_token = run.method.model_copy(update={"normalize": "token"})
    units = training_examples(pairs, by_token)[0].rejected_units
    assert units is not None and units.tolist() == [len(by_text[text].scored_ids) for text in frame["rejected"]]


def test_training_starts_at_the_anchor_and_other_trainers_get_the_plain_pairs(tmp_path: Path, model: Path) -> None:
    run = run_of(tmp_path, model)
    score_references(run)
    train_recipe(run)  # and compares the policy's start with the cached anchor
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    first = next(entry for entry in state["log_history"] if "logps/chosen" in entry)
    (prepared,) = prepare_splits(run).values()
    for side in ("chosen", "rejected"):
        expected = sums_by_hand(model, prepared.frame, side).mean()
        assert first[f"logps/{side}"] == pytest.approx(expected, abs=1e-3)
    assert all(np.isfinite(entry["loss"]) for entry in state["log_history"] if "loss" in entry)
    export = export_targets(run, "trl", tmp_path / "targets.parquet")
    assert export.pairs == 1 and list(export.left_out.values()) == [3]


def test_a_cut_counts_context_as_room_and_leaves_none_at_the_end(tmp_path: Path, model: Path) -> None:
    whole = prepare_splits(run_of(tmp_path, model))["train"].frame
    prompt, longest = len(whole["prompt_ids"][0]), len(whole["chosen_ids"][0])
    seen = set()
    for limit in range(prompt + 6, prompt + longest):
        run = run_of(tmp_path, model, limits={"max_length": limit, "max_prompt_length": None})
        frame = prepare_splits(run)["train"].frame
        ids, scored, cut = frame.select("chosen_ids", "chosen_scored", "chosen_cut").row(0)
        assert ids == whole["chosen_ids"][0].to_list()[: len(ids)] and prompt + len(ids) <= limit
        assert cut is not None and (scored is None or (scored[-1] and not all(scored)))
        seen.add((len(ids), scored is None))
        for side in ("chosen", "rejected"):
            lengths = frame["prompt_ids"].list.len() + frame[f"{side}_ids"].list.len()
            assert lengths.max() <= limit
    assert len({length for length, plain in seen if plain}) > 1 and any(not plain for _, plain in seen)


def test_a_row_that_was_scored_for_a_cut_inside_context_serves_it_and_is_scored_on(tmp_path: Path, model: Path) -> None:
    whole = prepare_splits(run_of(tmp_path, model))["train"].frame
    scored = whole["chosen_scored"][0].to_list()
    middle = len(whole["prompt_ids"][0]) + scored.index(False) + 3
    short = run_of(tmp_path, model, limits={"max_length": middle, "max_prompt_length": None})
    score_references(short)
    (prepared,) = prepare_splits(short).values()
    rows = ReferenceCache.open(short.cache, "base").rows(wanted_completions([prepared]))
    row = rows.filter(rows["completion_id"] == prepared.frame["chosen_id"][0]).row(0, named=True)
    assert (
        not row["complete"]
        and row["token_ids"]
        == [token for token, mark in zip(whole["chosen_ids"][0], scored, strict=True) if mark][: len(row["token_ids"])]
    )
    pairs = join_references(open_caches(short), prepared)
    np.testing.assert_allclose(pairs.logps_chosen[:, 0], sums_by_hand(model, prepared.frame, "chosen"), atol=1e-3)
    (report,) = score_references(run_of(tmp_path, model))
    assert report.scored == 2, "both that were cut"
