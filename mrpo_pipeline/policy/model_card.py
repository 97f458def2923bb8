"""The model card of a trained adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mrpo_pipeline
from mrpo_pipeline.models.files import is_hub_name

# The metrics of a card; train_results.json and eval_results.json hold all.
_METRICS = (
    "eval_accuracy/policy",
    "eval_accuracy/anchor",
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "eval_loss",
    "train_loss",
    "refs/effective_k",
    "epoch",
    "num_tokens",
    "train_runtime",
)


def model_card(card: Mapping[str, Any], *, base_model: str, metrics: Mapping[str, float]) -> str:
    """The text of ``README.md`` with the hub's YAML header.

    Args:
        card: any of ``title`` (str), ``method`` (str: one line on the objective), ``recipe`` (YAML text), ``references`` (a
            mapping for each, with ``name`` and ``model``; empty for training without references), ``start`` (a sentence on
            the anchor and the policy's start), ``data`` (description → counts), ``datasets`` (hub names), ``notes`` (sentences).
        base_model: a hub name or folder; the header names only a hub model.
        metrics: results of training and evaluation, of which the card shows ten.
    """
    from huggingface_hub import ModelCard, ModelCardData

    references: Sequence[Mapping[str, Any]] = card.get("references") or []
    header = ModelCardData(
        base_model=base_model if is_hub_name(base_model) and not Path(base_model).exists() else None,
        datasets=list(card.get("datasets") or []) or None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["mrpo", "preference-optimization", "dpo", "lora"],
        references=[{key: value for key, value in one.items() if value is not None} for one in references] or None,
    )
    columns = list(dict.fromkeys(key for reference in references for key in reference))
    tables = [
        ("References", card.get("start") or "The first is the anchor.", columns, [map(one.get, columns) for one in references]),
        ("Data", "", ("what", "count"), list((card.get("data") or {}).items())),
        ("Metrics", "", ("metric", "value"), [(name, metrics[name]) for name in _METRICS if name in metrics]),
    ]  # fmt: skip
    text = ModelCard.from_template(
        header,
        template_path=str(Path(__file__).with_suffix(".md.j2")),
        title=card.get("title") or "A policy trained on preferences",
        base_model=base_model,
        version=mrpo_pipeline.__version__,
        method=card.get("method"),
        references=card.get("references"),
        tables=[(heading, note, keys, [map(_cell, row) for row in rows]) for heading, note, keys, rows in tables],
        notes=card.get("notes"),
        recipe=str(card.get("recipe") or "").rstrip("\n"),
    )
    return f"{text}\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
