"""`mrpo targets --for trl` to a folder, a store and the hub: `datasets` loads it, TRL trains on it with our numbers, a killed one resumes.

The hub is the stub of upload_hub.py.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from huggingface_hub import DatasetCard
from loopback_s3 import LoopbackS3
from mrpo_command import mrpo
from tiny_recipes import run_of
from tiny_references import reference
from upload_hub import HubStub

from mrpo_pipeline.cache import StoreError
from mrpo_pipeline.dataset.pair_targets import pair_targets
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports import publish_targets
from mrpo_pipeline.exports.targets_file import cached_split
from mrpo_pipeline.recipe import Recipe, parse_recipe

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

URL = "hf://datasets/org/targets"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("targets")
    base = reference(folder / "base-model", "llama", "qwen")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    other = reference(folder / "other-model", "gpt_neox", "llama2", seed=1)
    pairs = {"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.25}
    return run_of(folder, {"base": base, "other": other}, pairs=pairs)


@pytest.fixture(autouse=True)
def _read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "read")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the stub and the store are on loopback


def with_method(recipe: Recipe, **keys: Any) -> Recipe:
    document = recipe.model_dump(mode="json")
    document["method"] |= keys
    return parse_recipe(document)


def assert_is_ours(data: Any, recipe: Recipe) -> None:
    """Ids and log π̃ of both splits, bit by bit and in the order of the pairs."""
    assert set(data) == {"train", "eval"}
    for split, rows in data.items():
        pairs = cached_split(recipe, split)
        targets = pair_targets(pairs, recipe.method)
        for column in ("pair_id", "prompt_ids", "chosen_ids", "rejected_ids"):
            assert list(rows[column]) == pairs.frame[column].to_list()
        np.testing.assert_array_equal(rows["ref_chosen_logps"], targets.target_chosen)
        np.testing.assert_array_equal(rows["ref_rejected_logps"], targets.target_rejected)


def test_a_folder_loads_and_trains_one_step_of_trl_as_the_card_says(scored: Recipe, tmp_path: Path) -> None:
    done = publish_targets(scored, "trl", str(tmp_path / "there"), rows_per_file=4)
    assert done.written == len(list((tmp_path / "there").glob("*/*.parquet"))) > 2
    assert_is_ours(datasets.load_dataset(str(tmp_path / "there")), scored)
    card = (tmp_path / "there" / "README.md").read_text()
    (code,) = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    code = code.replace("path/to/this/folder", str(tmp_path / "there")).replace(
        '"out",',
        f'{str(tmp_path / "out")!r}, use_cpu=True, bf16=False, max_steps=1, logging_steps=1, report_to="none",',
    )
    code = code.replace('"base-model"', repr(scored.required_policy().model))
    space: dict[str, Any] = {}
    exec(code, space)
    batch = space["trainer"].data_collator([space["data"]["train"][number] for number in range(3)])
    pairs = cached_split(scored, "train")
    targets = pair_targets(pairs, scored.method)
    np.testing.assert_allclose(batch["ref_chosen_logps"].numpy(), targets.target_chosen[:3], rtol=1e-6)
    ids = [[*pairs.frame["prompt_ids"][n], *pairs.frame["chosen_ids"][n]] for n in range(3)]
    assert [
        row[mask == 1].tolist() for row, mask in zip(batch["input_ids"][:3], batch["attention_mask"], strict=False)
    ] == ids
    assert space["trainer"].state.global_step == 1
    assert any("loss" in entry for entry in space["trainer"].state.log_history)


def test_a_store_loads_and_resumes_where_the_line_was_cut(scored: Recipe, s3: LoopbackS3, bucket: str) -> None:
    url = f"{bucket}/some/targets"
    s3.line.cut_after = 12_000
    with pytest.raises(StoreError, match="cannot be reached"):
        publish_targets(scored, "trl", url, rows_per_file=1)
    s3.line.restore()
    there = set(s3.keys(url))
    assert there and "README.md" not in there
    done = publish_targets(scored, "trl", url, rows_per_file=1)
    assert done.present == len(there) and done.written > 0
    files = {name: [f"{url}/{file}" for file in split.files] for name, split in done.splits.items()}
    card = s3.get(url, "README.md").decode()
    assert all(one in card for split in files.values() for one in split)
    options = {"endpoint_url": s3.environment["AWS_ENDPOINT_URL"], "key": "owner", "secret": "not-a-secret"}
    assert_is_ours(datasets.load_dataset("parquet", data_files=files, storage_options=options), scored)


def test_the_hub_gets_one_commit_that_loads(
    scored: Recipe, hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail_after = 2
    with pytest.raises(StoreError, match="hf://datasets/org/targets"):
        publish_targets(scored, "trl", URL, rows_per_file=4)
    assert not hub.repos["org/targets"] and hub.uploads == 2
    hub.fail_after = None
    done = publish_targets(scored, "trl", URL, rows_per_file=4)
    assert len(hub.commits) == 1 and hub.uploads == done.written  # files already on the hub are not sent again
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    assert_is_ours(datasets.load_dataset("org/targets", cache_dir=str(tmp_path / "read")), scored)
    assert 'load_dataset("org/targets")' in hub.repos["org/targets"]["README.md"].decode()


def test_what_is_published_again_takes_the_place_of_what_was_there(
    scored: Recipe, hub: HubStub, tmp_path: Path
) -> None:
    for target in (str(tmp_path / "there"), URL):
        publish_targets(scored, "trl", target, rows_per_file=4)
        done = publish_targets(with_method(scored, aggregate="geometric"), "trl", target, splits=["train"])
        assert set(done.splits) == {"train"} and done.present == 0
    left = {path.relative_to(tmp_path / "there").as_posix() for path in (tmp_path / "there").rglob("*.parquet")}
    assert (
        left
        == set(done.splits["train"].files)
        == {name for name in hub.repos["org/targets"] if name.endswith(".parquet")}
    )
    again = publish_targets(with_method(scored, aggregate="geometric"), "trl", URL, splits=["train"])
    assert (again.written, again.present) == (0, 1)


KILLED = """
import json, os, signal, sys
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.exports import publish_targets
from mrpo_pipeline.recipe import parse_recipe

