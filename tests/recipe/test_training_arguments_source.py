"""Keys of `transformers.TrainingArguments` parsed from its source equal those of the imported class."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from mrpo_pipeline.recipe import training_arguments_source as read
from mrpo_pipeline.recipe.training_arguments_source import training_keys

SAMPLES: list[Any] = [None, True, 0, 3, 0.5, "steps", ["a"], [1], {}, {"a": 1}, {"a": True}]


@pytest.fixture(scope="module")
def imported() -> dict[str, read.TrainingKey]:
    return dict(read._imported())


def test_names_choices_defaults_and_help_are_the_same(imported: dict[str, read.TrainingKey]) -> None:
    found = dict(read._read())
    assert found.keys() == imported.keys() and len(found) > 100
    for name, one in found.items():
        other = imported[name]
        assert (one.choices, one.help) == (other.choices, other.help), name
        assert one.default in (other.default, None), name
    assert "output_dir" not in training_keys() and "epoch" in found["eval_strategy"].choices


def test_a_value_is_taken_by_both_or_by_neither(imported: dict[str, read.TrainingKey]) -> None:
    def takes(kind: Any, value: Any) -> bool:
        adapter = pydantic.TypeAdapter(kind, config={"arbitrary_types_allowed": True})
        try:
            adapter.validate_python(value, strict=True)
        except pydantic.ValidationError:
            return False
        return True

    lists_of_words = {"debug"}  # an enumeration of transformers, which is text in plain data
    for name, one in read._read():
        for value in SAMPLES:
            if name not in lists_of_words:
                assert takes(one.type, value) == takes(imported[name].type, value), (name, value)


def test_without_its_source_transformers_is_imported(
    monkeypatch: pytest.MonkeyPatch, imported: dict[str, read.TrainingKey]
) -> None:
    monkeypatch.setattr(read, "_SOURCES", ("no_such_file.py",))
    assert read.training_keys.__wrapped__().keys() == imported.keys() - {"output_dir"}
