"""`mrpo render` shows what each model reads of a row, in a real process."""

import json
from pathlib import Path

import pytest
from mrpo_command import mrpo
from tiny_references import pair, reference, write_pairs

from mrpo_pipeline.dataset.rendered_row import show_row
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import load_recipe
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.rendering.token_view import token_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("render")
    rows = [pair("hi", "fine", "bad"), pair("one\ntwo", "\x1b[31mred 🎉 日本語 " + "long " * 40, "no")]
    write_pairs(path / "pairs.jsonl", rows)
    models = {
        name: str(reference(path / name, "llama", kind)) for name, kind in (("base", "qwen"), ("other", "llama2"))
    }
    recipe = {
        "pairs": {"train": str(path / "pairs.jsonl")},
        "policy": {"model": models["base"]},
        "references": {name: {"model": model} for name, model in models.items()},
        "limits": {"max_length": 60},
    }
    (path / "r.yaml").write_text(json.dumps(recipe))
    return path


def test_every_token_is_shown_with_what_is_scored(folder: Path) -> None:
    lines = list(show_row(load_recipe(folder / "r.yaml"), 1, ["other"], width=60))
    text = "".join(
        line.strip() for line in lines[lines.index("  chosen, scored") if "  chosen, scored" in lines else 0 :]
    )
    assert "\x1b" not in text and "\\x1b" in text
    names = [line.split(" ")[0] for line in lines]
    assert "other" in names and "policy" not in names and "base" not in names
    assert any("truncated by limits, not scored" in line for line in lines)
    shown = "".join(line[4:] for line in lines if line.startswith("    "))
    renderer = Renderer.from_pretrained(str(folder / "other"))
    items = [(json.dumps([{"role": "user", "content": "one\ntwo"}]), "no")]
    [one] = renderer.render(items)
    for ids in (one.prompt_ids, one.completion_ids):
        assert "│".join(token_text(token) for token in renderer.token_bytes(ids.tolist())) in shown
    assert all(len(line) <= 60 for line in lines if line.isascii() or "日" not in line)


def test_colours_are_optional_and_ids_on_request(folder: Path) -> None:
    recipe = load_recipe(folder / "r.yaml")
    assert any(line.startswith("    \x1b[32m") for line in show_row(recipe, 0, color=True))
    lines = list(show_row(recipe, 0, ["policy"], ids=True))
    assert any(line.endswith("ends at byte 4") for line in lines)


def test_the_command(folder: Path) -> None:
    found = mrpo("render", "r.yaml", "--reference", "base", cwd=folder)
    assert found.returncode == 0, found.stderr
    assert "base (" in found.stdout and "other (" not in found.stdout
    assert "first conversations compared with the model's own tokenizer and template" in found.stdout


@pytest.mark.parametrize(("row", "names", "message"), [(9, [], "--row is 9"), (0, ["nobody"], "base, other")])
def test_a_row_or_a_reference_that_is_not_there(folder: Path, row: int, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(show_row(load_recipe(folder / "r.yaml"), row, names))
