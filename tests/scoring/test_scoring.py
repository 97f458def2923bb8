"""Stage one end to end: the cache agrees with an independent forward pass, and nothing is scored twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_recipes import recipe
from tiny_references import HARD_TEXTS, hard_pairs, pair, plain_pairs, reference, write_pairs

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import completion_id, dump_prompt
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.scoring import ReferenceReport, score_references

# (architecture, tokenizer): byte-level BPE of three families, SentencePiece-style BPE of two, Unigram of two.
COMBINATIONS = [
    ("llama", "qwen"),
    ("qwen3", "llama3"),
    ("gpt_neox", "gpt2"),
    ("mistral", "mistral"),
    ("phi", "llama2"),
    ("gemma2", "gemma"),
    ("gpt2", "t5"),
    ("granite", "phi3"),
]


def cached_rows(cache: Path, name: str) -> dict[str, dict[str, Any]]:
    """Rows by completion id, read with plain pyarrow."""
    rows = [row for shard in (cache / name / "shards").glob("*.parquet") for row in pq.read_table(shard).to_pylist()]
    assert len({row["completion_id"] for row in rows}) == len(rows)
    return {row["completion_id"]: row for row in rows}


def oracle(model: Any, prompt_ids: list[int], completion_ids: list[int]) -> np.ndarray:
    """Log-probs of the completion by one unpadded forward pass with full logits, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt_ids + completion_ids])).logits[0].double()
    logps = torch.log_softmax(logits, dim=-1)
    first = len(prompt_ids) - 1
    return np.array([float(logps[first + i, token]) for i, token in enumerate(completion_ids)])


def check_against_oracle(folder: Path, name: str, path: Path, rows: list[dict[str, Any]], limit: float) -> int:
    """Compare every cached log-prob of the rows' completions with the oracle; returns how many tokens were compared."""
    from transformers import AutoModelForCausalLM

    from mrpo_pipeline.models.source import ModelSource

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    renderer = Renderer.of(ModelSource(model=str(path)).named(name))
    cached = cached_rows(folder / "cache", name)
    tokens = 0
    for row in rows:
        for side in ("chosen", "rejected"):
            text, prompt = row[side][0]["content"], dump_prompt(row["prompt"])
            found = cached[completion_id(prompt, text)]
            prompt_ids = renderer.render([(prompt, text)])[0].prompt_ids.tolist()
            assert found["prompt_tokens"] == len(prompt_ids)
            expected = oracle(model, prompt_ids, found["token_ids"])
            np.testing.assert_allclose(found["logprobs"], expected, atol=limit, rtol=0)
            assert abs(sum(found["logprobs"]) - expected.sum()) < 1e-2
            assert found["byte_ends"][-1] == len(text.encode()) and found["complete"]
            assert found["byte_ends"] == sorted(found["byte_ends"])
            tokens += len(expected)
    return tokens


@pytest.mark.parametrize(("kind", "tokenizer"), COMBINATIONS)
def test_transformers_cache_agrees_with_a_plain_forward_pass(tmp_path: Path, kind: str, tokenizer: str) -> None:
    path = reference(tmp_path / "model", kind, tokenizer)
    rows = hard_pairs()
    run = recipe(tmp_path, {"base": path}, write_pairs(tmp_path / "pairs.jsonl", rows))
    (report,) = score_references(run)
    assert report.scored == 2 * len(rows)
    assert check_against_oracle(tmp_path, "base", path, rows, 1e-4) > 200


@pytest.mark.vllm
@pytest.mark.usefixtures("forked_vllm")
@pytest.mark.slow
def test_vllm_cache_agrees_with_a_plain_forward_pass(tmp_path: Path) -> None:
    """With a byte-level and a sentencepiece tokenizer; test_vllm_engine has more architectures."""
    rows = hard_pairs()
    paths = {
        kind: reference(tmp_path / kind, kind, tokenizer) for kind, tokenizer in (COMBINATIONS[0], COMBINATIONS[5])
    }
    run = recipe(tmp_path, paths, write_pairs(tmp_path / "pairs.jsonl", rows), scoring={"engine": "vllm"})
    for report in score_references(run):
        assert report.engine == "vllm" and report.scored == 2 * len(rows)
    for kind, path in paths.items():
        assert check_against_oracle(tmp_path, kind, path, rows, 1e-3) > 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("models") / "base", "llama", "qwen")


