"""Tokenizers on one vocabulary in memory, and a tokenizer loaded again without parsing more than `tokenizer.json`.

Parsing a vocabulary of 262,144 tokens takes 0.8 CPU seconds and 290 MB, and transformers parses it several times. `tokenizers` lets
tokenizers share a vocabulary, so the escaped copy uses that of the model if no text can become a control token in it. What
transformers adds to the file (settings, named tokens) is recorded once, if the file's tokenizer with these settings is equal to the
one that transformers loads.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

_VOCABULARY = ("vocab", "merges")
_COMPONENTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_ADDED = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerRecord:
    """What loading a model's tokenizer again needs besides the vocabulary in `tokenizer.json`; JSON types only.

    Attributes:
        settings: the tokenizer's JSON without its vocabulary.
        named: named tokens, further special tokens and chat template of the transformers tokenizer.
    """

    settings: dict[str, Any]
    named: dict[str, Any]

    def load(self, file: Any) -> Any:
        """The transformers tokenizer. Args: `file`: `tokenizers.Tokenizer` of the model's `tokenizer.json`."""
        from transformers import PreTrainedTokenizerFast

        class SharedTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
            """Uses the given tokenizer, of which `PreTrainedTokenizerFast` makes a copy."""

            def __init__(self, backend: Any, /, **named: Any) -> None:
                self._tokenizer = backend
                super().__init__(**named)

        return SharedTokenizer(on_vocabulary_of(file, self.settings), **self.named)


def record(tokenizer: Any, settings: dict[str, Any], file: Any) -> TokenizerRecord | None:
    """The record of a tokenizer; None if loading by it would give another tokenizer.

    Args:
        tokenizer: transformers tokenizer.
        settings: its JSON without its vocabulary.
        file: `tokenizers.Tokenizer` of the model's `tokenizer.json`.
    """
    from transformers import PreTrainedTokenizerBase

    if file is None or settings["model"]["type"] != "BPE":  # others cannot be made without a vocabulary
        return None
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        return None
    made = TokenizerRecord(settings, _named(tokenizer))
    try:
        again = TokenizerRecord(**json.loads(json.dumps(asdict(made)))).load(file)
        theirs, ours = tokenizer.backend_tokenizer, again.backend_tokenizer
        if theirs.truncation:
            ours.enable_truncation(**theirs.truncation)
        if theirs.padding:
            ours.enable_padding(**theirs.padding)
        same = _named(again) == made.named and again("x").input_ids == tokenizer("x").input_ids
    except Exception:  # of any type, for settings that only the tokenizer's own class takes
        return None
    return made if same and ours.to_str() == theirs.to_str() else None


def without_vocabulary(backend: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's JSON without vocabulary, merges, truncation and padding."""
    model = {key: value for key, value in backend["model"].items() if key not in _VOCABULARY}
    return {**backend, "model": model, "truncation": None, "padding": None}


def on_vocabulary_of(tokenizer: Any, settings: dict[str, Any]) -> Any:
    """A `tokenizers.Tokenizer` with other settings on the vocabulary of a BPE tokenizer. Args: see `without_vocabulary`."""
    from tokenizers import AddedToken, Tokenizer

    empty = {
        **settings,
        "added_tokens": [],
        "model": {**settings["model"], "vocab": {}, "merges": [], "unk_token": None},
    }
    shell = Tokenizer.from_str(json.dumps(empty))
    made = Tokenizer(tokenizer.model)
    for component in _COMPONENTS:
        if (value := getattr(shell, component)) is not None:
            setattr(made, component, value)
    added = sorted(settings["added_tokens"], key=lambda token: int(token["id"]))
    made.add_tokens([AddedToken(token["content"], **{key: token[key] for key in _ADDED}) for token in added])
    return made


def holds_no_control(backend: dict[str, Any], controls: Collection[str]) -> bool:
    """Whether no text becomes one of these pieces of the vocabulary without being an added token.

    That holds if the vocabulary lacks them, or if it is of BPE and no merge makes or uses them. They must then be found anywhere in
    a text (not as single words, nor in normalized text only), as what is not found is read by the vocabulary. Ids must be dense, so
    that a tokenizer with more added tokens does not use an id twice.

    Args:
        backend: the tokenizer's JSON, decoded.
        controls: strings of the control tokens.
    """
    model = backend["model"]
    if model["type"] != "BPE" or model.get("dropout") or max(model["vocab"].values(), default=0) >= len(model["vocab"]):
        return False
    held = {control for control in controls if control in model["vocab"]}
    if not held:
        return True
    if model.get("ignore_merges") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    for token in backend["added_tokens"]:
        if token["content"] in held and (token["single_word"] or (token["normalized"] and backend["normalizer"])):
            return False
    return min(map(len, held)) > 1 and not any(a in held or b in held or a + b in held for a, b in model["merges"])


def _named(tokenizer: Any) -> dict[str, Any]:
    return {
        **tokenizer.special_tokens_map,
        "extra_special_tokens": [str(token) for token in tokenizer.extra_special_tokens],
        "chat_template": tokenizer.chat_template,
    }
