"""The card of a published cache: what it holds, from which models, and how to train against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import mrpo_pipeline
from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.cache.transfer import published
from mrpo_pipeline.dataset.prepare import files_of
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.hashing import sha256_of_files
from mrpo_pipeline.models.files import is_folder, is_hub_name, locate
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.terminal import one_line

CARD_TAG = "reference-log-probs"
"""A tag in the header of every card, which distinguishes it from other READMEs."""


def cache_card(
    caches: Sequence[ReferenceCache],
    others: Sequence[ReferenceCache] = (),
    *,
    place: str,
    without_ids: bool = False,
    recipe: Recipe | None = None,
) -> str:
    """The text of ``README.md``, with the YAML header that the hub reads.

    Args:
        caches: the references that are published now, in the recipe's order. others: further references at the place.
        place: where the cache is published.
        recipe: names the models and the pairs.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    sources = {source.name: source for source in recipe.sources()} if recipe else {}
    header = DatasetCardData(
        pretty_name="Reference log-probs",
        tags=["mrpo", CARD_TAG, "preference-optimization"],
        configs=[{"config_name": one.name, "data_files": f"{one.name}/shards/*.parquet"} for one in (*caches, *others)],
    )
    text = DatasetCard.from_template(
        header,
        template_path=str(Path(__file__).with_suffix(".md.j2")),
        references=[
            *(reference_facts(cache, sources.get(cache.name)) for cache in caches),
            *(reference_facts(cache, None, count=False) for cache in others),
        ],
        data=pair_files(recipe),
        place=place,
        without_ids=without_ids or any(manifest.ids_withheld for cache in caches if (manifest := cache.manifest())),
        version=mrpo_pipeline.__version__,
    )
    return f"{text}\n"


def reference_facts(cache: ReferenceCache, source: ModelSource | None, *, count: bool = True) -> dict[str, Any]:
    """Facts about a reference for the card. ``count``: read its shards, for ``stats``."""
    manifest = cache.manifest()
    assert manifest is not None
    checks = cache.checks()
    return {
        "name": cache.name,
        "model": public_name(source.model) if source else "(name it)",
        "revision": (source and source.revision) or manifest.fingerprint.get("revision", ""),
        "licence": _licence(source) if source else "(not recorded)",
        "fingerprint": {field: one_line(value, 80) for field, value in manifest.fingerprint.items()},
        "recorded": {key: _one_line(value) for key, value in published(manifest.recorded).items() if value},
        "stats": cache.stats() if count else None,
        "drift": _drift(checks[0]) if checks else "not computed again (`mrpo cache verify RECIPE`)",
    }


def public_name(name: str) -> str:
    """A hub name, or the last part of a folder's path, because paths of this machine are private."""
    return name if is_hub_name(name) and not is_folder(name) else Path(name).name


def _licence(source: ModelSource) -> str:
    from huggingface_hub import ModelCard

    folder = locate(source.model, source.revision)
    if folder is None or not (folder / "README.md").is_file():
        return "(not recorded)"
    try:
        return str(ModelCard.load(folder / "README.md").data.get("license") or "(not recorded)")
    except (OSError, ValueError, yaml.YAMLError):
        return "(not recorded)"


def pair_files(recipe: Recipe | None) -> list[tuple[str, str]]:
    """Name and SHA-256 of each file of pairs."""
    if recipe is None:
        return []
    try:
        files = [Path(file.name) for file in files_of(recipe.pairs) if not file.remote]
        return list(zip((file.name for file in files), sha256_of_files(files), strict=True))
    except (OSError, UserError):
        return []


def _drift(check: Mapping[str, Any]) -> str:
    figures = check.get("differences") or {}
    said = ", ".join(
        f"{name} {figures[key]:.1e}"
        for name, key in (("mean", "token_mean"), ("maximum", "token_max"))
        if key in figures
    )
    passed = "agree" if check.get("passed") else "differ"
    return f"{figures.get('completions', 0):,} completions computed again by plain transformers {passed} ({said} nats a token)"


def _one_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return str(value)
