"""Copies of a tokenizer in which user text cannot become a control token.

Tokenizers parse control tokens anywhere in a text, so `<|im_end|>` in a user message would end that message. In the copy,
every control token is renamed to one private-use character. The template's own control strings are renamed to match
(`EscapedTokenizer.rename`), content is not. One encoding of the complete conversation then gives the ids that the model
expects, without control tokens from content.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering.byte_offsets import BYTE_PIECE, component_types, gpt2_alphabet
from mrpo_pipeline.rendering.vocabulary_reuse import on_vocabulary_of

_REASONING = re.compile("think|thought|reason", re.IGNORECASE)

# Plane 16 is for private use and rare in text. Names come from a block of it that the text does not use.
_PLANE = (0x100000, 0x10FFFE)


class EscapedTokenizer:
    """A copy with renamed control tokens and two further private-use characters (`break_char`, `mask_char`).

    Args:
        backend: the tokenizer's JSON (`Tokenizer.to_str()`), decoded; not changed. With `shared`, its vocabulary may lack.
        controls: strings of the added tokens that are control tokens.
        first: code point of the first of `len(controls) + 2` private-use characters to use.
        shared: `tokenizers.Tokenizer` whose vocabulary the copy uses; None if text may become a control token in it
            (`vocabulary_reuse.holds_no_control`).
    """

    def __init__(self, backend: dict[str, Any], controls: Sequence[str], first: int, shared: Any = None) -> None:
        from tokenizers import AddedToken, Tokenizer

        self.names = {control: chr(first + i) for i, control in enumerate(controls)}
        self.break_char = chr(first + len(controls))
        self.mask_char = chr(first + len(controls) + 1)
        self._strings = {name: control for control, name in self.names.items()} | {
            self.break_char: "",
            self.mask_char: "",
        }
        self.characters = re.compile(f"[{chr(first)}-{self.mask_char}]")
        self._controls = _alternatives(controls)
        # Start of every control string, including overlapping ones.
        self._starts = re.compile(f"(?={self._controls.pattern})(.)", re.DOTALL)

        if shared is None:
            self.backend = Tokenizer.from_str(json.dumps(self._renamed(backend), ensure_ascii=False))
        else:
            self.backend = on_vocabulary_of(shared, self._settings(backend))
        self.backend.add_special_tokens([AddedToken(self.break_char, special=True, normalized=False)])
        [self.break_id] = self.backend.encode(self.break_char, add_special_tokens=False).ids
        # The copy may renumber added tokens, so their original ids are looked up by name.
        if shared is None:
            size = max(self.backend.get_vocab(with_added_tokens=True).values()) + 1
        else:  # the ids of a shared vocabulary are dense
            size = (
                max(self.backend.get_vocab_size(with_added_tokens=False), *self.backend.get_added_tokens_decoder()) + 1
            )
        self.original_ids: npt.NDArray[np.int32] = np.arange(size, dtype=np.int32)
        for token in backend["added_tokens"]:
            clone_id = self.backend.token_to_id(self.names.get(token["content"], token["content"]))
            self.original_ids[clone_id] = token["id"]

    def _renamed(self, backend: dict[str, Any]) -> dict[str, Any]:
        model = dict(backend["model"])
        kept = text_pieces(backend, self.names)
        names = {control: name for control, name in self.names.items() if control not in kept}
        vocab = model["vocab"]
        if isinstance(vocab, dict):
            model["vocab"] = {names.get(piece, piece): i for piece, i in vocab.items()}
        else:  # Unigram pieces match text directly, "</s>" with the highest score
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
        if "merges" in model:
            model["merges"] = [[a, b] for a, b in model["merges"] if not (a in names or b in names or a + b in names)]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "dropout" in model:
            model["dropout"] = None  # encoding must be deterministic
        return {**self._settings(backend), "model": model}

    def _settings(self, backend: dict[str, Any]) -> dict[str, Any]:
        added = [{**t, "content": self.names.get(t["content"], t["content"])} for t in backend["added_tokens"]]
        # A post-processor would trim offsets and add tokens, which the renderer does itself.
        return {**backend, "added_tokens": added, "truncation": None, "padding": None, "post_processor": None}

    def mask(self, text: str) -> str:
        """Insert the mask character into every control string of content, so that `rename` ignores it."""
        return self._starts.sub(lambda match: match[1] + self.mask_char, text)

    def rename(self, text: str) -> str:
        """Replace the control strings of rendered text by their private names, and unmask content."""
        return self.unmask(self._controls.sub(lambda match: self.names[match[0]], text))

    def mask_escaped(self, text: str) -> bool:
        """Whether the template escaped the mask character (`\\udbff…`), as ASCII JSON and Python's repr do; it cannot be removed."""
        return any(form[1:-1] in text for form in (json.dumps(self.mask_char), ascii(self.mask_char)))

    def unmask(self, text: str) -> str:
        return text.replace(self.mask_char, "")

    def original(self, renamed: str) -> str:
        """Inverse of `rename`."""
        return self.characters.sub(lambda match: self._strings[match[0]], renamed)


