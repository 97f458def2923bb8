"""The model card: a header that the hub accepts, and ten metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mrpo_pipeline.pairs.sources import hub_dataset
from mrpo_pipeline.policy.model_card import model_card

REFERENCES = [
    {"name": "base", "model": "org/base", "revision": None},
    {"name": 'o"x: [1]', "model": "a|b", "revision": "main"},
]


def card(**parts: Any) -> ModelCard:
    return ModelCard(
        model_card({"references": REFERENCES, **parts}, base_model="org/base", metrics={"train_loss": 0.5})
    )


def test_base_model_data_sets_and_references_are_data_in_the_header() -> None:
    data = card(datasets=["org/pairs"]).data.to_dict()
    assert (data["base_model"], data["datasets"], data["library_name"]) == ("org/base", ["org/pairs"], "peft")
    assert data["references"] == [
        {"name": "base", "model": "org/base"},
        {"name": 'o"x: [1]', "model": "a|b", "revision": "main"},
    ]
    assert "datasets" not in card().data.to_dict()
    assert "a\\|b" in card().text


def test_a_folder_is_no_base_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for folder in ("org/base", str(tmp_path), "runs/demo/models/base"):
        written = ModelCard(model_card({}, base_model=folder, metrics={}))
        assert "base_model" not in written.data.to_dict() and f"`{folder}`" in written.text


def test_ten_figures_are_shown_those_of_held_out_pairs_first() -> None:
    names = (
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        "accuracy/policy",
        "accuracy/anchor",
        "runtime",
        "logps/chosen",
    )
    metrics = {f"eval_{name}": 0.1 for name in names} | {f"refs/{name}/weight": 0.5 for name in "abcdefgh"}
    metrics |= {"train_loss": 0.5, "epoch": 3.0, "num_tokens": 1234, "train_runtime": 9.0, "refs/effective_k": 1.5}
    text = model_card({}, base_model="org/base", metrics=metrics)
    shown = re.findall(r"^\| (\S+) \| [\d.,]+ \|$", text, re.MULTILINE)
    assert len(shown) == 10 and shown[0] == "eval_accuracy/policy" and "train_loss" in shown
    assert not any("/weight" in name for name in shown)


def test_text_of_others_is_no_template() -> None:
    text = model_card({"method": "{{ 7 * 7 }} {% raw %}", "recipe": "a: '{{ b }}'"}, base_model="org/base", metrics={})
    assert "{{ 7 * 7 }} {% raw %}" in text and "a: '{{ b }}'" in text


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/pairs", "org/pairs"),
        ("org/pairs@main", "org/pairs"),
        ("hf://datasets/org/pairs/data/train.parquet", "org/pairs"),
        ("data/train.jsonl", None),
        ("here/pairs", None),
        ("s3://bucket/pairs.parquet", None),
        ("data/*.parquet", None),
    ],
)
def test_a_data_set_of_the_hub_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: str | None
) -> None:
    (tmp_path / "here" / "pairs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hub = hub_dataset(name)
    assert (hub and hub.repository) == found
