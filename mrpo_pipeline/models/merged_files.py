"""Files of a merged checkpoint besides its weights: configuration, tokenizer, template, processor, code, licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrpo_pipeline.models.files import read_config

# A tokenizer can be made from any one of these files.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
    "*.bpe",
)
_TOKENIZER = (
    *_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
_PROCESSOR = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
)
_BASE = (*_TOKENIZER, *_PROCESSOR, "*.json", "*.txt", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "**/*.py")
# They describe other weights than those written, or a training run.
_LEFT_OUT = (
    "config.json",
    "*.index.json",
    "adapter_config.json",
    "params.json",
    "trainer_state.json",
    "*_results.json",
    "quantize_config.json",
)
# Changed by loading, not by merging; the dtype is written separately.
_ASIDE = {"transformers_version", "dtype", "torch_dtype", "architectures", "auto_map"}


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer can be made from the folder's own files."""
    return next(_files(folder, _VOCABULARIES), None) is not None


def copy_files(base: Path, tokenizer: Path | None, output: Path) -> None:
    """Copy the files that a loader of the model needs besides weights and configuration, unchanged.

    Args:
        base: the base model's folder. tokenizer: a folder whose tokenizer files replace the base's; if it has a template
            only, this replaces the base's.
    """
    chosen = {path.relative_to(base): path for path in _files(base, _BASE)}
    if tokenizer is not None:
        own = {path.relative_to(tokenizer): path for path in _files(tokenizer, (*_TOKENIZER, *_PROCESSOR, "*.py"))}
        if has_tokenizer(tokenizer):
            kept = _VOCABULARIES[1:] if _same_vocabulary(base, tokenizer) else ()
            replaced = {path.relative_to(base) for path in _files(base, _TOKENIZER)}
            replaced -= {path.relative_to(base) for path in _files(base, kept)}
            chosen = {name: path for name, path in chosen.items() if name not in replaced}
        if Path("chat_template.jinja") in own:
            chosen.pop(Path("chat_template.json"), None)
        chosen |= own
    for name, path in chosen.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, output / name)


def write_config(model: Any, base: Path, before: Mapping[str, Any], dtype: str, output: Path) -> None:
    """Write the base's `config.json` with the changes by merging: ties, vocabulary, layers, dtype.

    Its other keys are unchanged, so that any program that loads the base loads the merged model. If transformers loads
    another kind of model than the file names (the language model of a larger one), the loaded configuration is written.

    Args:
        before: the base's configuration as transformers reads it. dtype: of the merged weights.
    """
    document = read_config("the base model", base / "config.json") or {}
    after = model.config.to_dict()
    if document.get("model_type", after.get("model_type")) != after.get("model_type"):
        model.config.to_json_file(output / "config.json", use_diff=True)
        return
    _take_over(document, before, after)
    _set_dtype(document, dtype)
    if not document.get("architectures"):
        document["architectures"] = [type(model).__name__]
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (output / "config.json").write_text(text, encoding="utf-8")


def _take_over(document: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for key, value in after.items():
        if key in _ASIDE or key.startswith("_") or before.get(key) == value:
            continue
        inner = document.get(key)
        if isinstance(value, dict) and isinstance(before.get(key), dict) and isinstance(inner, dict):
            _take_over(inner, before[key], value)
        else:
            document[key] = value


def _set_dtype(document: dict[str, Any], dtype: str) -> None:
    for key, value in document.items():
        if isinstance(value, dict):
            _set_dtype(value, dtype)
        elif key in ("dtype", "torch_dtype") and isinstance(value, str):
            document[key] = dtype


def _files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not hidden and not any(path.match(other) for other in _LEFT_OUT):
                yield path


def _same_vocabulary(base: Path, other: Path) -> bool:
    """Whether both tokenizers have the same vocabulary, so that the base's other vocabulary files are valid for both."""
    paths = [folder / "tokenizer.json" for folder in (base, other)]
    if not all(path.is_file() for path in paths):
        return False
    contents = [path.read_bytes() for path in paths]
    if contents[0] == contents[1]:
        return True
    try:
        models = [json.loads(content)["model"] for content in contents]
    except (ValueError, KeyError, TypeError):
        return False
    return all(models[0].get(key) == models[1].get(key) for key in ("type", "vocab", "merges"))
