"""One row of a file into its pairs: which shape it has, what is the prompt, what are the completions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mrpo_pipeline.pairs.bad_row import BadRowError, check_text, found
from mrpo_pipeline.pairs.completion import MARK, completion_messages, completion_text, dump_completion, is_plain
from mrpo_pipeline.pairs.conversations import ENDS_PROMPT, begin, explicit, implicit, with_begun_answer
from mrpo_pipeline.pairs.identity import Message, Prompt, PromptSettings, dump_prompt
from mrpo_pipeline.pairs.messages import read_message, read_messages
from mrpo_pipeline.pairs.ranked import strict_pairs
from mrpo_pipeline.pairs.serialized import Serialized, admit, refuse_end_tokens
from mrpo_pipeline.pairs.template_inputs import read_settings
from mrpo_pipeline.pairs.transcripts import holds_marker

Strings = Literal["text", "messages"]

MARKED_USER_TURN = "the prompt string put into one user turn (strings: messages) holds an assistant marker"
EQUAL_COMPLETIONS = "two equal completions of different rank in one row make no pair"


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
    filled: bool = False,
) -> list[Pair]:
    """Every pair of one row; `fields` holds the row's values under this project's names.

    A row with `chosen` and `rejected` gives one pair. A K-wise row gives one for every two completions of different
    rank, in the order (0, 1), (0, 2) … (1, 2) … of their places in `completions`. A `system` text becomes the first
    message, and makes a prompt string a user's message; a `begun` text is put in front of every completion, and so is a
    last assistant message of the prompt where `continued` is true. What is legal and yet worth saying is counted in `notices`.
    `filled`: see `json_values.checked`.
    Raises BadRowError: the row cannot be used.
    """
    order: list[tuple[int, int]] | None = None
    if is_ranked(fields):
        values = fields["completions"]
        if not isinstance(values, list):
            hint = "; set `pairs.serialized: parse` to read lists written as JSON" if isinstance(values, str) else ""
            raise BadRowError("wrong type", f"`completions` is {found(values)}; expected a list{hint}")
        order = strict_pairs(len(values), fields.get("ranks"), fields.get("scores"))
        names = [f"completions[{index}]" for index in range(len(values))]
    else:
        names = ["chosen", "rejected"]
        values = [_present(fields, name) for name in names]
        _refuse_several(values, names)
    asked: Prompt | None = None
    if order is not None or fields.get("prompt") is not None:
        asked = _prompt_value(_present(fields, "prompt"), serialized, filled)
    sides = [_side(value, name, serialized, filled) for name, value in zip(names, values, strict=True)]
    if asked is None:
        prompt, completions = implicit(sides, names)
    else:
        prompt, completions = explicit(asked, sides, names, notices)
    if fields.get("continued") and not isinstance(prompt, str):
        prompt, completions = with_begun_answer(prompt, completions)
    if fields.get("begun"):
        begun: Message = {"role": "assistant", "content": _text(fields["begun"], "the beginning of the answers")}
        completions = [begin(begun, completion) for completion in completions]
    plain = all(map(is_plain, completions))
    for name, completion in zip(names, completions, strict=True):
        if plain and not completion.strip():
            raise BadRowError("empty completion", f"`{name}` holds nothing but white space")
        if not plain:
            _refuse_empty(completion, name)
    if serialized != "text":
        refuse_end_tokens(completions if plain else [_closing(completion) for completion in completions], names)
    prompt = _with_system(prompt, fields.get("system"))
    settings = None
    if "tools" in fields or "chat_template_kwargs" in fields:
        settings = read_settings(fields.get("tools"), fields.get("chat_template_kwargs"), filled)
    if order is None:
        chosen, rejected = completions
        if chosen == rejected:
            raise BadRowError(
                "chosen equals rejected", "`chosen` and `rejected` are the same text: no preference to learn"
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
                f"`{name}` holds {len(value)} texts; expected one completion: make a row for each, or `completions` with `ranks`",
            )


def _side(value: Any, name: str, serialized: Serialized, filled: bool) -> Prompt:
    """A completion, or a conversation that ends in it: a string, messages, or one message."""
    admitted = admit(value, name, serialized)
    filled = filled and not isinstance(value, str)
    if isinstance(admitted, dict):
        return [read_message(admitted, name, filled)]
    return _messages_or_text(admitted, name, filled)


def _prompt_value(value: Any, serialized: Serialized, filled: bool) -> Prompt:
    return _messages_or_text(admit(value, "prompt", serialized), "prompt", filled and not isinstance(value, str))


def _messages_or_text(value: Any, name: str, filled: bool) -> Prompt:
    if isinstance(value, str):
        return check_text(value, name)
    if isinstance(value, list):
        return read_messages(value, name, filled)
    raise BadRowError("wrong type", f"`{name}` is {found(value)}; expected a string or a list of messages")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRowError("wrong type", f"{name} is {found(value)}; expected a string")
    return check_text(value, name)


def _with_system(prompt: Prompt, system: Any) -> Prompt:
    """The prompt with the text of a system column as its first message; one that it opens with already is not repeated."""
    if system is None or system == "":
        return prompt
    text = _text(system, "`system`")
    if not text.strip():
        return prompt
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != text.strip():
            raise BadRowError("two system messages", "the prompt opens with one, and `system` holds another")
        return messages
    return [{"role": "system", "content": text}, *messages]


def _refuse_empty(completion: str, name: str) -> None:
    for message in completion_messages(completion):
        if message["role"] == "assistant" and not completion_text(dump_completion([message])).strip():
            what = "holds" if is_plain(completion) else "has an assistant message with"
            raise BadRowError("empty completion", f"`{name}` {what} nothing but white space")


def _closing(completion: str) -> str:
    """The text that a completion ends with; nothing where it ends in calls."""
    if is_plain(completion):
        return completion
    last = completion_messages(completion)[-1]
    return "" if "tool_calls" in last else last["content"]


def _canonical(
    prompt: Prompt,
    settings: PromptSettings | None,
    plain: bool,
    strings: Strings,
    notices: Counter[str],
) -> str:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRowError("empty prompt", "`prompt` holds nothing but white space")
        if strings == "text":
            if settings is not None and any(settings):
                what = "tools" if settings.tools else "chat_template_kwargs"
                raise BadRowError(
                    f"{what} beside raw text",
                    f"`{what}` is for a chat template, and the prompt is raw text; give messages, or set `pairs.strings: messages`",
                )
            if not plain:
                raise BadRowError("reserved text", f"a completion to raw text begins with {MARK!r}, which is no text")
            return dump_prompt(prompt)
        if holds_marker(prompt):
            notices[MARKED_USER_TURN] += 1
        prompt = [{"role": "user", "content": prompt}]
    elif not any(message["role"] == "user" and message["content"].strip() for message in prompt):
        raise BadRowError("empty prompt", "the prompt holds no user message with text in it")
    elif prompt[-1]["role"] not in ENDS_PROMPT:
        raise BadRowError(
            "prompt does not end in a user message",
            f"the prompt's last message has the role {prompt[-1]['role']}; expected a user's message or a tool's result",
        )
    return dump_prompt(prompt) if settings is None else dump_prompt(prompt, settings)
