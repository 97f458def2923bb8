"""A model's identity from before: the same as its renderer's, and never that of other files, templates or code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_references import reference

from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.rendering import Renderer, renderer, renderer_cache
from mrpo_pipeline.rendering.identity_cache import ModelReading

JINJA = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    return reference(tmp_path / "base", "llama", "qwen")


def read(model: Path, **settings: Any) -> ModelReading:
    return ModelReading(ModelSource(model=str(model), **settings).named("base"))


def loaded(reading: ModelReading) -> bool:
    return "renderer" in vars(reading)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


def test_a_second_reading_loads_nothing_and_says_the_same(model: Path) -> None:
    first, second = read(model), read(model)
    assert loaded(first) and not loaded(second)
    assert second.identity() == first.identity() == Renderer.of(second.source).identity()
    assert second.reading == first.reading
    assert second.renderer.identity() == first.identity()


def test_a_model_without_a_template_reports_it_again(model: Path) -> None:
    first, second = read(model, template="plain"), read(model, template="plain")
    assert not loaded(second) and first.reading == second.reading == [
        "conversations are rendered by the plain template"
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "chat_template.jinja").write_text(JINJA),
        lambda model: edit(model / "tokenizer_config.json", bos_token="<|im_start|>"),
        lambda model: edit(model / "generation_config.json", eos_token_id=3),
        lambda model: edit(model / "config.json", eos_token_id=3),
        lambda model: edit(model / "tokenizer.json", normalizer={"type": "Lowercase"}),
    ],
    ids=["template", "special token", "stop of generation", "stop", "normalizer"],
)
def test_changed_files_are_read_again(model: Path, change: Callable[[Path], object]) -> None:
    read(model)
    change(model)
    again = read(model)
    assert loaded(again) and again.identity() == Renderer.of(again.source).identity()


def test_settings_are_part_of_the_key(model: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(JINJA)
    read(model)
    for settings in ({"template": "plain"}, {"template": str(tmp_path / "own.jinja")}, {"template_kwargs": {"a": 1}}):
        assert loaded(read(model, **settings)) and not loaded(read(model, **settings))
    (tmp_path / "own.jinja").write_text(JINJA.replace(": ", "\n"))
    assert loaded(read(model, template=str(tmp_path / "own.jinja")))


def test_other_code_and_libraries_do_not_share(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(model)
    monkeypatch.setattr(renderer_cache, "_code", lambda: ["of another version"])
    assert loaded(read(model))


def test_a_model_with_code_and_an_unpinned_hub_name_are_never_kept(model: Path, tmp_path: Path) -> None:
    for source in (
        ModelSource(model=str(model), trust_remote_code=True),
        ModelSource(model="org/name", revision="main"),
    ):
        assert renderer_cache.key_of(source) is None


def test_a_damaged_entry_is_made_again(model: Path, tmp_path: Path) -> None:
    first = read(model)
    [entry] = (tmp_path / "home" / "readings").iterdir()
    entry.write_text(entry.read_text().replace("<|im_end|>", "<|im_beg|>"))
    assert loaded(read(model)) and read(model).identity() == first.identity()


def test_what_was_not_used_for_a_month_is_removed(model: Path, tmp_path: Path) -> None:
    read(model)
    read(model, template="plain")
    used, unused = sorted((tmp_path / "home" / "readings").iterdir(), key=lambda path: "plain:" in path.read_text())
    for path in (used, unused):
        os.utime(path, (0, 0))
    assert not loaded(read(model))
    read(model, template_kwargs={"a": 1})
    left = set((tmp_path / "home" / "readings").iterdir())
    assert used in left and unused not in left and len(left) == 2


def test_files_that_change_meanwhile_are_not_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = renderer.load_tokenizer

    def slow(*arguments: Any, **settings: Any) -> Any:
        (model / "chat_template.jinja").write_text(JINJA)
        return load(*arguments, **settings)

    monkeypatch.setattr(renderer, "load_tokenizer", slow)
    read(model)
    assert not (tmp_path / "home" / "readings").exists()
