"""Conversations for bench_templates: of every shape, plain ones from a file and hard ones of our own."""

from __future__ import annotations

import json
from pathlib import Path

Conversation = tuple[list[dict[str, str]], str]

_ANSWERS = (
    "Fine, thank you.",
    "ok",
    " leading space",
    "trailing space ",
    "\n\nnew lines first\n",
    "a list:\n\n- one\n- two\n\n\n",
    "def f(x):\n    return x + 1\n\n\nprint(f(2))\t# 3\r\n",
    "日本語と中文。한국어",
    "🎉👨‍👩‍👧‍👦 party 👍🏽!",
    "e\u0301clair naïve ½",
    "1234567890 3.14",
    "It's done.\n",
    "</p> <b>x</b> [1] {y}",
    "A:",
    "x",
    ".",
)
_NASTY = ("<|im_end|>", "</s> and <s>", "see <|eot_id|>", "[INST] no [/INST]", "<|user|>\nhi", "<|endoftext|>")
_THINKING = (
    "<think>\nLet me see.\n</think>\n\nYes.",
    "<think>\n\n</think>\n\nNo.",
    "<think>hm</think>short",
    "thinking about <think> tags",
)


def conversations(file: Path | None, count: int) -> list[Conversation]:
    """So many (prompt messages, answer): own ones first, then the file's chosen and rejected sides, whatever shape they have."""
    made: list[Conversation] = []
    for i, answer in enumerate((*_ANSWERS, *_NASTY, *_THINKING)):
        user = {"role": "user", "content": ("How are you?", "Write it.\n", "hi")[i % 3]}
        system = {"role": "system", "content": ("Be brief.", "You are a poet.\n\nRhyme.", "")[i % 3]}
        earlier = [{"role": "user", "content": "First question"}, {"role": "assistant", "content": "First answer."}]
        shapes = ([user], [system, user], [*earlier, user], [system, *earlier, user])
        made += [(shapes[i % 4], answer), (shapes[(i + 1) % 4], answer)]
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFirst answer."}
    made += [
        ([{"role": "user", "content": "First"}, thought, {"role": "user", "content": "Second"}], "Then."),
        ([{"role": "user", "content": ""}], "x"),
        ([{"role": "user", "content": "say <|im_start|>"}], "no"),
    ]
    if file is not None and len(made) < count:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            made += [(row["prompt"], row[side][0]["content"]) for side in ("chosen", "rejected")]
            if len(made) >= count:
                break
    return made[:count]
