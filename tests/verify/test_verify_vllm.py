"""Log-probs of the real vLLM: correct ones pass, and those of its prefix cache are found and named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from planted import plant, recipe_of, wanted_of
from tiny_references import hard_pairs, pair, reference

from mrpo_pipeline.engines import ScoringRequest
from mrpo_pipeline.errors import RunError
from mrpo_pipeline.scoring import score_references
from mrpo_pipeline.verify import check_numbers

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

# vLLM never writes prompt log-probs of positions from its prefix cache (0.32: `torch.empty`): they contain whatever was in
# memory. Read by position here, as by a scorer that trusts the length of the answer.
WITH_PREFIX_CACHE = textwrap.dedent(
    """
    import sys

    import numpy as np
    from vllm import LLM, SamplingParams

    model, requests, answers = sys.argv[1:]
    llm = LLM(model=model, dtype="float32", max_model_len=512, enforce_eager=True, enable_prefix_caching=True, block_size=32,
              skip_tokenizer_init=True, kv_cache_memory_bytes=1 << 28)
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False,
                           skip_reading_prefix_cache=False)
    found, cached = {}, []
    with np.load(requests) as file:
        for name in file.files:
            (output,) = llm.generate([{"prompt_token_ids": file[name].tolist()}], asked, use_tqdm=False)
            rows = output.prompt_logprobs[1:]
            found[name] = np.array([next(iter(row.values())).logprob for row in rows], np.float64)
            cached.append(output.num_cached_tokens or 0)
    np.savez(answers, cached=np.array(cached), **found)
    """
)


@pytest.mark.usefixtures("forked_vllm")
def test_float32_of_vllm_agrees_with_transformers(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, reference(tmp_path / "model", "qwen3", "llama3"), rows=hard_pairs())
    recipe = recipe.model_copy(update={"scoring": recipe.scoring.model_copy(update={"engine": "vllm"})})
    score_references(recipe)
    drift = check_numbers(recipe, "base", wanted_of(recipe), 64)
    assert drift.scored_by["engine"] == "vllm" and any(name.startswith("vllm") for name in drift.scored_by["versions"])
    assert drift.differences.completions == 20 and drift.differences.token_max <= 1e-3


def test_values_from_the_prefix_cache_of_vllm_fail(tmp_path: Path) -> None:
    # Two answers that begin alike: the beginning of the second comes from the prefix cache.
    rows = [
        pair(f"Question {i}?", f"Answer {i} begins with the very same words, " * 6 + tail, f"No. {i} " * 3)
        for i in range(4)
        for tail in ("and ends so.", "but ends another way altogether.")
    ]
    recipe = recipe_of(tmp_path, reference(tmp_path / "model", "llama", "llama3"), rows=rows)
    reused: list[int] = []

    def by_vllm(requests: list[ScoringRequest]) -> list[np.ndarray]:
        sequences = {str(i): np.concatenate([one.prompt_ids, one.completion_ids]) for i, one in enumerate(requests)}
        np.savez(tmp_path / "requests.npz", **sequences)
        environment = os.environ | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        command = [sys.executable, "-c", WITH_PREFIX_CACHE, str(tmp_path / "model")]
        command += [str(tmp_path / "requests.npz"), str(tmp_path / "answers.npz")]
        subprocess.run(command, env=environment, check=True, timeout=300)
        with np.load(tmp_path / "answers.npz") as answers:
            reused.extend(int(n) - len(one.prompt_ids) for n, one in zip(answers["cached"], requests, strict=True))
            # The writer of the cache refuses impossible values, which such memory may hold.
            every = [answers[str(i)][-len(one.completion_ids) :] for i, one in enumerate(requests)]
            return [np.clip(np.nan_to_num(one), -1e5, 0).astype(np.float32) for one in every]

    plant(recipe, score=by_vllm)
    assert sum(tokens > 0 for tokens in reused) == 4, "vLLM took no completion's beginning from its prefix cache"
    with pytest.raises(RunError, match="took from its prefix cache") as caught:
        check_numbers(recipe, "base", wanted_of(recipe), 64)
    # Reused memory may hold the rows of an earlier request, which are correct for the same beginning.
    assert re.search("the beginning of [1-4] of 12 completions is off and the rest exact", str(caught.value))
