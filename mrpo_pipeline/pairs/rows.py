"""One row of a file into its pairs: which shape it has, what is the prompt, what are the completions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from mrpo_pipeline.pairs.bad_row import BadRowError, check_text, found
from mrpo_pipeline.pairs.identity import Prompt, dump_prompt
from mrpo_pipeline.pairs.messages import Message, read_message, read_messages
from mrpo_pipeline.pairs.ranked import strict_pairs
from mrpo_pipeline.pairs.serialized import Serialized, admit, refuse_end_tokens
from mrpo_pipeline.pairs.transcripts import common_prompt, ends_in_marker, holds_marker

Strings = Literal["text", "messages"]

REPEATED_PROMPT = "every completion begins with the whole prompt string and is kept so: without an assistant marker"
REPEATED_PROMPT += " at its end, a string does not say whether that is a repetition or part of the answer"
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
    fields: Mapping[str, Any], strings: Strings, notices: Counter[str], serialized: Serialized = "error"
) -> list[Pair]:
    """Every pair of one row; `fields` holds the row's values under this project's names.

    A row with `chosen` and `rejected` gives one pair. A K-wise row gives one for every two completions of different
    rank, in the order (0, 1), (0, 2) … (1, 2) … of their places in `completions`. A `system` text becomes the first
    message, and makes a prompt string a user's message; a `begun` text is put in front of every completion, and so is a
    last assistant message of the prompt where `continued` is true. What is legal and yet worth saying is counted in `notices`.
    Raises BadRowError: the row cannot be used.
    """
    for media in ("images", "image"):
        if fields.get(media):
            raise BadRowError("image", f"`{media}` holds {found(fields[media])}; images are not supported")
    if fields.get("tools"):
        raise BadRowError("tool call", f"`tools` holds {found(fields['tools'])}; tool calls are not supported")
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
    implicit = fields.get("prompt") is None and order is None
    asked = None if implicit else _prompt_value(admit(_present(fields, "prompt"), "prompt", serialized))
    sides = [_side(admit(value, name, serialized), name) for name, value in zip(names, values, strict=True)]
    if asked is None:
        prompt, completions = _implicit(sides, names)
    else:
        prompt, completions = _explicit(asked, sides, names, notices)
    if fields.get("continued") and not isinstance(prompt, str):
        prompt, completions = _with_begun_answer(prompt, completions)
    if fields.get("begun"):
        begun = _text(fields["begun"], "the beginning of the answers")
        completions = [begun + completion for completion in completions]
    for name, completion in zip(names, completions, strict=True):
        _refuse_empty(completion, name)
    if serialized != "text":
        refuse_end_tokens(completions, names)
    prompt = _with_system(prompt, fields.get("system"))
    if order is None:
        chosen, rejected = completions
        if chosen == rejected:
            raise BadRowError(
                "chosen equals rejected", "`chosen` and `rejected` are the same text: no preference to learn"
            )
        return [Pair(_canonical(prompt, strings, notices), chosen, rejected)]
    distinct = [(better, worse) for better, worse in order if completions[better] != completions[worse]]
    notices[EQUAL_COMPLETIONS] += len(order) - len(distinct)
    if not distinct:
        raise BadRowError("no strict preference", "no two different completions of this row differ in rank")
    canonical = _canonical(prompt, strings, notices)
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


def _side(value: Any, name: str) -> Prompt:
    """A completion, or a conversation that ends in it: a string, messages, or one message."""
    if isinstance(value, dict):
        return [read_message(value, name)]
    return _prompt_value(value, name)


def _prompt_value(value: Any, name: str = "prompt") -> Prompt:
    if isinstance(value, str):
        return check_text(value, name)
    if isinstance(value, list):
        return read_messages(value, name)
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


def _with_begun_answer(prompt: list[Message], completions: list[str]) -> tuple[list[Message], list[str]]:
    """A last assistant message of the prompt as the beginning of every answer."""
    if len(prompt) < 2 or prompt[-1]["role"] != "assistant" or prompt[-2]["role"] != "user":
        return prompt, completions
    begun = prompt[-1]["content"]
    if any(begun.strip() == completion.strip() for completion in completions):
        raise BadRowError(
            "prompt holds the answer", "the prompt's last message is one of the answers; expected a user's message"
        )
    return prompt[:-1], [begun + completion for completion in completions]


def _explicit(
    prompt: Prompt, sides: Sequence[Prompt], names: Sequence[str], notices: Counter[str]
) -> tuple[Prompt, list[str]]:
    """Prompt and completions of a row that has a `prompt`; a prompt repeated in the sides is taken off once."""
    texts = [side for side in sides if isinstance(side, str)]
    chats = [side for side in sides if not isinstance(side, str)]
    if texts and chats:
        raise BadRowError(
            "mixed forms", f"of {', '.join(f'`{name}`' for name in names[:4])}, some are strings and some are messages"
        )
    if texts:
        if isinstance(prompt, str) and prompt and all(side.startswith(prompt) for side in texts):
            if ends_in_marker(prompt):
                return prompt, [side[len(prompt) :] for side in texts]
            notices[REPEATED_PROMPT] += 1
        return prompt, texts
    if isinstance(prompt, str):
        prompt = _prompt_messages(prompt, chats, names)
    return prompt, [_completion(side, prompt, name) for side, name in zip(chats, names, strict=True)]


def _prompt_messages(prompt: str, sides: Sequence[list[Message]], names: Sequence[str]) -> list[Message]:
    """A prompt string beside message completions: one user message, or the conversation that the sides repeat."""
    if all(len(side) <= 1 for side in sides):
        return [{"role": "user", "content": prompt}]
    heads = [side[:-1] for side in sides]
    for head, name in zip(heads, names, strict=True):
        if head != heads[0]:
            raise BadRowError(
                "conversations differ",
                f"`{names[0]}` and `{name}` differ before their last message; one prompt expected",
            )
    bare = prompt.strip()
    if not any(message["role"] == "user" and message["content"].strip() == bare for message in heads[0]):
        raise BadRowError(
            "conversation without the prompt",
            f"`{names[0]}` holds {len(sides[0])} messages, and no user message among them is the `prompt` string; "
            "expected one assistant message, or the whole conversation with the prompt in it",
        )
    return heads[0]


def _implicit(sides: Sequence[Prompt], names: Sequence[str]) -> tuple[Prompt, list[str]]:
    """Prompt and completions of a row without a `prompt`: what both sides begin with."""
    chosen, rejected = sides
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen == rejected:
            raise BadRowError("chosen equals rejected", "`chosen` and `rejected` are the same text")
        shared = common_prompt(chosen, rejected)
        return shared, [chosen[len(shared) :], rejected[len(shared) :]]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRowError("mixed forms", "one of `chosen` and `rejected` is a string, the other is messages")
    if chosen == rejected:
        raise BadRowError("chosen equals rejected", "`chosen` and `rejected` are the same messages")
    prompt: list[Message] = []
    # The last message of either side is its completion, never part of the prompt.
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        prompt.append(one)
    if not prompt:
        raise BadRowError("no prompt", "no `prompt`, and `chosen` and `rejected` share no first message")
    return prompt, [_completion(side, prompt, name) for side, name in zip((chosen, rejected), names, strict=True)]


def _completion(side: list[Message], prompt: list[Message], name: str) -> str:
    """The one assistant message of a side, the prompt taken off its front if it stands there."""
    rest = side[len(prompt) :] if prompt and side[: len(prompt)] == prompt else side
    if not rest:
        raise BadRowError("empty completion", f"`{name}` holds no assistant message")
    if len(rest) > 1:
        roles = ", ".join(message["role"] for message in rest[:6])
        raise BadRowError(
            "several messages",
            f"`{name}` holds {len(rest)} messages ({roles}) after what it shares with the prompt; "
            "a completion is exactly one assistant message",
        )
    if rest[0]["role"] != "assistant":
        raise BadRowError(
            "completion not by the assistant", f"`{name}` ends in a message of the role {rest[0]['role']}"
        )
    return rest[0]["content"]


def _refuse_empty(completion: str, name: str) -> None:
    if not completion.strip():
        raise BadRowError("empty completion", f"`{name}` holds nothing but white space")


def _canonical(prompt: Prompt, strings: Strings, notices: Counter[str]) -> str:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRowError("empty prompt", "`prompt` holds nothing but white space")
        if strings == "text":
            return dump_prompt(prompt)
        if holds_marker(prompt):
            notices[MARKED_USER_TURN] += 1
        return dump_prompt([{"role": "user", "content": prompt}])
    if not any(message["role"] == "user" and message["content"].strip() for message in prompt):
        raise BadRowError("empty prompt", "the prompt holds no user message with text in it")
    if prompt[-1]["role"] != "user":
        raise BadRowError(
            "prompt does not end in a user message", f"the prompt's last message has the role {prompt[-1]['role']}"
        )
    return dump_prompt(prompt)
