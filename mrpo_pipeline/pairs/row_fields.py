"""Rows of one file mapped to this project's column names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.columns import MEDIA, RANKED, Columns, nearest
from mrpo_pipeline.pairs.field_paths import get_path, is_filled, top_column
from mrpo_pipeline.pairs.layout_values import (
    alternating_turns,
    decode_list,
    join_messages,
    list_of_texts,
    parse_number,
    require_objects,
    split_marked_turns,
)
from mrpo_pipeline.pairs.layouts import PROMPT_PARTS, Choice, Layout, Ranked, Sides
from mrpo_pipeline.pairs.row_errors import BadRowError, NoPreferenceError, describe

_SETTINGS = ("tools", "chat_template_kwargs")  # inputs of a chat template besides the messages
_OWN = ("prompt", "chosen", "rejected", *RANKED, "id")
FORM = re.compile(r"\{([^}]+)\}")


@dataclass
class RowReader:
    """Mapping from the columns of one file to named fields. `layout` is resolved, or None for this project's names."""

    file: str
    layout: Layout | None
    mapped: Columns
    ignored: frozenset[str]
    named: bool
    decode: bool
    prompt_has_answer_prefix: bool = False
    """The last message of each prompt is an assistant message, which begins every answer."""
    used: frozenset[str] = field(init=False)
    """Columns that pairs are built from; they are not kept as extra columns."""
    _parts: dict[str, bool] = field(init=False, default_factory=dict)
    _settings: dict[str, None] = field(init=False, default_factory=dict)  # columns of `_SETTINGS` present in some row

    def __post_init__(self) -> None:
        paths = [*self._prompt_paths, self._system, *self._answer_paths(), self._of("id"), *map(self._of, _SETTINGS)]
        if self.layout is not None:
            paths += [self.layout.history, self.layout.answer_prefix]
        self.used = frozenset(path for path in paths if path)
        self._read = self.used | frozenset(map(top_column, self.used))
        self._seldom = {*map(top_column, map(self._of, _SETTINGS)), *map(self._of, _SETTINGS), *MEDIA}

    def _of(self, name: str) -> str:
        given = self.mapped.get(name, name)
        return given if isinstance(given, str) else ""

    @cached_property
    def _system(self) -> str:
        return self._of("system") if "system" in self.mapped else self.layout.system if self.layout else ""

    @cached_property
    def _prompt_parts(self) -> tuple[str, ...]:
        if "prompt" in self.mapped:
            given = self.mapped["prompt"]
            return (given,) if isinstance(given, str) else tuple(given)
        return self.layout.prompt if self.layout else ("prompt",)

    @cached_property
    def _prompt_paths(self) -> list[str]:
        return [path for part in self._prompt_parts for path in (FORM.findall(part) or [part])]

    def prompt_columns(self, row: Mapping[str, Any]) -> list[str]:
        """Columns that the row's prompt is built from."""
        return [path for path in self._prompt_paths if is_filled(self._at(row, path))]

    @cached_property
    def ranked(self) -> bool | None:
        """Whether rows are K-wise; None: decided per row."""
        if any(name in self.mapped for name in RANKED):
            return True
        if self.layout is not None:
            return isinstance(self.layout.answers, Ranked)
        return False if any(name in self.mapped for name in ("chosen", "rejected")) else None

    def _answer_paths(self) -> list[str]:
        answers = self.layout.answers if self.layout else None
        if isinstance(answers, Choice):
            return [answers.first, answers.second]
        if isinstance(answers, Ranked):
            return [answers.answers, *([] if answers.text else [answers.ranks, answers.scores])]
        if isinstance(answers, Sides):
            return [answers.chosen, answers.rejected]
        if self.ranked:
            return [self._of(name) for name in RANKED]
        return [self._of(name) for name in ("chosen", "rejected")]

    @property
    def is_chat(self) -> bool:
        """Whether strings are always turns: raw text has no place for a system message or history."""
        return bool(self._system or (self.layout and self.layout.history))

    def taken(self, ranked: bool) -> frozenset[str]:
        """Columns that are not kept as extra columns of the pair."""
        if self.layout is None and self.ranked is None and ranked:
            return frozenset({*self._prompt_paths, *RANKED, self._of("id"), self._system, *map(self._of, _SETTINGS)})
        return self.used

    def check_seen(self, seen: Mapping[str, Any]) -> None:
        """Raise UserError if a mapped column is missing from all rows or has no effect."""
        for ours, given in self.mapped.items():
            for theirs in [given] if isinstance(given, str) else given:
                if theirs == ours and ours not in RANKED and ours != "system":
                    continue
                if theirs not in seen and top_column(theirs) not in seen:
                    raise UserError(
                        f"{self.file}: no row has the column {theirs!r}, to which `columns` maps {ours!r}"
                        f"{nearest(theirs, list(seen))}. Correct `pairs.columns`."
                    )
        ranked = [name for name in RANKED if name in self.mapped]
        if ranked and self._of("completions") not in seen:
            raise UserError(
                f"{self.file}: `columns` maps {ranked[0]!r}, but no row has the column {self._of('completions')!r} that holds the "
                f"ranked answers. Map `completions` too, or remove {ranked[0]!r}."
            )
        if ranked and not any(self._of(name) in seen for name in ("ranks", "scores")):
            raise UserError(
                f"{self.file}: `columns` maps 'completions', but no row has the column {self._of('ranks')!r} or "
                f"{self._of('scores')!r}. Map `ranks` (lower is better) or `scores` (higher is better), or use a layout if the "
                "rank or score is inside each answer."
            )

    def lacking(self, seen: Mapping[str, Any]) -> str | None:
        """First required column that no row has; None for a layout, whose columns have been checked."""
        if self.layout is not None or self._of("completions") in seen:
            return None
        return next((name for name in map(self._of, ("chosen", "rejected")) if name not in seen), None)

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the row under this project's names.

        Raises BadRowError; NoPreferenceError for a row without a preference.
        """
        fields: dict[str, Any] = {} if self._seldom.isdisjoint(row) else self._beside(row)
        if self.layout is None and not (
            self.mapped or self.prompt_has_answer_prefix or self.decode
        ):  # most files: our own names
            fields.update((name, row[name]) for name in _OWN if name in row)
            return fields
        for name in ("id",) if self._of("id") in row else ():
            fields[name] = row[self._of("id")]
        prompt = self._prompt(row)
        if isinstance(prompt, str) and self.layout is not None and self.layout.turn_marks:
            prompt = split_marked_turns(prompt, self.layout.turn_marks)
        if prompt is not None or any(path in row for path in self._prompt_paths):
            fields["prompt"] = prompt
        if self._system:
            fields["system"] = self._at(row, self._system)
        if self.layout is not None and self.layout.answer_prefix:
            fields["answer_prefix"] = self._at(row, self.layout.answer_prefix)
        if self.prompt_has_answer_prefix:
            fields["prompt_has_answer_prefix"] = True
        self._add_answers(fields, row)
        return fields

    def _beside(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Template inputs of the row. Raises BadRowError: it has media."""
        for name, media in MEDIA.items():
            if name in row and name not in self.ignored and is_filled(decode_list(row[name])):
                raise BadRowError(media, f"`{name}` holds {describe(row[name])}; only text is supported")
        fields = {}
        for name in _SETTINGS:
            value = self._at(row, self._of(name))
            if is_filled(decode_list(value)):
                fields[name] = value
                self._settings[name] = None
        return fields

    def ends_in_answer(self, row: Mapping[str, Any]) -> bool:
        """Whether the row's prompt is a list of messages that ends with the assistant's."""
        value = self._at(row, self._prompt_parts[0]) if len(self._prompt_parts) == 1 else None
        last = value[-1] if isinstance(value, list) and len(value) > 1 else None
        return isinstance(last, dict) and (last.get("role") or last.get("from")) in ("assistant", "gpt")

    def _at(self, row: Mapping[str, Any], path: str) -> Any:
        return get_path(row, path, decode=self.decode)

    def _prompt(self, row: Mapping[str, Any]) -> Any:
        parts = self._prompt_parts
        if len(parts) == 1 and not (self.layout and (self.layout.closing or self.layout.history)):
            return self._at(row, parts[0])
        values = [value for part in parts if is_filled(value := self._part(row, part))]
        turns = self._history(row)
        if any(isinstance(value, list) for value in values):
            return [*turns, *join_messages(values)]
        if not all(isinstance(value, str) for value in values):
            wrong = next(value for value in values if not isinstance(value, str))
            raise BadRowError("wrong type", f"a prompt column holds {describe(wrong)}; expected strings")
        if not values:
            return None
        text = "\n\n".join([*values, *([self.layout.closing] if self.layout and self.layout.closing else [])])
        return [*turns, {"role": "user", "content": text}] if turns else text

    def _part(self, row: Mapping[str, Any], part: str) -> Any:
        paths = FORM.findall(part)
        if not paths:
            return self._at(row, part)
        value = self._at(row, paths[0])
        return part.replace("{" + paths[0] + "}", value) if isinstance(value, str) and value.strip() else None

    def _history(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        value = self._at(row, self.layout.history) if self.layout and self.layout.history else None
        if not is_filled(value):
            return []
        if not isinstance(value, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in value):
            raise BadRowError(
                "wrong type", f"`history` is {describe(value)}; expected [user text, assistant text] pairs"
            )
        return alternating_turns(value)

    def _add_answers(self, fields: dict[str, Any], row: Mapping[str, Any]) -> None:
        answers = self.layout.answers if self.layout else None
        if isinstance(answers, Choice):
            first, second = self._at(row, answers.first), self._at(row, answers.second)
            if self.layout and self.layout.turns:
                questions = list_of_texts(fields.pop("prompt", None), "prompt")
                first = self._turns(questions, first, answers.first)
                second = self._turns(questions, second, answers.second)
            wins = answers.label.first_wins(lambda path: self._at(row, path))
            fields["chosen"], fields["rejected"] = (first, second) if wins else (second, first)
        elif isinstance(answers, Ranked):
            values = fields["completions"] = decode_list(self._at(row, answers.answers))
            objects = require_objects(values, answers.answers) if answers.text and isinstance(values, list) else None
            if objects is not None:
                fields["completions"] = [one.get(answers.text) for one in objects]
            for name, path in (("ranks", answers.ranks), ("scores", answers.scores)):
                if path and objects is not None:
                    fields[name] = [parse_number(one.get(path)) for one in objects]
                elif path:
                    fields[name] = decode_list(self._at(row, path))
        elif isinstance(answers, Sides):
            for name, path in (("chosen", answers.chosen), ("rejected", answers.rejected)):
                if path in row or self._at(row, path) is not None:
                    fields[name] = self._at(row, path)
        else:
            self._add_own(fields, row)

    @staticmethod
    def _turns(questions: list[str], value: Any, name: str) -> list[dict[str, Any]]:
        replies = list_of_texts(value, name)
        if len(questions) != len(replies):
            raise BadRowError("lengths differ", f"`{name}` has {len(replies)} turns for {len(questions)} of `prompt`")
        return alternating_turns(zip(questions, replies, strict=True))

    def _add_own(self, fields: dict[str, Any], row: Mapping[str, Any]) -> None:
        sides = ("chosen", "rejected") if self.ranked is not True else ()
        for name in (*sides, *(RANKED if self.ranked is not False else ())):
            path = self._of(name)
            value = self._at(row, path)
            if path in row or value is not None:
                fields[name] = decode_list(value) if name in RANKED and self.decode else value

    def unused_parts(self, row: Mapping[str, Any]) -> list[str]:
        """Non-empty columns of `PROMPT_PARTS` that are neither used nor ignored."""
        known = self._parts
        names = []
        for name, value in row.items():
            is_part = known.get(name)
            if is_part is None:
                is_part = name.lower() in PROMPT_PARTS and name not in self._read and name not in self.ignored
                known[name] = is_part
            if is_part and isinstance(value, BadRowError):  # unreadable: it may hold a part of the prompt
                raise value
            if is_part and is_filled(value):
                names.append(name)
        return names

    def classify(self, error: BadRowError) -> BadRowError:
        """The error, as a NoPreferenceError if the layout expects such rows."""
        reason = dict(self.layout.expected_errors).get(error.reason) if self.layout else None
        return error if reason is None else NoPreferenceError(reason, error.detail)

    def report(self, strings: str, seen: Mapping[str, Any]) -> str:
        """Layout and column mapping on one line."""
        how = "columns as they are" if self.layout is None else f"layout {self.layout.name}"
        if self.layout is None and self.mapped:
            how = "columns as mapped"
        elif self.layout is not None:
            how += " (as configured)" if self.named else " (detected from its columns)"
        prompt = " + ".join(f"`{path}`" for path in self._prompt_paths)
        has_prompt = any(path in seen or top_column(path) in seen for path in self._prompt_paths)
        parts = [f"prompt {prompt}" if has_prompt else "prompt: the common beginning of both answers"]
        if self._system:
            parts.append(f"system `{self._system}`")
        if self.layout is not None and self.layout.history:
            parts.append(f"earlier turns `{self.layout.history}`")
        parts.append(self._describe_answers())
        if self.prompt_has_answer_prefix:
            parts.append("the last message of a prompt is an assistant message and is prepended to both answers")
        parts += [f"{name} `{self._of(name)}`" for name in self._settings]
        if self.layout is not None and self.layout.notice:
            parts.append(self.layout.notice)
        if self.is_chat and strings == "text":
            parts.append("strings are read as turns, because raw text has no place for a system message or history")
        return f"{how}: {'; '.join(parts)}"

    def _describe_answers(self) -> str:
        answers = self.layout.answers if self.layout else None
        if isinstance(answers, Choice):
            label = answers.label.describe(answers.first, answers.second)
            return f"chosen and rejected from `{answers.first}` and `{answers.second}` by {label}"
        if isinstance(answers, Ranked):
            order = (
                f"`{answers.ranks}` (lower is better)" if answers.ranks else f"`{answers.scores}` (higher is better)"
            )
            return f"every strict pair of `{answers.answers}` by {order}"
        if isinstance(answers, Sides):
            return f"chosen `{answers.chosen}`; rejected `{answers.rejected}`"
        if self.ranked:
            return f"every strict pair of `{self._of('completions')}`"
        return f"chosen `{self._of('chosen')}`; rejected `{self._of('rejected')}`"