document, target, calls = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
put, done = LocalStorage.put, []

def counted(self, *args, **options):
    done.append(put(self, *args, **options))
    if len(done) == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return done[-1]

LocalStorage.put = counted
publish_targets(parse_recipe(document), "trl", target, rows_per_file=2)
"""


def test_one_that_was_killed_is_finished_by_the_next_and_shows_the_old_until_then(
    scored: Recipe, tmp_path: Path
) -> None:
    place = tmp_path / "there"
    old = with_method(scored, aggregate="geometric")
    publish_targets(old, "trl", str(place))
    command = [sys.executable, "-c", KILLED, json.dumps(scored.model_dump(mode="json")), str(place), "3"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert_is_ours(datasets.load_dataset(str(place)), old)
    done = publish_targets(scored, "trl", str(place), rows_per_file=2)
    assert done.present == 3 and done.written > 0
    assert_is_ours(datasets.load_dataset(str(place)), scored)
    for path in place.glob("*/*.parquet"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem[-64:]


def test_the_card_tells_what_is_there_and_names_no_path(scored: Recipe, tmp_path: Path) -> None:
    publish_targets(scored, "trl", str(tmp_path / "there"))
    text = (tmp_path / "there" / "README.md").read_text()
    header = DatasetCard(text).data.to_dict()
    assert [one["split"] for one in header["configs"][0]["data_files"]] == ["train", "eval"]
    assert "| base (the anchor) | base-model |  | apache-2.0 |" in text and "texts are in it" in text
    assert "aggregate: harmonic" in text and "max_length: 400" in text and "pairs read = " in text
    assert str(tmp_path) not in text and str(Path(scored.cache).parent) not in text


def test_another_readme_is_not_overwritten_and_nothing_is_made(scored: Recipe, tmp_path: Path, hub: HubStub) -> None:
    (tmp_path / "project").mkdir()
    mine = "# About preference-targets\n"
    (tmp_path / "project" / "README.md").write_text(mine)
    hub.repos["org/targets"] = {"README.md": mine.encode()}
    for target in (str(tmp_path / "project"), URL):
        with pytest.raises(UserError, match="would be overwritten"):
            publish_targets(scored, "trl", target)
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["README.md"] and not hub.commits
    assert not any(asked.startswith("POST /api/repos/create") for asked in hub.asked)


def test_without_a_token_it_is_one_paragraph(scored: Recipe, hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens = {"hf_other"}
    with pytest.raises(UserError, match=r"the hub refuses access .* HF_TOKEN or run `hf auth login`") as caught:
        publish_targets(scored, "trl", URL)
    assert "\n" not in str(caught.value) and "hf_test" not in str(caught.value)
    hub.tokens = {"hf_test"}
    publish_targets(scored, "trl", URL, private=True)


def test_the_command_publishes_and_refuses_in_one_paragraph(scored: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(scored.model_dump(mode="json")))
    done = mrpo("targets", "recipe.yaml", "--for", "trl", "--output", "there/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pairs of eval published at there/" in done.stdout and 'loss_type="sigmoid"' in done.stdout
    assert (
        pl.read_parquet(tmp_path / "there" / "train" / "*.parquet").height == cached_split(scored, "train").frame.height
    )
    for options, told in (
        (["--output", "hf://datasets/org/name"], "is for a published data set"),
        (["--for", "trl", "--output", "ftp://host/x"], "--output: ftp://host is not a supported store"),
        (["--for", "trl", "--output", "there/", "--private"], "--private is given"),
        (["--for", "trl", "--output", "x.jsonl"], "expected a .parquet file"),
    ):
        refused = mrpo("targets", "recipe.yaml", *options, cwd=tmp_path)
        assert refused.returncode == 2 and told in refused.stderr and "Traceback" not in refused.stderr
