"""Pairs of one row: its shape, prompt and completions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mrpo_pipeline.pairs.completion import MARK, completion_messages, completion_text, dump_completion, is_plain
from mrpo_pipeline.pairs.identity import Message, Prompt, PromptSettings, dump_prompt
from mrpo_pipeline.pairs.messages import read_message, read_messages
from mrpo_pipeline.pairs.prompt_extraction import (
    ENDS_PROMPT,
    move_prefix_to_answers,
    prepend,
    split_explicit,
    split_implicit,
)
from mrpo_pipeline.pairs.ranked import strict_pairs
from mrpo_pipeline.pairs.row_errors import BadRowError, check_string, describe
from mrpo_pipeline.pairs.serialized import Serialized, check_serialized, refuse_end_tokens
from mrpo_pipeline.pairs.template_inputs import read_settings
from mrpo_pipeline.pairs.transcripts import contains_marker

Strings = Literal["text", "messages"]

MARKER_IN_USER_TURN = "the prompt string, read as one user turn (strings: messages), holds an assistant marker"
EQUAL_COMPLETIONS = "two equal completions with different ranks in one row make no pair"


class Pair(NamedTuple):
    """One preference: the canonical prompt (`dump_prompt`) and two completions."""

    prompt: str
    chosen: str
    rejected: str


def is_ranked(fields: Mapping[str, Any]) -> bool:
    """Whether a row is K-wise: it has `completions`, and neither `chosen` nor `rejected`."""
    return fields.get("completions") is not None and fields.get("chosen") is None and fields.get("rejected") is None


def pairs_of_row(
    fields: Mapping[str, Any],
    strings: Strings,
    notices: Counter[str],
    serialized: Serialized = "error",
    *,
    drop_nulls: bool = False,
) -> list[Pair]:
    """All pairs of one row; `fields` holds the row's values under this project's names.

    A row with `chosen` and `rejected` gives one pair. A K-wise row gives one per two completions of different rank, in
    the order (0, 1), (0, 2) … (1, 2) … of their indices. A `system` text becomes the first message and turns a prompt
    string into a user message. An `answer_prefix` is prepended to every completion; with `prompt_has_answer_prefix`, so
    is the last assistant message of the prompt. Valid but unusual rows are counted in `notices`.
    `drop_nulls`: see `json_values.check_json`.
    Raises BadRowError: the row cannot be used.
    """
    order: list[tuple[int, int]] | None = None
    if is_ranked(fields):
        values = fields["completions"]
        if not isinstance(values, list):
            hint = "; set `pairs.serialized: parse` to parse JSON strings" if isinstance(values, str) else ""
            raise BadRowError("wrong type", f"`completions` is {describe(values)}; expected a list{hint}")
        order = strict_pairs(len(values), fields.get("ranks"), fields.get("scores"))
        names = [f"completions[{index}]" for index in range(len(values))]
    else:
        names = ["chosen", "rejected"]
        values = [_present(fields, name) for name in names]
        _refuse_several(values, names)
    given_prompt: Prompt | None = None
    if order is not None or fields.get("prompt") is not None:
        given_prompt = _text_or_messages(_present(fields, "prompt"), "prompt", serialized, drop_nulls)
    sides = [_text_or_messages(value, name, serialized, drop_nulls) for name, value in zip(names, values, strict=True)]
    if given_prompt is None:
        prompt, completions = split_implicit(sides, names)
    else:
        prompt, completions = split_explicit(given_prompt, sides, names, notices)
    if fields.get("prompt_has_answer_prefix") and not isinstance(prompt, str):
        prompt, completions = move_prefix_to_answers(prompt, completions)
    if fields.get("answer_prefix"):
        content = check_string(fields["answer_prefix"], "answer prefix")
        answer_prefix: Message = {"role": "assistant", "content": content}
        completions = [prepend(answer_prefix, completion) for completion in completions]
    plain = all(map(is_plain, completions))
    for name, completion in zip(names, completions, strict=True):
        if plain and not completion.strip():
            raise BadRowError("empty completion", f"`{name}` is blank")
        if not plain:
            _refuse_empty(completion, name)
    if serialized != "text":
        refuse_end_tokens(completions if plain else [_closing(completion) for completion in completions], names)
    prompt = _with_system(prompt, fields.get("system"))
    settings = None
    if "tools" in fields or "chat_template_kwargs" in fields:
        settings = read_settings(fields.get("tools"), fields.get("chat_template_kwargs"), drop_nulls)
    if order is None:
        chosen, rejected = completions
        if chosen == rejected:
            raise BadRowError(
                "chosen equals rejected", "`chosen` and `rejected` are the same text, so there is no preference"
            )
        return [Pair(_canonical(prompt, settings, plain, strings, notices), chosen, rejected)]
    distinct = [(better, worse) for better, worse in order if completions[better] != completions[worse]]
    notices[EQUAL_COMPLETIONS] += len(order) - len(distinct)
    if not distinct:
        raise BadRowError("no strict preference", "no two different completions of this row differ in rank")
    canonical = _canonical(prompt, settings, plain, strings, notices)
    return [Pair(canonical, completions[better], completions[worse]) for better, worse in distinct]


def _present(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise BadRowError(f"missing {name}", f"the row has no `{name}`")
    if fields[name] is None:
        raise BadRowError(f"null {name}", f"`{name}` is null")
    return fields[name]


def _refuse_several(values: Sequence[Any], names: Sequence[str]) -> None:
    for value, name in zip(values, names, strict=True):
        if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
            raise BadRowError(
                "several completions",
                f"`{name}` holds {len(value)} texts; expected one: write a row for each, or use `completions` with `ranks`",
            )


def _text_or_messages(value: Any, name: str, serialized: Serialized, drop_nulls: bool) -> Prompt:
    """A prompt, a completion, or a conversation that ends with it. A single message is allowed for completions only."""
    drop_nulls = drop_nulls and not isinstance(value, str)
    value = check_serialized(value, name, serialized)
    if isinstance(value, dict) and name != "prompt":
        return [read_message(value, name, drop_nulls)]
    if isinstance(value, list):
        return read_messages(value, name, drop_nulls)
    return check_string(value, name, "a string or a list of messages")


def _with_system(prompt: Prompt, system: Any) -> Prompt:
    """Prepend the text of a system column, unless the prompt begins with the same system message."""
    if system is None or system == "":
        return prompt
    text = check_string(system, "system")
    if not text.strip():
        return prompt
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != text.strip():
            raise BadRowError("two system messages", "the prompt begins with one, and `system` holds another")
        return messages
    return [{"role": "system", "content": text}, *messages]


def _refuse_empty(completion: str, name: str) -> None:
    for message in completion_messages(completion):
        if message["role"] == "assistant" and not completion_text(dump_completion([message])).strip():
            what = "is blank" if is_plain(completion) else "has a blank assistant message"
            raise BadRowError("empty completion", f"`{name}` {what}")


def _closing(completion: str) -> str:
    """Text at the end of a completion; empty if it ends with tool calls."""
    if is_plain(completion):
        return completion
    last = completion_messages(completion)[-1]
    return "" if "tool_calls" in last else last["content"]


def _canonical(
    prompt: Prompt, settings: PromptSettings | None, plain: bool, strings: Strings, notices: Counter[str]
) -> str:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRowError("empty prompt", "`prompt` is blank")
        if strings == "text":
            if settings is not None and any(settings):
                what = "tools" if settings.tools else "chat_template_kwargs"
                raise BadRowError(
                    f"{what} beside raw text",
                    f"`{what}` needs a chat template, but the prompt is raw text; use messages, or set `pairs.strings: messages`",
                )
            if not plain:
                raise BadRowError("reserved text", f"a completion to raw text begins with the reserved marker {MARK!r}")
            return dump_prompt(prompt)
        if contains_marker(prompt):
            notices[MARKER_IN_USER_TURN] += 1
        prompt = [{"role": "user", "content": prompt}]
    elif not any(message["role"] == "user" and message["content"].strip() for message in prompt):
        raise BadRowError("empty prompt", "the prompt has no user message with text")
    elif prompt[-1]["role"] not in ENDS_PROMPT:
        raise BadRowError(
            "prompt does not end in a user message",
            f"the last message of the prompt has the role {prompt[-1]['role']}; expected user or tool",
        )
    return dump_prompt(prompt) if settings is None else dump_prompt(prompt, settings)
