"""The `mrpo audit` command."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mrpo_cli.commands import app
from tiny_references import plain_pairs, reference, write_pairs
from typer.testing import CliRunner, Result

from mrpo_pipeline.audit import audit_recipe
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.recipe import load_recipe
from mrpo_pipeline.scoring import score_references


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("model") / "tiny", "llama", "qwen")


def recipe(folder: Path, model: Path, *names: str, pairs: int = 30, **more: Any) -> Path:
    """A recipe whose references, all the same model, are scored."""
    write_pairs(folder / "pairs.jsonl", plain_pairs(pairs))
    path = folder / "recipe.yaml"
    document = {
        "pairs": {"train": str(folder / "pairs.jsonl"), **more},
        "policy": {"model": str(model)},
        "references": {name: {"model": str(model)} for name in names},
        "cache": str(folder / "cache"),
        "limits": {"max_length": 200},
        "scoring": {"engine": "transformers"},
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    score_references(load_recipe(path, {}))
    return path


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Two references of one model, scored once for several tests."""
    return recipe(tmp_path_factory.mktemp("twins"), model, "base", "twin")


def run(*arguments: str | Path) -> Result:
    log = logging.getLogger("mrpo")
    before = log.level, log.propagate, list(log.handlers)
    try:
        return CliRunner().invoke(app, ["audit", *map(str, arguments)])
    finally:
        log.setLevel(before[0])
        log.propagate, log.handlers = before[1], before[2]


def test_one_reference_and_one_pair(tmp_path: Path, model: Path) -> None:
    path = recipe(tmp_path, model, "base", pairs=1)
    ended = run(path)
    assert ended.exit_code == 0, ended.output
    assert "1 pairs read = 1 used" in ended.stdout and "too few" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 100
    found = json.loads(run(path, "--json").stdout)
    assert found["references"]["base"]["accuracy"]["share"] in (0.0, 1.0)
    assert found["agreement"] == [] and found["mrpo"]["effective_k"] == 1.0


def test_the_pairs_are_reported_once(tmp_path: Path, model: Path) -> None:
    path = recipe(tmp_path, model, "base", pairs=3)
    ended = run(path)
    assert ended.output.count("pairs read") == 1 and "train: 3 pairs read = 3 used" in ended.stdout


def test_no_line_is_wider_than_the_terminal_and_none_loses_a_figure(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, model, "base", "another-model-of-a-long-name", "a-third-one-of-a-long-name", "d")
    monkeypatch.setenv("COLUMNS", "80")
    assert 60 < max(map(len, run(path).stdout.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "300")
    assert 80 < max(map(len, run(path).stdout.splitlines())) <= 100
    found = audit_recipe(load_recipe(path, {}))
    figures = re.findall(r"[+-]?\d+\.\d+%?", found.table(1000))
    assert len(figures) > 100
    for width in (80, 60, 40):
        table = found.table(width)
        tables = [line for line in table.splitlines() if not line.startswith(("BROKEN", "SUSPECT", "  "))]
        assert max(map(len, tables)) <= width
        assert sorted(re.findall(r"[+-]?\d+\.\d+%?", table)) == sorted(figures)


def test_the_length_correlation_is_in_the_table(twins: Path) -> None:
    found = audit_recipe(load_recipe(twins, {}))
    figure = found.references["base"]["delta"]["length_correlation"]
    lines = found.table(200).splitlines()
    head = next(at for at, line in enumerate(lines) if "Δ by" in line)
    assert f" {figure:+.2f} " in lines[head + 2] and lines[head + 2].startswith("base")
    assert any(line.startswith("Δ by length: rank correlation") for line in lines)


def test_a_copy_is_named_and_fails_only_when_strict(twins: Path) -> None:
    ended = run(twins)
    assert ended.exit_code == 0
    assert re.search(r"BROKEN twin \(copy\)", ended.stdout)
    strict = run(twins, "--strict")
    assert isinstance(strict.exception, RunError) and "twin" in str(strict.exception)
    assert "BROKEN twin" in strict.stdout


def test_the_json_has_the_documented_keys(twins: Path) -> None:
    fractions = ("--eval-fraction", "0.2", "--set", "pairs.weights_fraction=0.3")
    found = json.loads(
        run(twins, "--json", *fractions).stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert found["version"] == 2 and found["split"] == "train"
    assert set(found["pairs"]) == {"train", "eval", "weights"}
    assert sum(counts["read"] for counts in found["pairs"].values()) == 30
    one = found["references"]["base"]
    assert set(one["nats_per_byte"]) == {"chosen", "rejected"} == set(one["nats_per_token"])
    assert one["accuracy"]["low"] <= one["accuracy"]["share"] <= one["accuracy"]["high"]
    assert {"argmin_share", "clip_rate", "sign_flips", "by_length", "stats", "tokenization", "assessment"} <= set(one)
    assert found["agreement"][0]["references"] == ["base", "twin"] and found["agreement"][0]["same_ranking"] == 1.0
    assert set(found["weightings"]["weights"]) >= {
        "uniform",
        "adaptive",
        "validation-discrimination",
        "validation-accuracy",
    }
    assert found["weightings"]["held_out_pairs"] == found["pairs"]["weights"]["used"]
    assert found["mrpo"]["effective_k"] == pytest.approx(2.0)
    (finding,) = [one for one in found["findings"] if one["reference"] == "twin"]
    assert set(finding) == {"reference", "fault", "sentence", "severity"} and finding["fault"] == "copy"


def test_no_model_is_loaded(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path, model, "base")
    (model / "model.safetensors").rename(tmp_path / "weights")
    try:
        from mrpo_pipeline.dataset.reference_logps import open_caches
        from mrpo_pipeline.models import loading

        monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
        monkeypatch.setattr("mrpo_pipeline.audit.run.open_caches", lambda given: [_unchecked(given, open_caches)])
        assert run(path).exit_code == 0
    finally:
        (tmp_path / "weights").rename(model / "model.safetensors")


def _unchecked(given: Any, _: Any) -> Any:
    """The cache without the check against the recipe."""
    from mrpo_pipeline.cache import ReferenceCache

    return ReferenceCache.open(given.cache, "base")


def test_completions_that_are_not_scored_are_named(tmp_path: Path, model: Path) -> None:
    path = recipe(tmp_path, model, "base", pairs=3)
    write_pairs(tmp_path / "pairs.jsonl", plain_pairs(9))
    ended = run(path)
    assert isinstance(ended.exception, UserError) and "score-refs" in str(ended.exception)
