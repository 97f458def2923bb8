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

    def crossed(self, spans: Spans, split: int, before: str, after: str) -> bool:
        """Whether a token holds characters from both sides.

        Args:
            spans: (T,) char offsets of all tokens.
            split: index of the first token that starts at the seam or later.
            before, after: the text on either side.
        """
        if split and spans[split - 1][1] > len(before):
            return True
        # Offsets do not show it where normalisation joins the first mark behind the seam to the character before.
        left, right = before[-1:], after[:1]
        if not self._normalizes or right.isascii() or not left:
            return False
        apart = unicodedata.normalize("NFKC", left) + unicodedata.normalize("NFKC", right)
        return unicodedata.normalize("NFKC", left + right) != apart

    def encode_apart(self, clone: PrivateClone, before: str, after: str) -> tuple[list[int], list[int], Spans, int]:
        """Encode with a break at the seam.

        Returns:
            Clone ids before it; clone ids behind it, their char offsets, and the offset at which `after` starts.
        """
        for anchor in self._anchors:
            head = before + clone.seam + anchor
            encoding = clone.backend.encode(head + after, add_special_tokens=False)
            ids, spans = encoding.ids, encoding.offsets
            split = first_from(spans, len(head))
            if spans[split - 1][1] <= len(head):  # nothing reaches from the anchor into the text behind it
                break
        return ids[: ids.index(clone.seam_id)], ids[split:], spans[split:], len(head)


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
