"""Workers in a small Ray: their failures are reported as they are, and nothing waits for a worker without resources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from many_workers import assert_serves_the_same
from test_scoring import cached_rows, recipe
from tiny_references import hard_pairs, plain_pairs, reference, write_pairs

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.pairs import completion_id, dump_prompt
from mrpo_pipeline.scoring import score_references
from mrpo_pipeline.scoring.ray import scheduler

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

BY_WORKERS = {"engine": "transformers", "runtime": "ray", "unit": 8, "threads": 1}


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Ray with room for one worker; scoring uses the program's existing connection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        assert ray.is_initialized(), "scoring ended a Ray that it did not start"
        ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("models") / "base", "llama", "qwen")


def test_a_worker_without_resources_is_not_waited_for_and_references_take_turns(tmp_path: Path, model: Path) -> None:
    ranked = {
        "prompt": [{"role": "user", "content": "Which of seven?"}],
        "completions": [f"Number {i}, " + "well, " * i for i in range(7)],
        "ranks": list(range(7)),
    }
    pairs = write_pairs(tmp_path / "pairs.jsonl", [*hard_pairs(), ranked])
    other = reference(tmp_path / "other", "gpt_neox", "gpt2", max_position_embeddings=48)
    both = {"base": model, "other": other}
    alone = recipe(tmp_path, both, pairs, cache=str(tmp_path / "alone"))
    expected = score_references(alone)
    by_two = recipe(tmp_path, both, pairs, scoring={**BY_WORKERS, "workers": 2})
    reports = score_references(by_two)
    counted = ("name", "wanted", "scored", "unfit", "tokens", "control_strings")
    for report, other_report in zip(reports, expected, strict=True):
        assert [getattr(report, name) for name in counted] == [getattr(other_report, name) for name in counted]
        assert (report.workers, report.deaths) == (1, 0)
        found = cached_rows(tmp_path / "cache", report.name)
        assert_serves_the_same(found, cached_rows(tmp_path / "alone", report.name))
    # Nine pairs of two sides (one side is in several pairs), and seven completions of one prompt for its 21 pairs.
    sides = {(str(row["prompt"]), row[side][0]["content"]) for row in hard_pairs() for side in ("chosen", "rejected")}
    assert reports[0].scored == len(sides) + 7
    assert reports[1].unfit > 0, "the short context was to be too short for something"
    assert [(again.scored, again.workers) for again in score_references(by_two)] == [(0, 0), (0, 0)]


def test_a_worker_reports_a_wrong_setting_like_one_process(tmp_path: Path, model: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", plain_pairs(3))
    told = []
    for scoring in ({"engine": "transformers", "max_batch_tokens": -1}, {**BY_WORKERS, "max_batch_tokens": -1}):
        with pytest.raises(UserError, match="max_batch_tokens") as caught:
            score_references(recipe(tmp_path, {"base": model}, pairs, scoring=scoring))
        told.append((type(caught.value), str(caught.value)))
    assert told[0] == told[1]


def test_a_failed_engine_ends_the_run_with_its_own_message(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = reference(tmp_path / "broken", "llama", "qwen")
    weights = load_file(broken / "model.safetensors")
    # Finite, but too large to compute with.
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    pairs = write_pairs(tmp_path / "pairs.jsonl", plain_pairs(3))
    with pytest.raises(RunError, match="are not finite"):
        score_references(recipe(tmp_path, {"base": broken}, pairs, scoring=BY_WORKERS))


MODELLING = """
import os
from pathlib import Path
from transformers import LlamaForCausalLM
from mrpo_pipeline.errors import ProcessDiedError


class Deadly(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        {at_start}
        self.model.register_forward_pre_hook(self.die, with_kwargs=True)

    @staticmethod
    def die(module, args, kwargs):
        if kwargs.get("input_ids", args[0] if args else None).shape[1] > 200:
            {how}
"""


def deadly(folder: Path, how: str, at_start: str = "") -> tuple[Any, str]:
    """A recipe whose model dies in this way on one long completion, or at its start; and that completion's id."""
    path = reference(folder / "deadly", "llama", "qwen")
    (path / "modeling_deadly.py").write_text(MODELLING.format(how=how, at_start=at_start))
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_deadly.Deadly"}
    (path / "config.json").write_text(json.dumps(config))
    rows = plain_pairs(12)
    rows[5]["chosen"][0]["content"] = "fatal " * 80
    pairs = write_pairs(folder / "pairs.jsonl", rows)
    made = recipe(folder, {"base": path}, pairs, scoring=BY_WORKERS)
    made.references["base"].trust_remote_code = True
    return made, completion_id(dump_prompt(rows[5]["prompt"]), rows[5]["chosen"][0]["content"])


def test_units_cover_every_row_once() -> None:
    frame = pl.DataFrame({"completion_id": list("abcdefg")})
    units = list(scheduler.units_of(frame, 3, deaths=1))
    assert [unit.frame["completion_id"].to_list() for unit in units] == [list("abc"), list("def"), ["g"]]
    assert {unit.deaths for unit in units} == {1} and not list(scheduler.units_of(frame.clear(), 3))


def test_a_completion_that_kills_every_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PATIENCE", 2)
    made, identifier = deadly(tmp_path, "os.kill(os.getpid(), 9)")
    with pytest.raises(RunError, match=f"2 workers died of the same .*{identifier}"):
        score_references(made)


def test_workers_that_die_before_they_can_score_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PATIENCE", 1)
    made, _ = deadly(tmp_path, "pass", at_start="os.kill(os.getpid(), 9)")
    with pytest.raises(RunError, match="1 workers died one after another before they could score"):
        score_references(made)


def test_an_engine_whose_process_dies_once_is_started_again(tmp_path: Path) -> None:
    once = tmp_path / "died"
    made, _ = deadly(
        tmp_path, f"if not Path({str(once)!r}).exists(): Path({str(once)!r}).touch(); raise ProcessDiedError('gone')"
    )
    (report,) = score_references(made)
    assert once.exists()
    assert (report.scored, report.deaths) == (24, 1)
    assert len(cached_rows(tmp_path / "cache", "base")) == 24


def test_a_folder_that_is_not_shared_is_refused(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "SEEN_WITHIN", 0.0)
    monkeypatch.setattr(scheduler, "manifest_digest", lambda cache: "what lies in a folder of the same name here")
    pairs = write_pairs(tmp_path / "pairs.jsonl", plain_pairs(3))
    with pytest.raises(UserError, match="not the one on this machine"):
        score_references(recipe(tmp_path, {"base": model}, pairs, scoring=BY_WORKERS))
