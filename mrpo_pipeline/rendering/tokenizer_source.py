"""Choose the tokenizer and chat template of a model: the configured ones, else its adapter's, else its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import download, is_folder, is_hub_name, locate, no_folder, read_config
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.rendering.tokenizer import load_fast

_SETTINGS = "tokenizer_config.json"
# Vocabulary files of the tokenizer classes.
_VOCABULARIES = (
    "tokenizer*.json",
    "*.model",
    "*.tiktoken",
    "vocab*",
    "*.vocab",
    "tekken.json",
    "merges.txt",
    "*.spm",
    "tokenization_*.py",
)


def holds_vocabulary(folder: Path) -> bool:
    """Whether a tokenizer can be loaded from the folder; its settings alone are not enough."""
    return any(path.name != _SETTINGS for pattern in _VOCABULARIES for path in folder.glob(pattern) if path.is_file())


def load_tokenizer(source: ModelSource) -> tuple[Any, list[str]]:
    """Load a tokenizer with transformers and set its ``chat_template`` to the one that ``template: auto`` means.

    An adapter was trained with the tokenizer and chat template in its folder, so they replace the model's unless ``tokenizer`` is set.

    Returns:
        the tokenizer, and notices about its origin.

    Raises:
        UserError: the folder has no tokenizer, or the adapter's tokenizer assigns other ids to tokens of the model.
    """
    model, revision, adapter, name = source.model, source.revision, source.adapter, source.name
    trust_remote_code = source.trust_remote_code
    if source.tokenizer is not None:
        return _load(source.tokenizer, None, trust_remote_code, name)
    if adapter is None:
        return _load(model, revision, trust_remote_code, name)
    folder = _adapter_folder(adapter, name)
    if not holds_vocabulary(folder):
        own, notices = _load(model, revision, trust_remote_code, name)
        template = _template_of(folder, own, adapter, name)
        if template is None or template == own.chat_template:
            return own, notices
        own.chat_template = template
        return own, [*notices, f"its chat template is from the adapter {adapter}"]
    brought, notices = _load(str(folder), None, trust_remote_code, name)
    base = locate(model, revision)
    if base is None or not holds_vocabulary(base):
        return brought, [*notices, f"its tokenizer is from the adapter {adapter}"]
    own, _ = _load(model, revision, trust_remote_code, name)
    _require_same_ids(own, brought, adapter, name)
    if brought.chat_template is None:
        brought.chat_template = own.chat_template
    elif brought.chat_template != own.chat_template:
        instead = "" if own.chat_template is None else " and differs from the model's own"
        notices.append(f"its chat template is from the adapter {adapter}{instead}")
    added = len(brought) - len(own)
    if added > 0:
        notices.append(f"its tokenizer is from the adapter {adapter}, with {added:,} more tokens than the model's")
    return brought, notices


def _load(source: str, revision: str | None, trust_remote_code: bool, name: str) -> tuple[Any, list[str]]:
    folder = locate(source, revision)
    if folder is not None:  # reports invalid JSON files by name
        for file in ("config.json", _SETTINGS):
            read_config(name, folder / file)
        if is_folder(source) and not holds_vocabulary(folder):
            raise UserError(
                f"The folder {source} of {name} has no tokenizer; expected tokenizer.json (or tokenizer.model, vocab.json). Copy "
                f"tokenizer.json, {_SETTINGS} and chat_template.jinja from its base model, or set `tokenizer:` to that model."
            )
    return load_fast(source, revision, trust_remote_code, name)


def _adapter_folder(adapter: str, name: str) -> Path:
    if is_folder(adapter):
        return Path(adapter).expanduser()
    if not is_hub_name(adapter):
        raise no_folder(name, "adapter", adapter)
    return download(name, "adapter", adapter, None)  # the cache may hold only a part of its files


def _template_of(folder: Path, own: Any, adapter: str, name: str) -> str | None:
    """Chat template of a folder without a vocabulary, or None."""
    settings = read_config(name, folder / _SETTINGS) or {}
    for token in ("bos_token", "eos_token"):
        value = settings.get(token)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and value != getattr(own, token):
            raise UserError(
                f"The adapter {adapter} of {name} has {_SETTINGS} but no tokenizer, and its {token} {value!r} differs from the model's "
                f"{getattr(own, token)!r}. Set `tokenizer:` of this model to the right tokenizer."
            )
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise UserError(
            f"The adapter {adapter} of {name} has several chat templates; expected one. Set `template` to a Jinja file."
        )
    return template


def _require_same_ids(own: Any, brought: Any, adapter: str, name: str) -> None:
    vocabulary = brought.get_vocab()
    other = [token for token, number in own.get_vocab().items() if vocabulary.get(token, number) != number]
    if other:
        raise UserError(
            f"The tokenizer of the adapter {adapter} of {name} assigns other ids to {len(other):,} tokens of the model "
            f"({other[0]!r}: {vocabulary[other[0]]:,} instead of {own.get_vocab()[other[0]]:,}); expected the model's tokenizer, with "
            "or without added tokens. Set `tokenizer:` of this model to the right one."
        )
