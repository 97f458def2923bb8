"""Tokenizer and template of a model with an adapter, and notices about them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering import Renderer

OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
BROUGHT = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}<|im_end|>{% endfor %}"


def save(folder: Path, template: str | None, kind: str = "qwen", added: tuple[str, ...] = ()) -> Path:
    tokenizer = copy.deepcopy(tiny_tokenizers.KINDS[kind]())  # others share it
    tokenizer.chat_template = template
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    return folder


def read(model: Path, adapter: Path | None = None, **more: Any) -> Renderer:
    return Renderer.from_pretrained(str(model), adapter=adapter and str(adapter), name="it", **more)


@pytest.mark.parametrize("own", [None, OWN])
@pytest.mark.parametrize("files", ["all", "chat_template.jinja", "tokenizer_config.json"])
def test_an_adapters_template_is_used_and_reported(tmp_path: Path, own: str | None, files: str) -> None:
    model, adapter = save(tmp_path / "model", own), save(tmp_path / "adapter", BROUGHT)
    if files != "all":
        for path in adapter.iterdir():
            path.unlink()
        if files == "chat_template.jinja":
            (adapter / files).write_text(BROUGHT)
        else:
            (adapter / files).write_text(json.dumps({"chat_template": BROUGHT, "eos_token": "<|im_end|>"}))
    renderer = read(model, adapter)
    assert renderer.identity() == read(save(tmp_path / "expected", BROUGHT)).identity()
    assert len(renderer.reading) == 1
    assert "its chat template is from the adapter" in renderer.reading[0]


def test_an_adapter_with_the_models_own_files_changes_nothing(tmp_path: Path) -> None:
    model = save(tmp_path / "model", OWN)
    for template in (OWN, None):
        renderer = read(model, save(tmp_path / f"adapter{template is None}", template))
        assert renderer.identity() == read(model).identity()
        assert renderer.reading == []
    assert read(model, tmp_path).identity() == read(model).identity()


def test_the_configured_tokenizer_overrides_the_adapter(tmp_path: Path) -> None:
    model, adapter = save(tmp_path / "model", OWN), save(tmp_path / "adapter", BROUGHT)
    assert read(model, adapter, tokenizer=str(model)).identity() == read(model).identity()
    assert read(model, adapter, template="plain").identity() == read(model, template="plain").identity()


def test_added_tokens_are_used_and_changed_ids_are_errors(tmp_path: Path) -> None:
    model = save(tmp_path / "model", OWN)
    renderer = read(model, save(tmp_path / "more", OWN, added=("<tool>",)))
    assert "with 1 more tokens than the model's" in renderer.reading[0]
    assert renderer.identity()["tokenizer"] != read(model).identity()["tokenizer"]
    with pytest.raises(UserError, match=r"assigns other ids to [\d,]+ tokens of the model.*`tokenizer:`"):
        read(model, save(tmp_path / "other", OWN, kind="llama3"))


def test_contradictory_settings_are_errors_unless_the_tokenizer_is_set(tmp_path: Path) -> None:
    model, adapter = save(tmp_path / "model", OWN), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|other|>"}))
    with pytest.raises(UserError, match=r"its eos_token '<\|other\|>' differs.*`tokenizer:`"):
        read(model, adapter)
    read(model, adapter, tokenizer=str(model))


@pytest.mark.parametrize("settings", [False, True])
def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path, settings: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if settings:
        (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"The folder .* of it has no tokenizer; .*Copy tokenizer\.json"):
        read(tmp_path)
    with pytest.raises(UserError, match="adapter: nowhere/at/all of it is not there"):
        read(save(tmp_path / "model", OWN), Path("nowhere/at/all"))


def test_the_plain_template_is_always_reported(tmp_path: Path) -> None:
    line = "conversations are rendered by the plain template"
    assert read(save(tmp_path / "model", None)).reading == [f"{line}, because its tokenizer has no chat template"]
    assert read(tmp_path / "model", template="plain").reading == [line]
