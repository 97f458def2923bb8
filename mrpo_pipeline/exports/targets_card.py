"""The card of published targets: pairs and log π̃, from which references and by which method, and how to train on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrpo_pipeline
from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.exports.cache_card import pair_files, public_name, reference_facts
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.recipe.plain_yaml import write_yaml

if TYPE_CHECKING:
    from mrpo_pipeline.exports.published_targets import PublishedTargets

TARGETS_TAG = "preference-targets"
"""A tag in the header of every card of targets, which distinguishes it from other READMEs."""


def targets_card(recipe: Recipe, targets: PublishedTargets) -> str:
    """The text of ``README.md``; its YAML header names the files of each split, so that `datasets` loads those alone."""
    from huggingface_hub import DatasetCard, DatasetCardData

    files = [{"split": name, "path": split.files} for name, split in targets.splits.items()]
    header = DatasetCardData(
        pretty_name="Preference pairs with log-probs of references",
        tags=["mrpo", TARGETS_TAG, "preference-optimization", "dpo", "trl"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    policy = recipe.required_policy()
    text = DatasetCard.from_template(
        header,
        template_path=str(Path(__file__).with_suffix(".md.j2")),
        splits=targets.splits,
        references=[
            reference_facts(ReferenceCache.open(recipe.cache, one.name), one, count=False) for one in recipe.sources()
        ],
        recipe=write_yaml(_published(recipe)),
        policy=public_name(policy.model),
        policy_revision=policy.revision,
        data=pair_files(recipe),
        load=load_call(targets),
        settings=targets.settings,
        version=mrpo_pipeline.__version__,
    )
    return f"{text}\n"


def load_call(targets: PublishedTargets) -> str:
    """The Python expression that loads the data set with `datasets`."""
    if targets.place.startswith("hf://"):
        name, _, revision = targets.place.rstrip("/").removeprefix("hf://datasets/").partition("@")
        return f'load_dataset("{name}", revision="{revision}")' if revision else f'load_dataset("{name}")'
    if "://" not in targets.place or targets.place.startswith("file:"):
        return 'load_dataset("path/to/this/folder")'
    place = targets.place.rstrip("/")
    files = {name: [f"{place}/{file}" for file in split.files] for name, split in targets.splits.items()}
    return f'load_dataset("parquet", data_files={files!r})'.replace("'", '"')


def _published(recipe: Recipe) -> dict[str, Any]:
    """The parts of the recipe that determine log π̃, without folders of this machine."""
    document = recipe.model_dump(mode="json")
    models = {one.name: {"model": public_name(one.model), "revision": one.revision} for one in recipe.sources()}
    return {"references": models, "limits": document["limits"], "method": document["method"]}
