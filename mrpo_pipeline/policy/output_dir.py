"""Checks before any work that results do not overwrite a model, a cache or a recipe of the user."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mrpo_pipeline.cache import check_location, refuse_files
from mrpo_pipeline.dataset.prepare import files_of
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.recipe.plain_yaml import read_yaml, write_yaml

log = logging.getLogger("mrpo")


def check_output_folder(recipe: Recipe) -> None:
    """Refuse an ``output_dir`` in which results would overwrite something else.

    Raises:
        UserError: if it is a file, or holds a model, the cache, or a ``recipe.yaml`` that this program did not write.
    """
    folder = Path(recipe.output_dir)
    refuse_files("output_dir (--output-dir)", [folder, *folder.parents])
    if (folder / "config.json").is_file():
        raise UserError(
            f"output_dir (--output-dir): {folder} holds a model (config.json), whose files the results would overwrite: expected a "
            "folder of its own for results. Name another one."
        )
    cache = check_location(recipe.cache)
    if isinstance(cache, Path) and folder.resolve().is_relative_to(cache.resolve()):
        raise UserError(
            f"output_dir (--output-dir): {folder} is inside the reference cache {cache}: expected a folder of its own for results. "
            "Name another one."
        )
    own = folder / "recipe.yaml"
    if own.is_file() and not _written_by_us(own):
        raise UserError(
            f"output_dir (--output-dir): {own} was written by hand, and the resolved recipe would overwrite it: expected a folder "
            "of its own for results. Name another one, or rename that file."
        )


def report_earlier_run(folder: Path) -> None:
    """Warn that this run replaces the results of an earlier one, and log what ``--resume`` would do."""
    from mrpo_pipeline.policy.checkpoints import checkpoints, read_marker

    finished = (folder / "adapter_model.safetensors").is_file() and (folder / "train_results.json").is_file()
    whole = [path.name for path in checkpoints(folder) if read_marker(path) is not None]
    if not (finished or whole):
        return
    if not whole and read_marker(folder) is None:
        resume = "it left no checkpoint that --resume could continue from"
    elif finished:
        resume = "with --resume its training would not be repeated if nothing has changed"
    else:
        resume = f"--resume would continue from {whole[-1]}"
    log.warning(
        "%s holds %s run. This one starts again and replaces its results; %s. Give another --output-dir to keep them.",
        folder, "a finished" if finished else "an interrupted", resume,
    )  # fmt: skip


def check_output_file(path: Path, key: str, recipe: Recipe) -> None:
    """Raise UserError if an output path is a folder, is below a file, or is a file of the recipe's pairs."""
    refuse_files(key, path.parents)
    if path.is_dir():
        raise UserError(f"{key}: {path} is a folder: expected a file name. Give one.")
    files = [file.name for file in files_of(recipe.pairs) if not file.remote]
    if path.exists() and any(os.path.samefile(path, file) for file in files):
        raise UserError(
            f"{key}: {path} is a file of the recipe's pairs, which it would overwrite: expected an unused name. Give another one."
        )


def _written_by_us(recipe: Path) -> bool:
    """Whether a recipe was written beside results: its text is exactly what dumping its settings gives."""
    try:
        text = recipe.read_text(encoding="utf-8")
        return text == write_yaml(read_yaml(text))
    except (OSError, ValueError):
        return False
