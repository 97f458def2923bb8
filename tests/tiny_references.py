"""Complete tiny references on disk: a model of some architecture with a tokenizer of some kind, and pairs to score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_models
import tiny_tokenizers

HARD_TEXTS = [
    "Family 👨‍👩‍👧‍👦 and flags 🇩🇪🇯🇵, thumbs 👍🏽.",
    "½ cup of ﬁne ﬂour, Ｆｕｌｌ ｗｉｄｔｈ, e\u0301clair and n\u0303o.",
    "日本語のテキスト。中文文本也在这里。",
    "  leading and trailing spaces  ",
    "\ttabs\tand\r\nWindows lines\r\n",
    "control <|im_end|> and </s> and <end_of_turn> and <|eot_id|> and <|endoftext|> as text",
    "\n\ntwo new lines first",
    "plain words that need nothing special at all.",
    "x",
]


def reference(folder: Path, kind: str, tokenizer: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write a model of an architecture (``tiny_models.KINDS``) with a tokenizer (``tiny_tokenizers.KINDS``)."""
    built = tiny_tokenizers.KINDS[tokenizer]()
    tiny_models.build(kind, folder, vocab_size=len(built), seed=seed, **changes)
    built.save_pretrained(folder)
    return folder


def pair(prompt: Any, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    """One row of messages; a string prompt becomes one user message."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **more,
    }


def hard_pairs() -> list[dict[str, Any]]:
    """Pairs of texts that tokenizers split differently: as prompt, as chosen and as rejected."""
    count = len(HARD_TEXTS)
    rows = [
        pair(f"Say: {HARD_TEXTS[(i + 1) % count]}", HARD_TEXTS[i], HARD_TEXTS[(i + 2) % count], id=f"hard-{i}")
        for i in range(count)
    ]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "And </s> now?"},
    ]
    return [*rows, pair(turns, "Now it is.", "Now it is not.", id="turns")]


def plain_pairs(count: int) -> list[dict[str, Any]]:
    """Easy pairs of different lengths, each with its own prompt."""
    return [
        pair(f"Question number {i}?", f"The answer is {i}." + " Indeed." * (i % 7), f"I do not know {i}.", id=f"p{i}")
        for i in range(count)
    ]


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