def scored(reports: list[ReferenceReport]) -> list[tuple[int, int]]:
    return [(report.scored, report.cached) for report in reports]


def test_nothing_is_scored_twice_and_new_pairs_cost_only_themselves(tmp_path: Path, model: Path) -> None:
    rows = plain_pairs(30)
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows[:20])
    assert scored(score_references(recipe(tmp_path, {"base": model}, pairs))) == [(40, 0)]
    assert scored(score_references(recipe(tmp_path, {"base": model}, pairs))) == [(0, 40)]
    write_pairs(pairs, rows)
    assert scored(score_references(recipe(tmp_path, {"base": model}, pairs))) == [(20, 40)]


def test_a_completion_in_many_pairs_is_scored_once(tmp_path: Path, model: Path) -> None:
    rows = [pair("Which?", f"answer {i}", f"answer {j}") for i in range(7) for j in range(i + 1, 7)]
    assert len(rows) == 21
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows)
    assert scored(score_references(recipe(tmp_path, {"base": model}, pairs))) == [(7, 0)]


def test_learning_rate_beta_and_engine_cause_no_rescoring(tmp_path: Path, model: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", plain_pairs(5))
    score_references(recipe(tmp_path, {"base": model}, pairs))
    changed = recipe(
        tmp_path, {"base": model}, pairs,
        training={"learning_rate": 0.5}, method={"beta": 0.7}, scoring={"engine": "auto", "rows_per_shard": 3},
    )  # fmt: skip
    assert scored(score_references(changed)) == [(0, 10)]


def test_another_template_is_refused_by_name_before_anything_is_scored(tmp_path: Path, model: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", plain_pairs(5))
    score_references(recipe(tmp_path, {"base": model}, pairs))
    before = sorted((tmp_path / "cache").rglob("*"))
    changed = {"base": {"model": str(model), "template": "plain"}}
    document = recipe(tmp_path, {"base": model}, pairs).model_dump(mode="json")
    with pytest.raises(UserError, match="template"):
        score_references(parse_recipe({**document, "references": changed}))
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_a_longer_limit_scores_only_what_was_cut(tmp_path: Path, model: Path) -> None:
    rows = [pair("Tell me", "word " * 60, "brief"), pair("Tell me more", "thing " * 5, "no")]
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows)
    short = recipe(tmp_path, {"base": model}, pairs, limits={"max_length": 60})
    assert scored(score_references(short)) == [(4, 0)]
    (cut,) = [row for row in cached_rows(tmp_path / "cache", "base").values() if not row["complete"]]
    assert cut["byte_ends"][-1] < len("word " * 60)
    assert scored(score_references(short)) == [(0, 4)]
    assert scored(score_references(recipe(tmp_path, {"base": model}, pairs))) == [(1, 3)]


def test_a_pair_that_does_not_fit_a_context_is_counted_and_not_tried_again(tmp_path: Path, model: Path) -> None:
    from mrpo_pipeline.dataset.prepare import prepare_splits
    from mrpo_pipeline.dataset.reference_logps import join_references, open_caches

    small = reference(tmp_path / "small", "llama", "qwen", max_position_embeddings=64)
    rows = [*plain_pairs(3), pair("Long?", "many words " * 40, "few words")]
    run = recipe(tmp_path, {"base": model, "small": small}, write_pairs(tmp_path / "pairs.jsonl", rows))
    first = score_references(run)
    assert [report.unfit for report in first] == [0, 1]
    assert [(r.scored, r.unfit) for r in score_references(run)] == [(0, 0), (0, 1)]
    prepared = prepare_splits(run)["train"]
    joined = join_references(open_caches(run), prepared)
    assert joined.frame.height == 3 and joined.dropped == {"do not fit the context of small": 1}


def test_control_strings_in_the_data_are_counted(tmp_path: Path, model: Path) -> None:
    rows = [pair("What ends a turn?", HARD_TEXTS[5], "nothing"), *plain_pairs(2)]
    (report,) = score_references(recipe(tmp_path, {"base": model}, write_pairs(tmp_path / "pairs.jsonl", rows)))
    assert report.control_strings == 1


def test_the_report_is_plain_data(tmp_path: Path, model: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", plain_pairs(2))
    (report,) = score_references(recipe(tmp_path, {"base": model}, pairs))
    assert json.loads(json.dumps(report.as_dict()))["scored"] == 4
