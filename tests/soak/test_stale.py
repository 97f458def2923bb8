"""A cache is refused for every change that alters its numbers, and for no other: the table of ``stale.py``, by fingerprints.

``stale.py`` runs the commands over scored references; here each cache is created and opened as by ``mrpo train``, and
nothing is computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import huggingface_hub.constants
import pytest
from stale import faults_of_refusal, fingerprints
from stale_changes import ALTERING, HARMLESS, Change
from stale_worlds import WORLDS, World

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.reference_logps import open_caches
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.hashing import SETTLED_NS
from mrpo_pipeline.models.source import resolve
from mrpo_pipeline.recipe import load_recipe
from mrpo_pipeline.rendering import Renderer

CHANGES = [*ALTERING, *HARMLESS]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[World, object]]]:
    """A separate world for each change, with its cache created and its files old enough for their hashes to be cached."""
    folder = tmp_path_factory.mktemp("stale")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRPO_HOME", str(folder / "home"))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        worlds = {name: make(folder / "worlds" / name) for name, make in WORLDS.items()}
        for world in worlds.values():
            _hub(patch, world)
            begin(world)
        made = {}
        for number, change in enumerate(CHANGES):
            world = worlds[change.world].copy(folder / f"case-{number}")
            made[change.what] = world, change.before(world) if change.before else None
        time.sleep(SETTLED_NS / 1e9 + 0.1)
        yield made


def _hub(patch: pytest.MonkeyPatch, world: World) -> None:
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(world.folder / "hub"))


def begin(world: World) -> None:
    recipe = load_recipe(world.write())
    for source in recipe.sources():
        ReferenceCache.open(recipe.cache, source.name).create_or_check(resolve(source, Renderer.of(source).identity()))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.what)
def test_what_alters_the_numbers_is_refused_and_nothing_else(
    cases: dict[str, tuple[World, object]], change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, state = cases[change.what]
    _hub(monkeypatch, world)
    recorded = fingerprints(world)
    if change.world == "plain":  # from here on the hashes of the weights are cached
        open_caches(load_recipe(world.write()))
    change.make(world, *([state] if change.before else []))
    recipe = load_recipe(world.write())
    if change in HARMLESS:
        open_caches(recipe)
        return
    with pytest.raises(UserError) as caught:
        open_caches(recipe)
    assert faults_of_refusal(change, recorded, str(caught.value)) == []


def test_the_tables_are_as_long_as_was_promised() -> None:
    assert len([change for change in ALTERING if change.fields]) >= 20
    assert len(HARMLESS) >= 15
    assert len({change.what for change in CHANGES}) == len(CHANGES)
