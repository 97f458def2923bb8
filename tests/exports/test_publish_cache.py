"""`mrpo cache push`, `pull`, `merge`: a published cache trains to the same losses, from a folder, a store and the hub. The
hub is the stub of upload_hub.py: behaviour that only the real hub has is not tested."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mrpo_command import mrpo
from tiny_recipes import run_of
from tiny_references import plain_pairs, reference, write_pairs
from upload_hub import HubStub

from mrpo_pipeline.cache import ReferenceCache, StoreError
from mrpo_pipeline.dataset.pair_targets import pair_targets
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports.publish_cache import merge_caches, pull_cache, push_cache
from mrpo_pipeline.exports.targets_file import cached_split
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.scoring import score_references

URL = "hf://datasets/org/refs"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("published")
    base = reference(folder / "base-model", "llama", "qwen")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    other = reference(folder / "other-model", "gpt_neox", "llama2", seed=1)
    return run_of(folder, {"base": base, "other": other}, scoring={"engine": "transformers", "rows_per_shard": 5})


def with_cache(recipe: Recipe, cache: str, **more: Any) -> Recipe:
    return parse_recipe({**recipe.model_dump(mode="json"), "cache": cache, **more})


def losses(recipe: Recipe, folder: Path) -> list[float]:
    train_recipe(with_cache(recipe, recipe.cache, output_dir=str(folder)))
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "rewards/margins" in entry]


def targets(recipe: Recipe) -> list[float]:
    found = pair_targets(cached_split(recipe, "train"), recipe.method)
    return [*found.target_chosen.tolist(), *found.target_rejected.tolist()]


def test_a_cache_that_was_pushed_and_pulled_trains_to_the_same_losses(
    scored: Recipe, hub: HubStub, tmp_path: Path
) -> None:
    push_cache(scored.cache, URL, recipe=scored)
    assert hub.commits == ["Add references base, other"]
    done = pull_cache(URL, str(tmp_path / "cache"), recipe=scored)
    assert {one.reference: one.files > 1 for one in done} == {"base": True, "other": True}
    assert losses(with_cache(scored, str(tmp_path / "cache")), tmp_path / "a") == losses(scored, tmp_path / "b")


def test_the_hub_is_read_in_place_and_not_written_to(scored: Recipe, hub: HubStub, tmp_path: Path) -> None:
    push_cache(scored.cache, URL)
    assert targets(with_cache(scored, URL)) == targets(scored)
    before = dict(hub.repos["org/refs"])
    more = write_pairs(tmp_path / "more.jsonl", plain_pairs(14))
    with pytest.raises(UserError, match="cannot be written to"):
        score_references(with_cache(scored, URL, pairs={"train": str(more)}))
    assert hub.repos["org/refs"] == before


def test_an_upload_that_is_refused_shows_nothing_and_is_resumed(scored: Recipe, hub: HubStub) -> None:
    hub.fail_after = 3
    with pytest.raises(StoreError, match="hf://datasets/org/refs"):
        push_cache(scored.cache, URL)
    assert not hub.repos["org/refs"] and hub.uploads == 3
    hub.fail_after = None
    done = push_cache(scored.cache, URL)
    shards = sum(one.files for one in done)
    assert hub.uploads == shards  # files already on the hub are not sent again
    assert len(hub.commits) == 1 and sum(name.endswith(".parquet") for name in hub.repos["org/refs"]) == shards
    assert sum(one.files for one in push_cache(scored.cache, URL)) == 0


def test_the_card_tells_what_is_there_and_names_no_path(scored: Recipe, hub: HubStub) -> None:
    push_cache(scored.cache, URL, recipe=scored)
    card = hub.repos["org/refs"]["README.md"].decode()
    assert card.startswith("---\n") and re.search(r"\| base \| base-model \| +\| apache-2.0 \| 24 \|", card)
    assert "token ids are the text" in card and f"cache: {URL}" in card and "pairs.jsonl" in card
    assert str(Path(scored.cache).parent) not in card
    fingerprint = ReferenceCache.open(scored.cache, "base").fingerprint()
    assert all(value in card for value in fingerprint.values())
    header = card.split("---")[1]
    assert "base/shards/*.parquet" in header


def test_a_flipped_byte_on_the_way_is_refused(scored: Recipe, hub: HubStub, tmp_path: Path) -> None:
    push_cache(scored.cache, URL)
    files = hub.repos["org/refs"]
    for name in [name for name in files if name.startswith("base/")]:
        data = files[name]
        files[name] = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        with pytest.raises(UserError, match=r"is damaged|is not a readable manifest|was changed since"):
            pull_cache(URL, str(tmp_path / name.replace("/", "-")))
        files[name] = data


def test_only_what_the_recipe_needs_is_pulled(scored: Recipe, tmp_path: Path) -> None:
    push_cache(scored.cache, str(tmp_path / "there"))
    few = write_pairs(tmp_path / "few.jsonl", plain_pairs(1))
    recipe = with_cache(scored, str(tmp_path / "here"), pairs={"train": str(few)})
    pull_cache(str(tmp_path / "there"), recipe.cache, recipe=recipe)
    there, here = (list((tmp_path / one / "base" / "shards").iterdir()) for one in ("there", "here"))
    assert 1 <= len(here) <= 2 < len(there)
    assert len(targets(recipe)) == 2


def test_another_reference_than_the_recipe_s_is_refused(scored: Recipe, tmp_path: Path) -> None:
    push_cache(scored.cache, str(tmp_path / "there"))
    wrong = scored.model_dump(mode="json")
    wrong["references"]["base"], wrong["references"]["other"] = (
        wrong["references"]["other"],
        wrong["references"]["base"],
    )
    with pytest.raises(UserError, match="was not computed by the reference that this run names"):
        pull_cache(str(tmp_path / "there"), str(tmp_path / "here"), recipe=parse_recipe(wrong))
    assert not (tmp_path / "here").exists()


def test_without_ids_it_trains_the_same_and_verify_reports_what_it_cannot_check(scored: Recipe, tmp_path: Path) -> None:
    push_cache(scored.cache, str(tmp_path / "there"), without_ids=True)
    recipe = with_cache(scored, str(tmp_path / "there"))
    assert targets(recipe) == targets(scored)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    done = mrpo("cache", "verify", "recipe.yaml", "--check", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "token ids were withheld" in done.stderr and "they agree" in done.stdout
    refused = mrpo("audit", "recipe.yaml", cwd=tmp_path)
    assert refused.returncode == 2 and "without its token ids" in refused.stderr


def test_a_killed_copy_is_resumed(scored: Recipe, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mrpo_cli.main", "cache", "push", scored.cache, str(tmp_path / "there")]
    for wait in (0.6, 0.9, 1.2):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        running.kill()
        running.wait()
    done = mrpo("cache", "push", scored.cache, tmp_path / "there", cwd=tmp_path)
    assert done.returncode == 0 and "Next: mrpo cache pull" in done.stderr
    assert targets(with_cache(scored, str(tmp_path / "there"))) == targets(scored)
    assert not [path for path in (tmp_path / "there").rglob("*") if path.name.endswith(".partial")]


def test_caches_of_two_machines_become_one(scored: Recipe, tmp_path: Path) -> None:
    shutil.copytree(Path(scored.cache) / "base", tmp_path / "half" / "base")
    shards = sorted((tmp_path / "half" / "base" / "shards").iterdir())
    shutil.copytree(tmp_path / "half", tmp_path / "rest")
    for shard in shards[:2]:
        shard.unlink()
    for shard in shards[2:]:
        (tmp_path / "rest" / "base" / "shards" / shard.name).unlink()
    [done] = merge_caches(str(tmp_path / "rest"), str(tmp_path / "half"))
    assert done.files == 2
    ours, theirs = (ReferenceCache.open(root, "base").stats() for root in (tmp_path / "half", scored.cache))
    assert ours == theirs
    with pytest.raises(UserError, match="holds no cached reference"):
        merge_caches(str(tmp_path / "half"), str(tmp_path / "nothing"))


def test_a_readme_of_something_else_is_not_overwritten(scored: Recipe, tmp_path: Path, hub: HubStub) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("# Mine\n")
    hub.repos["org/refs"] = {"README.md": b"# Mine\n"}
    for target in (str(tmp_path / "project"), URL):
        with pytest.raises(UserError, match="would be overwritten"):
            push_cache(scored.cache, target)
    assert (tmp_path / "project" / "README.md").read_text() == "# Mine\n"
    assert not (tmp_path / "project" / "base").exists() and not hub.commits


def test_one_reference_after_the_other_makes_one_card(scored: Recipe, hub: HubStub, tmp_path: Path) -> None:
    for target in (URL, str(tmp_path / "there")):
        push_cache(f"{scored.cache}/base", target)
        push_cache(f"{scored.cache}/other", target)
    for card in (hub.repos["org/refs"]["README.md"].decode(), (tmp_path / "there" / "README.md").read_text()):
        assert (
            "config_name: base" in card and "config_name: other" in card and re.search(r"\| other \|.*\| 24 \|", card)
        )
    assert len(hub.commits) == 2


def test_the_hub_s_files_are_not_removed_in_place(scored: Recipe, hub: HubStub) -> None:
    push_cache(scored.cache, URL)
    before = dict(hub.repos["org/refs"])
    for change in (ReferenceCache.open(URL, "base").remove, ReferenceCache.open(URL, "base").compact):
        with pytest.raises(StoreError, match="is read in place"):
            change()
    assert hub.repos["org/refs"] == before


def test_a_cache_is_merged_into_a_cache_and_not_into_a_reference(scored: Recipe, tmp_path: Path) -> None:
    push_cache(scored.cache, str(tmp_path / "there"))
    with pytest.raises(UserError, match="holds no cached reference: expected the folder or URL of a cache"):
        merge_caches(scored.cache, str(tmp_path / "there" / "base"))
    assert not (tmp_path / "there" / "base" / "base").exists()
