"""The seam between prompt and completion: no token may reach across it."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from mrpo_pipeline.rendering.byte_offsets import components
from mrpo_pipeline.rendering.escaped_tokenizer import PrivateClone

# What a completion is encoded behind, where its tokenizer puts a space before whatever starts a stretch of text.
_ANCHORS = ("\n", ".", "x", ")", "。")

Spans = list[tuple[int, int]]


class Seam:
    """How one tokenizer's tokens are kept from reaching across a place in the text.

    Args:
        backend: the tokenizer's JSON, decoded.
    """

    def __init__(self, backend: dict[str, Any]) -> None:
        self._normalizes = backend["normalizer"] is not None
        self._anchors = (*_ANCHORS, "") if _prefixes_space(backend) else ("",)

    def crossed(self, spans: Spans, text: str, at: int) -> bool:
        """Whether a token holds characters from both sides of a place in the text.

        Args:
            spans: (T,) char offsets of all tokens.
            text: what was encoded.
            at: the place, a char index.
        """
        split = first_from(spans, at)
        if split and spans[split - 1][1] > at:
            return True
        # Offsets do not show it where normalisation joins the first mark behind the seam to the character before.
        left, right = text[at - 1 : at], text[at : at + 1]
        if not self._normalizes or right.isascii() or not left:
            return False
        apart = unicodedata.normalize("NFKC", left) + unicodedata.normalize("NFKC", right)
        return unicodedata.normalize("NFKC", left + right) != apart

    def encode_apart(self, clone: PrivateClone, parts: Sequence[str]) -> tuple[list[int], Spans]:
        """Encode a text with a break between its parts.

        Returns:
            Clone ids and their char offsets in the parts joined.
        """
        for anchor in self._anchors:
            starts: list[int] = []  # of each part, in the text with breaks
            text = ""
            for part in parts:
                text += clone.seam + anchor if starts else ""
                starts.append(len(text))
                text += part
            encoding = clone.backend.encode(text, add_special_tokens=False)
            ids, spans, clean, shift = [], [], True, 0
            for i, start in enumerate(starts):
                first = first_from(encoding.offsets, start) if i else 0
                # Nothing may reach from the anchor into the text behind it.
                clean &= not i or encoding.offsets[first - 1][1] <= start
                end = start + len(parts[i])
                last = len(encoding.ids) if i == len(parts) - 1 else encoding.ids.index(clone.seam_id, first)
                ids += encoding.ids[first:last]
                spans += [(a - start + shift, min(b, end) - start + shift) for a, b in encoding.offsets[first:last]]
                shift += len(parts[i])
            if clean:
                break
        return ids, spans


def first_from(spans: Sequence[tuple[int, int]], position: int) -> int:
    """Index of the first token that starts at `position` or later."""
    low, high = 0, len(spans)
    while low < high:
        middle = (low + high) // 2
        if spans[middle][0] < position:
            low = middle + 1
        else:
            high = middle
    return low


def _prefixes_space(backend: dict[str, Any]) -> bool:
    """Whether a space is put before every stretch of text between added tokens, not only at the start of all."""
    for part in components(backend["normalizer"]) + components(backend["pre_tokenizer"]):
        if part["type"] == "Prepend" or part.get("add_prefix_space") is True:
            return True
        if part["type"] == "Metaspace" and part.get("prepend_scheme", "always") == "always":
            return True
    return False
