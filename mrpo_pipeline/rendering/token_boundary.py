"""Boundary between prompt and completion, which no token may cross."""

import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from mrpo_pipeline.rendering.byte_offsets import components
from mrpo_pipeline.rendering.escaped_tokenizer import EscapedTokenizer

# Characters to encode before a completion, for tokenizers that prepend a space to each section of text.
_ANCHORS = ("\n", ".", "x", ")", "。")

Spans = list[tuple[int, int]]


class TokenBoundary:
    """Keeps the tokens of one tokenizer from crossing a position in the text.

    Args:
        backend: the tokenizer's JSON, decoded.
    """

    def __init__(self, backend: dict[str, Any]) -> None:
        self._normalizes = backend["normalizer"] is not None
        self._anchors = (*_ANCHORS, "") if _prefixes_space(backend) else ("",)

    def crossed(self, spans: Spans, text: str, at: int) -> bool:
        """Whether a token has characters from both sides of a position.

        Args:
            spans: (T,) char offsets of all tokens.
            text: the encoded text.
            at: char index of the position.
        """
        split = first_from(spans, at)
        if split and spans[split - 1][1] > at:
            return True
        # Offsets do not show a combining mark that normalization joins with the character before it.
        left, right = text[at - 1 : at], text[at : at + 1]
        if not self._normalizes or right.isascii() or not left:
            return False
        apart = unicodedata.normalize("NFKC", left) + unicodedata.normalize("NFKC", right)
        return unicodedata.normalize("NFKC", left + right) != apart

    def encode_apart(self, escaped: EscapedTokenizer, parts: Sequence[str]) -> tuple[list[int], Spans]:
        """Encode a text so that no token crosses the edges of its parts.

        Returns:
            ids of the escaped tokenizer, and their char offsets in the joined parts.
        """
        for anchor in self._anchors:
            starts: list[int] = []  # start of each part in the text with break characters
            text = ""
            for part in parts:
                text += escaped.break_char + anchor if starts else ""
                starts.append(len(text))
                text += part
            encoding = escaped.backend.encode(text, add_special_tokens=False)
            ids, spans, clean, shift = [], [], True, 0
            for i, start in enumerate(starts):
                first = first_from(encoding.offsets, start) if i else 0
                # No token may cross from the anchor into the text.
                clean &= not i or encoding.offsets[first - 1][1] <= start
                end = start + len(parts[i])
                last = len(encoding.ids) if i == len(parts) - 1 else encoding.ids.index(escaped.break_id, first)
                ids += encoding.ids[first:last]
                spans += [(a - start + shift, min(b, end) - start + shift) for a, b in encoding.offsets[first:last]]
                shift += len(parts[i])
            if clean:
                break
        return ids, spans


def first_from(spans: Sequence[tuple[int, int]], position: int) -> int:
    """Index of the first token that starts at `position` or later."""
    return bisect_left(spans, position, key=itemgetter(0))


def _prefixes_space(backend: dict[str, Any]) -> bool:
    """Whether a space is prepended to every section of text between added tokens, not only to the first."""
    return any(
        part["type"] == "Prepend"
        or part.get("add_prefix_space") is True
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") == "always")
        for part in components(backend["normalizer"]) + components(backend["pre_tokenizer"])
    )