class EscapedTokenizers:
    """Escaped copies of one tokenizer: usually one, and another if a text contains private-use characters of the first."""

    def __init__(self, backend: dict[str, Any], controls: Iterable[str], shared: Any = None) -> None:
        self.controls = tuple(sorted(controls, key=lambda control: (-len(control), control)))
        self._backend = backend
        self._shared = shared
        self._tokenizers: list[EscapedTokenizer] = []
        self._pattern = _alternatives(self.controls)
        self._private = re.compile(f"[{chr(_PLANE[0])}-{chr(_PLANE[1])}]")

    def control_strings(self, text: str) -> list[str]:
        """Distinct control strings in the text, in order of appearance."""
        return list(dict.fromkeys(self._pattern.findall(text)))

    def holds_control(self, text: str) -> bool:
        return self._pattern.search(text) is not None

    def for_texts(self, *texts: str) -> EscapedTokenizer:
        """A copy whose private-use characters do not occur in the texts.

        Raises:
            UserError: the texts use characters of every block.
        """
        if all(text.isascii() or not self._private.search(text) for text in texts):
            return self._at(0)
        width = len(self.controls) + 2
        for index in range((_PLANE[1] - _PLANE[0]) // width):
            first = _PLANE[0] + index * width
            block = re.compile(f"[{chr(first)}-{chr(first + width - 1)}]")
            if not any(block.search(text) for text in texts):
                return self._at(index)
        raise UserError(
            f"A conversation uses private-use characters (U+100000 and up) throughout their range, but rendering needs {width} unused "
            "ones. Remove these characters from the data."
        )

    def _at(self, index: int) -> EscapedTokenizer:
        first = _PLANE[0] + index * (len(self.controls) + 2)
        for escaped in self._tokenizers:
            if escaped.break_char == chr(first + len(self.controls)):
                return escaped
        self._tokenizers.append(EscapedTokenizer(self._backend, self.controls, first, self._shared))
        return self._tokenizers[-1]


def _alternatives(strings: Sequence[str]) -> re.Pattern[str]:
    """Leftmost-longest match, as in the tokenizer's search for added tokens."""
    ordered = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")


def control_tokens(backend: dict[str, Any], named: Iterable[str], written: str = "") -> set[str]:
    """Strings of the control tokens: added tokens marked special, and the tokenizer's named tokens (eos, pad, …).

    Single characters, white space, and tokens of letters and digits only are text with an id of its own, not control
    tokens, unless they occur in `written`. Pairs of reasoning tags (`<think>`, `[/THINK]`) are not control tokens either:
    models write them in answers, where templates look for them.

    Args:
        backend: the tokenizer's JSON, decoded.
        named: named tokens of the tokenizer.
        written: the template's own output in a conversation, with BOS and EOS.
    """
    named = set(named)
    added = [token["content"] for token in backend["added_tokens"] if token["special"] or token["content"] in named]
    every = {token["content"] for token in backend["added_tokens"]}
    tags = {content for content in added if _REASONING.search(content) and _partner(content) & every}
    return {content for content in added if not _is_text(content, written)} - tags


def _is_text(content: str, written: str) -> bool:
    core = content.replace("▁", " ").strip()
    return len(core) <= 1 or (core.isalnum() and content not in written)


def text_pieces(backend: dict[str, Any], controls: Iterable[str]) -> list[str]:
    """Control tokens whose vocabulary entry represents other text than their own string, in order."""
    fallback = bool(backend["model"].get("byte_fallback"))
    byte_level = "ByteLevel" in component_types(backend["pre_tokenizer"]) + component_types(backend["normalizer"])
    encoded = {char for char in gpt2_alphabet() if not char.isascii()} if byte_level else set()
    return [one for one in controls if (fallback and BYTE_PIECE.fullmatch(one)) or not encoded.isdisjoint(one)]


def role_markers(backend: dict[str, Any], scaffold: str) -> set[str]:
    """Added tokens that a template writes between turns without being marked special (DeepSeek's `<｜User｜>`).

    Paired tags (`<think>`, `</think>`) are part of answers and not turn markers.
    """
    contents = {token["content"] for token in backend["added_tokens"] if not token["special"]}
    markers = set()
    for content in contents:
        wordlike = content[:1].isalnum() or content[-1:].isalnum() or len(content) < 3 or content.split() != [content]
        if content in scaffold and not wordlike and not _partner(content) & contents:
            markers.add(content)
    return markers


def _partner(tag: str) -> set[str]:
    """The opening or closing counterpart of a tag: `<x>` and `</x>`, `[X]` and `[/X]`, `◁x▷` and `◁/x▷`."""
    opens, name = tag[:1], tag[1:]
    return {opens + name[1:]} if name.startswith("/") else {f"{opens}/{name}"}
