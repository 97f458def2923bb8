"""Print a pair token by token as a model reads it, with scored tokens marked."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from mrpo_pipeline.pairs.completion import completion_parts, is_plain
from mrpo_pipeline.rendering.encoding_split import Rendered
from mrpo_pipeline.rendering.renderer import Renderer
from mrpo_pipeline.rendering.truncation import tokens_counted
from mrpo_pipeline.terminal import printable

LEGEND = "tokens are separated by │; a space is shown as ·, a line break as ⏎, a tab as ⇥, a single byte as <F0>"

_SHOWN = {" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥"}
_DIM, _GREEN, _OFF = "\x1b[2m", "\x1b[32m", "\x1b[0m"


def view(
    renderer: Renderer,
    prompt: str,
    sides: Sequence[tuple[str, str, int | None]],
    *,
    width: int = 80,
    color: bool = False,
    ids: bool = False,
) -> list[str]:
    """Lines that show a prompt and its completions as the model reads them.

    Args:
        renderer: of the model.
        prompt: canonical prompt after truncation.
        sides: (name, completion, cut in bytes or None).
        width: columns of the terminal.
        color: use terminal colours.
        ids: print one token per line, with its id and byte end.
    """
    rendered = renderer.render([(prompt, completion) for _, completion, _ in sides])
    lines: list[str] = []
    shown: list[int] = []
    for (name, completion, cut), one in zip(sides, rendered, strict=True):
        if one.prompt_ids.tolist() != shown:
            shown = one.prompt_ids.tolist()
            lines += _block("prompt, not scored", renderer, shown, None, width, _DIM if color else "", ids)
        counted = tokens_counted(one.byte_ends, True, cut)
        lines += _side(name, completion, renderer, one, counted, width, color, ids)
    return lines


def _side(
    name: str, completion: str, renderer: Renderer, one: Rendered, counted: int, width: int, color: bool, ids: bool
) -> Iterator[str]:
    tokens, ends = one.completion_ids.tolist(), one.byte_ends.tolist()
    for what, start, end in _runs(completion, one, counted):
        context = what.endswith("not scored")
        paint = (_DIM if context else _GREEN) if color else ""
        yield from _block(f"{name}, {what}", renderer, tokens[start:end], ends[start:end], width, paint, ids)
    if counted < len(tokens):
        rest = f"{name}, truncated by limits, not scored"
        yield from _block(rest, renderer, tokens[counted:], ends[counted:], width, _DIM if color else "", ids)


def _runs(completion: str, one: Rendered, counted: int) -> list[tuple[str, int, int]]:
    """(label, start, end) of each run of counted tokens of one kind."""
    if is_plain(completion):
        return [("scored", 0, counted)]
    runs: list[tuple[str, int, int]] = []
    for i, what in enumerate(_kinds(completion, one)[:counted]):
        start = runs.pop()[1] if runs and runs[-1][0] == what else i
        runs.append((what, start, i + 1))
    return runs


def _kinds(completion: str, one: Rendered) -> list[str]:
    """Label of each token: a text of the completion, its tool calls, or the template's own output."""
    parts, ends, total = completion_parts(completion), [], 0
    for part in parts:
        total += len(part.text.encode())
        ends.append(total)
    kinds, before = [], 0
    for i, end in enumerate(one.byte_ends.tolist()):
        at = bisect_left(ends, end)
        if one.scored is not None and not one.scored[i]:
            kinds.append("context, not scored")
        elif end > 0 and parts[at].kind == "calls" and (end > before or kinds[-1].endswith("tool calls")):
            kinds.append("scored, tool calls")
        elif end > before:
            kinds.append(f"scored, {parts[at].kind}")
        else:
            kinds.append("scored, written by the template")
        before = end
    return kinds


def _block(
    title: str, renderer: Renderer, ids: Sequence[int], ends: Sequence[int] | None, width: int, color: str, each: bool
) -> Iterator[str]:
    yield f"  {title} ({len(ids):,} tokens)"
    texts = [token_text(one) for one in renderer.token_bytes(ids)]
    if each:
        where = [""] * len(ids) if ends is None else [f"ends at byte {end}" for end in ends]
        lines = [f"{one:>8}  {text:<24} {at}".rstrip() for one, text, at in zip(ids, texts, where, strict=True)]
    else:
        lines = list(_wrapped(texts, width - 4))
    off = _OFF if color else ""
    yield from (f"    {color}{line}{off}" for line in lines)


def token_text(token: bytes) -> str:
    """Printable text of a token on one line; incomplete UTF-8 in hexadecimal."""
    text = token.decode("utf-8", errors="surrogateescape")
    shown = "".join(
        _SHOWN.get(char, f"<{ord(char) - 0xDC00:02X}>" if "\udc80" <= char <= "\udcff" else char) for char in text
    )
    return printable(shown)


def _wrapped(tokens: Sequence[str], width: int) -> Iterator[str]:
    line, used = "", 0
    for token in tokens:
        for part in _pieces(token + "│", width):
            columns = _columns(part)
            if used and used + columns > width:
                yield line
                line, used = "", 0
            line, used = line + part, used + columns
    if line:
        yield line.removesuffix("│")


def _pieces(text: str, width: int) -> Iterator[str]:
    """Split a text that is wider than a line."""
    while _columns(text) > width:
        yield text[: width // 2]
        text = text[width // 2 :]
    yield text


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
