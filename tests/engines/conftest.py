"""Uneven requests, and the oracle: a plain transformers forward pass over one sequence at a time, full logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mrpo_pipeline.engines import ScoringRequest
from mrpo_pipeline.models.source import ModelSource

VOCAB = 320


def draw_requests(count: int, *, longest_prompt: int = 60, longest_completion: int = 50) -> list[ScoringRequest]:
    """Requests of random lengths, including one-token prompts and one-token completions."""
    draw = np.random.default_rng(0)
    prompts = [1, 1, longest_prompt, *draw.integers(1, longest_prompt, count).tolist()][:count]
    completions = [1, longest_completion, 1, *draw.integers(1, longest_completion, count).tolist()][:count]
    return [
        ScoringRequest(draw.integers(3, VOCAB, p).astype(np.int32), draw.integers(3, VOCAB, c).astype(np.int32))
        for p, c in zip(prompts, completions, strict=True)
    ]


def plain_logps(model: torch.nn.Module, request: ScoringRequest) -> np.ndarray:
    """(C,) log-probs of the completion by a forward pass over the whole sequence, unpadded, full logits."""
    ids = torch.tensor([*request.prompt_ids.tolist(), *request.completion_ids.tolist()])
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].double()  # (T, V)
    every = torch.log_softmax(logits, dim=-1)
    start = len(request.prompt_ids)
    return np.array([float(every[at - 1, ids[at]]) for at in range(start, len(ids))])


@pytest.fixture
def oracle() -> Callable[[Path, Sequence[ScoringRequest]], list[np.ndarray]]:
    from transformers import AutoModelForCausalLM

    def run(path: Path, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        # eager: the only attention of transformers with every feature of every model (soft caps, for example).
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        return [plain_logps(model, request) for request in requests]

    return run


@pytest.fixture
def plain() -> Callable[[torch.nn.Module, ScoringRequest], np.ndarray]:
    return plain_logps


@pytest.fixture
def uneven() -> Callable[..., list[ScoringRequest]]:
    return draw_requests


@pytest.fixture
def source_of() -> Callable[..., ModelSource]:
    def make(path: Path, **changes: object) -> ModelSource:
        return ModelSource(model=str(path), **changes).named("tiny")  # type: ignore[arg-type]

    return make
