"""Ranking accuracy of a demo model, by kind of question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrpo_pipeline.demo.pretraining import answer_logps, conversation_ids, padded
from mrpo_pipeline.demo.questions import KINDS


def ranking_accuracy(model: Any, tokenizer: Any, pairs: Sequence[dict[str, Any]], batch: int = 64) -> dict[str, float]:
    """The share of pairs whose chosen answer has the higher log-prob sum, by kind and over `all`.

    A tie counts one half; NaN for kinds without pairs.
    """
    texts = [
        conversation_ids(tokenizer, pair["prompt"] + pair[side]) for pair in pairs for side in ("chosen", "rejected")
    ]
    sums = _answer_sums(model, texts, batch)
    won: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "all")}
    for index, pair in enumerate(pairs):
        margin = sums[2 * index] - sums[2 * index + 1]
        score = 0.5 if abs(margin) < 1e-5 else float(margin > 0)
        won[pair["meta"]["kind"]].append(score)
        won["all"].append(score)
    return {kind: sum(scores) / len(scores) if scores else float("nan") for kind, scores in won.items()}


def _answer_sums(model: Any, rows: Sequence[tuple[list[int], int]], batch: int) -> list[float]:
    """Log-prob sums (nats) of the last answer of each row, with its end of turn."""
    import torch

    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    sums = [0.0] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            chunk = order[start : start + batch]
            ids, answer = padded([rows[index] for index in chunk])
            logps = torch.zeros(ids.shape, dtype=torch.float64)
            logps[answer] = answer_logps(model, ids, answer).double()
            for index, value in zip(chunk, logps.sum(1).tolist(), strict=True):
                sums[index] = value
    return sums
