"""End of each token of a completion in UTF-8 bytes.

Char offsets are not enough: the byte tokens of an emoji share one range, and normalization shifts offsets. So the bytes of
the tokens are counted if they equal the bytes of the text; otherwise a token ends at the start of the next later-starting
token.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Byte-fallback pieces of SentencePiece.
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes of each token, decoded from its string and cached."""

    def __init__(self, backend: dict[str, Any], tokenizer: Any) -> None:
        """Args: the tokenizer's JSON, decoded; the `tokenizers.Tokenizer` that defines the ids."""
        kinds = set(component_types(backend.get("pre_tokenizer"))) | set(component_types(backend.get("decoder")))
        self._byte_of = gpt2_alphabet() if "ByteLevel" in kinds else None
        self._byte_fallback = bool(backend["model"].get("byte_fallback"))
        self._added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        self._string = tokenizer.id_to_token
        self._known: dict[int, bytes] = {}

    def of(self, ids: Sequence[int]) -> list[bytes]:
        known = self._known
        for token_id in ids:
            if token_id not in known:
                known[token_id] = self._bytes(self._string(token_id))
        return [known[token_id] for token_id in ids]

    def _bytes(self, token: str) -> bytes:
        if self._byte_fallback and (match := BYTE_PIECE.fullmatch(token)):
            return bytes([int(match[1], 16)])  # even if it is an added token
        if token in self._added:
            return token.encode()
        if self._byte_of is not None:
            try:
                return bytes(self._byte_of[char] for char in token)
            except KeyError:  # a piece outside the alphabet is literal text
                return token.encode()
        return token.replace("▁", " ").encode()


def byte_ends(
    content: str, spans: Sequence[tuple[int, int]], origin: int, pieces: Sequence[bytes], total: int
) -> npt.NDArray[np.int64]:
    """End of each content token in the UTF-8 bytes of `content`, non-decreasing.

    Args:
        content: text that the tokens cover.
        spans: (N,) char offsets (start, end) of the tokens; they may exceed the edges of `content`.
        origin: offset at which `content` starts.
        pieces: (N,) bytes of the tokens (`TokenBytes.of`).
        total: end of the last token; at least the bytes of `content` (more if white space was trimmed after it).
    Returns:
        (N,) byte ends; the last is `total`.
    """
    count = len(spans)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    encoded = content.encode()
    if b"".join(pieces) == encoded:
        result = np.cumsum(np.fromiter(map(len, pieces), dtype=np.int64, count=count))
        result[-1] = total
        return result

    at = _byte_positions(content, encoded)
    size = len(content)
    offsets = np.clip(np.asarray(spans, dtype=np.int64) - origin, 0, size)  # (N, 2)
    first, last = np.maximum.accumulate(offsets, axis=0).T
    later = np.searchsorted(first, first, side="right")  # index of the next later-starting token
    result = np.where(later < count, at[first[np.minimum(later, count - 1)]], total)

    # For a run of tokens that share characters, bytes are counted if they match the text.
    clean = np.concatenate(([True], first[1:] >= last[:-1]))
    edges = np.append(np.flatnonzero(clean), count)
    for i in np.flatnonzero(np.diff(edges) > 1):
        a, b = int(edges[i]), int(edges[i + 1])
        text, read = encoded[at[first[a]] : at[last[b - 1]]], b"".join(pieces[a:b])
        if read in (text, b" " + text):  # the tokenizer's prefix space is not in the text
            lengths = np.fromiter(map(len, pieces[a:b]), dtype=np.int64, count=b - a)
            counted = np.cumsum(lengths)[:-1] - (len(read) - len(text))
            result[a : b - 1] = np.where(counted > 0, at[first[a]] + counted, result[a : b - 1])
    result[-1] = total
    # A token with only a prefix space ends no later than the next token.
    return np.minimum.accumulate(result[::-1])[::-1]


def _byte_positions(text: str, encoded: bytes) -> npt.NDArray[np.int64]:
    """(len(text) + 1,) byte offset of every char boundary."""
    if len(encoded) == len(text):
        return np.arange(len(text) + 1, dtype=np.int64)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate(([0], np.cumsum(widths)))


def gpt2_alphabet() -> dict[str, int]:
    """Character → byte in the alphabet of GPT-2's `encoder.py`, which all byte-level BPE tokenizers use."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def component_types(component: Any) -> list[str]:
    """Types in a normalizer, pre-tokenizer or decoder of a tokenizer's JSON, with sequences flattened."""
    return [part["type"] for part in components(component)]


def components(component: Any) -> list[dict[str, Any]]:
    """Parts of a normalizer, pre-tokenizer or decoder of a tokenizer's JSON, with sequences flattened."""
    if component is None:
        return []
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in component:
            return [part for inner in component[key] for part in components(inner)]
    return [component]
