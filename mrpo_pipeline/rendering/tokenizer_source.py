"""Which tokenizer and chat template a model reads text by: those that are named, else its adapter's, else its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import download, is_folder, is_hub_name, locate, no_folder, read_config
from mrpo_pipeline.rendering.tokenizer import load_fast

_SETTINGS = "tokenizer_config.json"
# Files that hold a vocabulary, by the names that tokenizer classes give them.
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
    """Whether a tokenizer can be loaded from the folder: its settings alone do not do."""
    return any(path.name != _SETTINGS for pattern in _VOCABULARIES for path in folder.glob(pattern) if path.is_file())


def load_tokenizer(
    model: str,
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
    adapter: str | None = None,
    trust_remote_code: bool = False,
    name: str = "",
) -> tuple[Any, list[str]]:
    """The tokenizer as transformers loads it, its ``chat_template`` set to the one that ``template: auto`` means.

    An adapter's folder that brings a tokenizer or a chat template was trained with them: they are used in place of the model's,
    unless ``tokenizer`` names another.

    Returns:
        the tokenizer, and what a user should know of where it comes from.

    Raises:
        UserError: for a folder without a tokenizer, and for an adapter's tokenizer that gives the model's tokens other ids.
    """
    name = name or model
    if adapter is None or tokenizer is not None:
        source = tokenizer or model
        return _load(source, None if tokenizer else revision, trust_remote_code, name)
    folder = _adapter_folder(adapter, name)
    if not holds_vocabulary(folder):
        own, notices = _load(model, revision, trust_remote_code, name)
        template = _template_of(folder, own, adapter, name)
        if template is None or template == own.chat_template:
            return own, notices
        own.chat_template = template
        return own, [*notices, f"its chat template is that of its adapter {adapter}"]
    brought, notices = _load(str(folder), None, trust_remote_code, name)
    base = locate(model, revision)
    if base is None or not holds_vocabulary(base):
        return brought, [*notices, f"its tokenizer is that of its adapter {adapter}"]
    own, _ = _load(model, revision, trust_remote_code, name)
    _require_same_ids(own, brought, adapter, name)
    if brought.chat_template is None:
        brought.chat_template = own.chat_template
    elif brought.chat_template != own.chat_template:
        instead = "" if own.chat_template is None else ", which differs from the model's own"
        notices.append(f"its chat template is that of its adapter {adapter}{instead}")
    added = len(brought) - len(own)
    if added > 0:
        notices.append(f"its tokenizer is that of its adapter {adapter}, with {added:,} more tokens than the model's")
    return brought, notices


def _load(source: str, revision: str | None, trust_remote_code: bool, name: str) -> tuple[Any, list[str]]:
    folder = locate(source, revision)
    if folder is not None:  # files that are there and no JSON are reported by name
        for file in ("config.json", _SETTINGS):
            read_config(name, folder / file)
        if is_folder(source) and not holds_vocabulary(folder):
            raise UserError(
                f"The folder {source} of {name} holds no tokenizer: expected tokenizer.json (or tokenizer.model, vocab.json) beside "
                f"the weights. Copy tokenizer.json, {_SETTINGS} and chat_template.jinja from the model that it was made from, or "
                "name that model as `tokenizer:` of this one."
            )
    return load_fast(source, revision, trust_remote_code, name)


def _adapter_folder(adapter: str, name: str) -> Path:
    if is_folder(adapter):
        return Path(adapter).expanduser()
    if not is_hub_name(adapter):
        raise no_folder(name, "adapter", adapter)
    return download(name, "adapter", adapter, None)  # files that an earlier command did not need may be absent here


def _template_of(folder: Path, own: Any, adapter: str, name: str) -> str | None:
    """The chat template of a folder without a vocabulary; None where it brings none."""
    settings = read_config(name, folder / _SETTINGS) or {}
    for token in ("bos_token", "eos_token"):
        said = settings.get(token)
        said = said.get("content") if isinstance(said, dict) else said
        if isinstance(said, str) and said != getattr(own, token):
            raise UserError(
                f"The adapter {adapter} of {name} brings {_SETTINGS} without a tokenizer, and names {said!r} as {token} where the "
                f"model's is {getattr(own, token)!r}: expected one answer. Name the tokenizer as `tokenizer:` of this model."
            )
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise UserError(
            f"The adapter {adapter} of {name} brings several chat templates: expected one. Give a Jinja file as `template`."
        )
    return template


def _require_same_ids(own: Any, brought: Any, adapter: str, name: str) -> None:
    vocabulary = brought.get_vocab()
    other = [token for token, number in own.get_vocab().items() if vocabulary.get(token, number) != number]
    if other:
        raise UserError(
            f"The adapter {adapter} of {name} brings a tokenizer that gives {len(other):,} of the model's tokens other ids "
            f"({other[0]!r}: {vocabulary[other[0]]:,} instead of {own.get_vocab()[other[0]]:,}): expected the model's tokenizer, or "
            "that with added tokens. Name the one to use as `tokenizer:` of this model."
        )
