"""Detect stale evaluations: of an adapter that was trained again since, or with other task settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpo_pipeline.files.atomic import remove_folder
from mrpo_pipeline.files.hashing import sha256_of_files
from mrpo_pipeline.recipe import Evaluation

EVALUATION, SAMPLES, ANSWERS = "evaluation.json", "samples.md", "tasks"

# Settings that decide a task's metrics.
_ASKED = {"include_path", "num_fewshot", "tasks_limit", "chat_template"}


def adapter_content(folder: Path) -> str | None:
    """SHA-256 of the adapter's weights; None if the folder holds none."""
    weights = [folder / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    there = [path for path in weights if path.is_file()]
    return sha256_of_files(there)[0] if there else None


def forget(folder: Path) -> None:
    """Remove the evaluation of an adapter that is trained again."""
    for name in (EVALUATION, SAMPLES):
        (folder / name).unlink(missing_ok=True)
    remove_folder(folder / ANSWERS)


def how_asked(settings: Evaluation) -> dict[str, Any]:
    """The settings that task metrics depend on, as written to ``evaluation.json``."""
    asked: dict[str, Any] = settings.model_dump(mode="json", include=_ASKED)
    return asked


def is_of(evaluation: Mapping[str, Any], folder: Path) -> bool:
    """Whether the evaluation belongs to the adapter that is now in the folder."""
    return evaluation.get("adapter") == adapter_content(folder)


def has_measured(folder: Path, settings: Evaluation) -> bool:
    """Whether the folder's evaluation has all these tasks, with these settings, of the adapter that is now in it."""
    try:
        found = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        measured = {change["task"] for change in found["tasks"]}
        return set(settings.tasks) <= measured and found["asked"] == how_asked(settings) and is_of(found, folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False
