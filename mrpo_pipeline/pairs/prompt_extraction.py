"""Split the conversations of a row into prompt and completions.

A completion begins and ends with an assistant message, with tool results and further assistant messages between them. A
prompt ends with a user message or a tool result.
"""

from collections import Counter
from collections.abc import Sequence

from mrpo_pipeline.pairs.completion import completion_messages, dump_completion, is_plain
from mrpo_pipeline.pairs.identity import Message, Prompt
from mrpo_pipeline.pairs.row_errors import BadRowError
from mrpo_pipeline.pairs.transcripts import common_prompt, ends_in_marker

REPEATED_PROMPT = (
    "every completion begins with the prompt string, which is kept: without an assistant marker at the end of the prompt, it "
    "may be part of the answer"
)

ENDS_PROMPT = ("user", "tool")


def split_explicit(
    prompt: Prompt, sides: Sequence[Prompt], names: Sequence[str], notices: Counter[str]
) -> tuple[Prompt, list[str]]:
    """(prompt, completions) of a row with a `prompt`, which is removed once from sides that repeat it. Raises BadRowError."""
    texts = [side for side in sides if isinstance(side, str)]
    chats = [side for side in sides if not isinstance(side, str)]
    if texts and chats:
        raise BadRowError(
            "mixed forms", f"some of {', '.join(f'`{name}`' for name in names[:4])} are strings and some are messages"
        )
    if texts:
        if isinstance(prompt, str) and prompt and all(side.startswith(prompt) for side in texts):
            if ends_in_marker(prompt):
                return prompt, [_of_text(side[len(prompt) :]) for side in texts]
            notices[REPEATED_PROMPT] += 1
        return prompt, [_of_text(side) for side in texts]
    if isinstance(prompt, str):
        prompt = _prompt_messages(prompt, chats, names)
    return prompt, [_completion(side, prompt, name) for side, name in zip(chats, names, strict=True)]


def split_implicit(sides: Sequence[Prompt], names: Sequence[str]) -> tuple[Prompt, list[str]]:
    """(prompt, completions) of a row without a `prompt`: the prompt is the common beginning. Raises BadRowError."""
    chosen, rejected = sides
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen == rejected:
            raise BadRowError("chosen equals rejected", "`chosen` and `rejected` are the same text")
        shared = common_prompt(chosen, rejected)
        return shared, [_of_text(chosen[len(shared) :]), _of_text(rejected[len(shared) :])]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRowError("mixed forms", "one of `chosen` and `rejected` is a string and the other is messages")
    if chosen == rejected:
        raise BadRowError("chosen equals rejected", "`chosen` and `rejected` are the same messages")
    prompt = _shared((chosen, rejected))
    if not prompt:
        raise BadRowError("no prompt", "no `prompt`, and the first messages of `chosen` and `rejected` differ")
    return prompt, [_completion(side, prompt, name) for side, name in zip((chosen, rejected), names, strict=True)]


def move_prefix_to_answers(prompt: list[Message], completions: list[str]) -> tuple[list[Message], list[str]]:
    """(prompt, completions), with an assistant message at the end of the prompt moved to the beginning of every completion.

    Raises BadRowError: that message is one of the answers, or see `prepend`.
    """
    if len(prompt) < 2 or prompt[-1]["role"] != "assistant" or prompt[-2]["role"] not in ENDS_PROMPT:
        return prompt, completions
    answer_prefix = prompt[-1]
    if any(answer_prefix["content"].strip() == completion.strip() for completion in completions):
        raise BadRowError(
            "prompt holds the answer", "the last message of the prompt is one of the answers; expected a user message"
        )
    return prompt[:-1], [prepend(answer_prefix, completion) for completion in completions]


def prepend(answer_prefix: Message, completion: str) -> str:
    """Prepend an assistant message's text and reasoning to a completion.

    Raises BadRowError: the message has calls, or the completion begins with reasoning.
    """
    if len(answer_prefix) == 2 and is_plain(completion):
        text: str = answer_prefix["content"] + completion
        return _of_text(text)
    first, *rest = completion_messages(completion)
    if "tool_calls" in answer_prefix or "reasoning_content" in first:
        what = "tool calls" if "tool_calls" in answer_prefix else "an answer with reasoning after it"
        raise BadRowError("begun answer", f"the text that begins the answers has {what}; expected text alone")
    return dump_completion([{**first, **answer_prefix, "content": answer_prefix["content"] + first["content"]}, *rest])


def _of_text(text: str) -> str:
    return text if is_plain(text) else dump_completion([{"role": "assistant", "content": text}])


def _shared(sides: Sequence[list[Message]]) -> list[Message]:
    """Longest common beginning that can be a prompt: an assistant message follows it in every side.

    The last message of a side belongs to its completion, and so do calls whose results differ.
    """
    shortest = min(len(side) for side in sides)
    count = next(
        (at for at in range(shortest - 1) if any(side[at] != sides[0][at] for side in sides[1:])), max(shortest - 1, 0)
    )
    for end in range(count, 0, -1):
        if sides[0][end - 1]["role"] in ENDS_PROMPT and all(side[end]["role"] == "assistant" for side in sides):
            return sides[0][:end]
    return sides[0][:count]


def _prompt_messages(prompt: str, sides: Sequence[list[Message]], names: Sequence[str]) -> list[Message]:
    """Messages of a prompt string with message completions: one user message, or the conversation that the sides repeat."""
    if not any(message["role"] in ("user", "system") for side in sides for message in side[:-1]):
        return [{"role": "user", "content": prompt}]
    shared = _shared(sides)
    apart = [any(message["role"] in ("user", "system") for message in side[len(shared) : -1]) for side in sides]
    if any(apart):
        raise BadRowError(
            "conversations differ",
            f"`{names[0]}` and `{names[apart.index(True) or 1]}` differ before their last message; expected one prompt",
        )
    bare = prompt.strip()
    if not any(message["role"] == "user" and message["content"].strip() == bare for message in shared):
        raise BadRowError(
            "conversation without the prompt",
            f"`{names[0]}` holds {len(sides[0])} messages, none of which is the `prompt`; expected one assistant message, or the "
            "complete conversation",
        )
    return shared


def _completion(side: list[Message], prompt: list[Message], name: str) -> str:
    """Completion of a side, without the prompt if it repeats it."""
    rest = side[len(prompt) :] if prompt and side[: len(prompt)] == prompt else side
    if not rest:
        raise BadRowError("empty completion", f"`{name}` has no assistant message")
    if len(rest) == 1 and len(rest[0]) == 2 and rest[0]["role"] == "assistant":
        return _of_text(rest[0]["content"])
    if len(rest) > 1:
        _check_several(rest, name)
    for message in (rest[0], rest[-1]):
        if message["role"] != "assistant":
            where = "ends" if message is rest[-1] else "begins"
            raise BadRowError(
                "completion not by the assistant",
                f"`{name}` {where} with a message of the role {message['role']}; expected assistant",
            )
    return dump_completion(rest)


def _check_several(rest: list[Message], name: str) -> None:
    if any(message["role"] in ("user", "system") for message in rest):
        roles = ", ".join(message["role"] for message in rest[:6])
        raise BadRowError(
            "several messages",
            f"`{name}` holds {len(rest)} messages ({roles}) after the prompt; expected assistant messages and tool results only",
        )
