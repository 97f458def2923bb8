"""The settings of ``pairs``."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.settings_base import Name, Settings


class Source(NamedTuple):
    """A source of pairs: files, folders, URLs or data sets, with the split and subset to read."""

    name: str
    place: str | list[str]
    split: str | None
    subset: str | None

    @property
    def chosen(self) -> dict[str, Any]:
        """The options of ``pairs.sources.find_files``."""
        return {"split": self.split, "subset": self.subset, "held_out": self.name == "eval"}


class Pairs(Settings):
    """The preference pairs and how to read them."""

    train: Name | list[Name] | None = None
    """Training pairs: a file, folder, glob, URL or data set of the hub (`org/name`, `org/name@revision`), or a list of them."""
    eval: Name | list[Name] | None = None
    """Held-out pairs, in the same forms. Null: use `eval_fraction`."""
    split: Name | None = None
    """The split of a data set that `train` reads; null: the one named train, or the only one."""
    eval_split: Name | None = None
    """The split that `eval` reads; null: the only one with a name such as test or validation."""
    subset: Name | None = None
    """The subset (configuration) that `train` reads of a hub data set, or a copy of one; null: its default, or the only one."""
    eval_subset: Name | None = None
    """The subset that `eval` reads; null: `subset` if both name the same data set."""
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training prompts to hold out for evaluation; splits are by prompt, never by row."""
    weights_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training prompts to hold out as a third split, for validation weights and sweeps."""
    columns: dict[
        Literal[
            "prompt", "system", "chosen", "rejected", "id", "completions", "ranks", "scores", "tools", "chat_template_kwargs"
        ],
        str | list[str],
    ] = Field({})  # fmt: skip
    """The file's names of columns, by the names used here; for `prompt` also a list, joined by a blank line."""
    layout: str = "auto"
    """The column layout of a known data set (`mrpo recipes layouts`): `auto` detects it, `as-is` uses the names of `columns`."""
    ignore_columns: list[str] = Field([])
    """Columns to leave out although they usually hold a part of the prompt (`system`, `input`, `context`, …)."""
    serialized: Literal["error", "parse", "text"] = "error"
    """Strings that hold a conversation as JSON or Python text: refuse them, parse the messages, or use them as text. A prompt
    rendered by a chat template is accepted only with `text`."""
    strings: Literal["text", "messages"] = "text"
    """Read strings as raw text without a template (as TRL does), or as one user turn and one assistant turn."""
    on_bad_row: Literal["error", "skip"] = "error"
    """For an invalid row, stop before any model loads, or skip it and count it by reason."""

    def sources(self) -> list[Source]:
        """The sources that the recipe names, the training pairs first."""
        same = self.eval == self.train
        eval_subset = self.subset if self.eval_subset is None and same else self.eval_subset
        return [
            Source(name, place, split, subset)
            for name, place, split, subset in (
                ("train", self.train, self.split, self.subset),
                ("eval", self.eval, self.eval_split, eval_subset),
            )
            if place is not None
        ]

    def required_sources(self) -> list[Source]:
        """``sources()``; raises UserError if the recipe names none."""
        found = self.sources()
        if not found:
            raise UserError(
                "The recipe names no pairs: expected `pairs: {train: FILE-OR-GLOB}`. Add it, or give --train-file FILE."
            )
        return found

    def reading(self) -> dict[str, Any]:
        """The options of ``pairs.read_pairs``."""
        return self.model_dump(
            include={"columns", "layout", "ignore_columns", "serialized", "strings", "on_bad_row"}, mode="json"
        )
