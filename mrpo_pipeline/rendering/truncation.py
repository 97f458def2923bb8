"""Truncation: the prompt by text, the completion at one byte offset for all models."""

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.pairs.completion import completion_text
from mrpo_pipeline.pairs.identity import Message, PromptSettings, dump_prompt, parse_prompt, prompt_settings
from mrpo_pipeline.rendering.encoding_split import Rendered
from mrpo_pipeline.rendering.renderer import Renderer

_WINDOW = 16  # chars; a cut inside a word can need more tokens than a longer text, so these are tried as well


def cut_prompt(renderer: Renderer, prompt: str, max_tokens: int) -> str | None:
    """Truncate a prompt from the start.

    Oldest turns are removed first, each user message with its answer, then the start of the remaining text (also of raw
    text). System messages are kept.

    Args:
        renderer: of the policy.
        prompt: canonical prompt.
        max_tokens: maximum number of prompt tokens, including the template's output before the answer.
    Returns:
        Canonical prompt, unchanged if it fits; None if not even one character of the last turn fits.
    """
    if renderer.prompt_lengths([prompt])[0] <= max_tokens:
        return prompt
    content, settings = parse_prompt(prompt), prompt_settings(prompt)
    if isinstance(content, str):
        return _cut_text(renderer, [], content, [], max_tokens, settings)
    first = next((i for i, m in enumerate(content) if m["role"] != "system"), len(content))
    starts = [i for i, m in enumerate(content) if m["role"] == "user" and i > first]
    shorter = [[*_system(content[:i]), *content[i:]] for i in starts]
    fitting = renderer.prompt_lengths([dump_prompt(messages, settings) for messages in shorter])
    for messages, length in zip(shorter, fitting, strict=True):
        if length <= max_tokens:
            return dump_prompt(messages, settings)
    left = shorter[-1] if shorter else content
    at = next((i for i, m in enumerate(left) if m["role"] != "system"), None)
    if at is None:
        return None
    return _cut_text(renderer, left[:at], left[at], left[at + 1 :], max_tokens, settings)


def cut_offset(rendered: Rendered, completion: str, budget: int) -> int | None:
    """Byte offset at which to cut a completion so that at most `budget` tokens count.

    Args:
        rendered: the completion as the policy reads it.
        completion: as passed to the renderer.
        budget: maximum number of completion tokens, including context between messages and the end-of-turn token.
    Returns:
        None if the completion fits; else a byte offset at a character boundary: tokens that end at or before it count.
    """
    ends = rendered.scored_ends
    count = rendered.scored_within(budget)
    if count == len(ends):
        return None
    # Tokens with equal ends count together or not at all. A cut always excludes the end-of-turn token.
    while 0 < count < len(ends) - 1 and ends[count - 1] == ends[count]:
        count -= 1
    offset = int(ends[count - 1]) if count else 0
    encoded = completion_text(completion).encode()
    while offset < len(encoded) and encoded[offset] & 0xC0 == 0x80:  # inside a character
        offset -= 1
    return offset


def tokens_counted(byte_ends: npt.NDArray[np.int32], complete: bool, cut: int | None) -> int:
    """Number of leading tokens that count with a cut.

    Args:
        byte_ends: (T,) of the scored tokens.
        complete: whether the last one is the end-of-turn token.
        cut: byte offset; None: all count.
    """
    if cut is None:
        return len(byte_ends)
    return min(int(np.searchsorted(byte_ends, cut, side="right")), len(byte_ends) - int(complete))


def tokens_to_score(byte_ends: npt.NDArray[np.int32], cut: int | None) -> int:
    """Number of leading tokens to score so that their last byte end reaches the cut.

    Args:
        byte_ends: (T,) of all scored tokens, including the end-of-turn token.
        cut: byte offset; None: all.
    """
    if cut is None or len(byte_ends) == 0:
        return len(byte_ends)
    reached = int(np.searchsorted(byte_ends, cut, side="left"))
    if reached == len(byte_ends):
        return reached
    return int(np.searchsorted(byte_ends, byte_ends[reached], side="right"))


def _cut_text(
    renderer: Renderer,
    before: list[Message],
    cut: str | Message,
    after: list[Message],
    max_tokens: int,
    settings: PromptSettings,
) -> str | None:
    """Keep the longest end of a text (raw, or of a message between others) with which the prompt fits."""
    text = cut if isinstance(cut, str) else cut["content"]

    def lengths(kept: range) -> list[int]:
        """Prompt tokens for each number of kept characters."""
        return renderer.prompt_lengths([ending(n) for n in kept])

    def ending(kept: int) -> str:
        tail = text[len(text) - kept :]
        messages = tail if isinstance(cut, str) else [*before, {**cut, "content": tail}, *after]
        return dump_prompt(messages, settings)

    low, high = 0, len(text)  # `low` characters fit (or 0), `high` do not
    shortest, longest = renderer.prompt_lengths([ending(0), ending(high)])
    while high - low > 1:
        # Interpolate, because tokens are roughly proportional to characters, but stay off the edges.
        share = (max_tokens - shortest) / max(longest - shortest, 1)
        middle = low + round((high - low) * min(max(share, 0.05), 0.95))
        middle = min(max(middle, low + 1), high - 1)
        length = lengths(range(middle, middle + 1))[0]
        if length <= max_tokens:
            low, shortest = middle, length
        else:
            high, longest = middle, length
    nearby = range(max(low, 1), min(low + _WINDOW, len(text) - 1) + 1)
    fitting = [n for n, length in zip(nearby, lengths(nearby), strict=True) if length <= max_tokens]
    return ending(max(fitting)) if fitting else None


def _system(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message["role"] == "system"]
