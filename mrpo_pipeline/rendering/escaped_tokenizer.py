"""Clones of a tokenizer in which no text of a user can become a control token.

A control token is parsed from text wherever its string stands, so `<|im_end|>` in a user's message would end that
message. In the clone every control token has another name, one private-use character; the template's own control
strings are renamed to match (`PrivateClone.rename`), content is not. One contiguous encoding of the whole conversation
then gives the ids the model would see, and content cannot reach a control token.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering.byte_offsets import BYTE_PIECE, component_types, gpt2_alphabet

_REASONING = re.compile("think|thought|reason", re.IGNORECASE)

# Plane 16 is private use and hardly met in text. Names come from a block of it that the text at hand does not touch.
_PLANE = (0x100000, 0x10FFFE)


class PrivateClone:
    """One clone: the renamed backend, the names, and two characters of its own (`seam`, `mask`).

    Args:
        backend: the tokenizer's JSON (`Tokenizer.to_str()`), decoded; not changed.
        controls: strings of its added tokens that are control tokens.
        first: code point of the first of `len(controls) + 2` private-use characters to use.
    """

    def __init__(self, backend: dict[str, Any], controls: Sequence[str], first: int) -> None:
        from tokenizers import AddedToken, Tokenizer

        self.names = {control: chr(first + i) for i, control in enumerate(controls)}
        self.seam = chr(first + len(controls))
        self.mask_char = chr(first + len(controls) + 1)
        self._strings = {name: control for control, name in self.names.items()} | {self.seam: "", self.mask_char: ""}
        self.characters = re.compile(f"[{chr(first)}-{self.mask_char}]")
        self._controls = _alternatives(controls)
        # Every place where a control string starts, overlapping ones too.
        self._starts = re.compile(f"(?={self._controls.pattern})(.)", re.DOTALL)

        self.backend = Tokenizer.from_str(json.dumps(self._renamed(backend), ensure_ascii=False))
        self.backend.add_special_tokens([AddedToken(self.seam, special=True, normalized=False)])
        [self.seam_id] = self.backend.encode(self.seam, add_special_tokens=False).ids
        # The clone may number added tokens anew: their original ids are found by name.
        size = max(self.backend.get_vocab(with_added_tokens=True).values()) + 1
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
        else:  # Unigram: its pieces match text directly, "</s>" with the best score of all
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
        if "merges" in model:
            model["merges"] = [m for m in model["merges"] if not names.keys() & {m[0], m[1], m[0] + m[1]}]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "dropout" in model:
            model["dropout"] = None  # the same text must give the same ids
        added = [{**t, "content": self.names.get(t["content"], t["content"])} for t in backend["added_tokens"]]
        # No post-processor: it would trim offsets, and add tokens that the renderer accounts for itself.
        return {
            **backend,
            "added_tokens": added,
            "model": model,
            "truncation": None,
            "padding": None,
            "post_processor": None,
        }

    def mask(self, text: str) -> str:
        """Break every control string in content, so that `rename` passes over it."""
        return self._starts.sub(lambda match: match[1] + self.mask_char, text)

    def rename(self, text: str) -> str:
        """Give the control strings of rendered text their private names, and unmask content."""
        return self.unmask(self._controls.sub(lambda match: self.names[match[0]], text))

    def mask_escaped(self, text: str) -> bool:
        """Whether a template wrote the mask as an escape (`\\udbff…`), as JSON in ASCII and Python's own form do: it stays there."""
        return any(form[1:-1] in text for form in (json.dumps(self.mask_char), ascii(self.mask_char)))

    def unmask(self, text: str) -> str:
        return text.replace(self.mask_char, "")

    def original(self, renamed: str) -> str:
        """Renamed text with the control strings themselves."""
        return self.characters.sub(lambda match: self._strings[match[0]], renamed)


class CloneSet:
    """The clones of one tokenizer: nearly always one, another where a text holds the first one's private characters."""

    def __init__(self, backend: dict[str, Any], controls: Iterable[str]) -> None:
        self.controls = tuple(sorted(controls, key=lambda control: (-len(control), control)))
        self._backend = backend
        self._clones: list[PrivateClone] = []
        self._pattern = _alternatives(self.controls)
        self._private = re.compile(f"[{chr(_PLANE[0])}-{chr(_PLANE[1])}]")

    def control_strings(self, text: str) -> list[str]:
        """The control strings that stand in the text, each once, in order of appearance."""
        return list(dict.fromkeys(self._pattern.findall(text)))

    def holds_control(self, text: str) -> bool:
        return self._pattern.search(text) is not None

    def clone_for(self, *texts: str) -> PrivateClone:
        """A clone none of whose private characters stands in the texts.

        Raises:
            UserError: the texts use every block of private characters.
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
            "A conversation uses private-use characters (U+100000 and up) all over their range, and rendering needs "
            f"{width} of them that the text does not hold: take these characters out of the data."
        )

    def _at(self, index: int) -> PrivateClone:
        first = _PLANE[0] + index * (len(self.controls) + 2)
        for clone in self._clones:
            if clone.seam == chr(first + len(self.controls)):
                return clone
        self._clones.append(PrivateClone(self._backend, self.controls, first))
        return self._clones[-1]


def _alternatives(strings: Sequence[str]) -> re.Pattern[str]:
    """Leftmost, then longest: what the tokenizer's own search for added tokens does."""
    ordered = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")


def control_tokens(backend: dict[str, Any], named: Iterable[str], written: str = "") -> set[str]:
    """Strings of the control tokens: added tokens marked special, and those the tokenizer names (eos, pad, …).

    A token of one character, of white space, or of letters and digits alone is text that was given an id of its own:
    renaming it would take that text from the data, so it is left alone, unless it stands in `written`. Nor is a pair of tags round
    reasoning (`<think>`, `[/THINK]`): models write them in their answers, and templates look for them there.

    Args:
        backend: the tokenizer's JSON, decoded.
        named: the tokens that the tokenizer names.
        written: what the template writes round the contents of a conversation, and the tokens that start and end a text.
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
    """Control tokens whose piece of the vocabulary stands for other text than the token's own string, in order."""
    fallback = bool(backend["model"].get("byte_fallback"))
    byte_level = "ByteLevel" in component_types(backend["pre_tokenizer"]) + component_types(backend["normalizer"])
    encoded = {char for char in gpt2_alphabet() if not char.isascii()} if byte_level else set()
    return [one for one in controls if (fallback and BYTE_PIECE.fullmatch(one)) or not encoded.isdisjoint(one)]


def role_markers(backend: dict[str, Any], scaffold: str) -> set[str]:
    """Added tokens that a template writes between turns though they are not marked special (DeepSeek's `<｜User｜>`).

    Tags that come in pairs (`<think>`, `</think>`) are what models write in their answers, not turn markers.
    """
    contents = {token["content"] for token in backend["added_tokens"] if not token["special"]}
    markers = set()
    for content in contents:
        wordlike = content[:1].isalnum() or content[-1:].isalnum() or len(content) < 3 or content.split() != [content]
        if content in scaffold and not wordlike and not _partner(content) & contents:
            markers.add(content)
    return markers


def _partner(tag: str) -> set[str]:
    """The other of a pair of tags, in the ways it is written: `<x>` and `</x>`, `[X]` and `[/X]`, `◁x▷` and `◁/x▷`."""
    opens, name = tag[:1], tag[1:]
    return {opens + name[1:]} if name.startswith("/") else {f"{opens}/{name}"}
