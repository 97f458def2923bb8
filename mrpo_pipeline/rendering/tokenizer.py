"""Load a model's tokenizer exactly as its files define it.

transformers chooses a class by model type and may rebuild the tokenizer: a byte-level `tokenizer.json` loaded as
`LlamaTokenizer` loses spaces and line breaks, and a `tekken.json` gives a tokenizer without offsets. So the loaded tokenizer is
compared with `tokenizer.json` on varied texts; if they differ, the file is used.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.checks import reason_of
from mrpo_pipeline.models.files import is_folder, is_hub_name, locate, read_config
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.rendering.template_source import MAX_TEMPLATE_BYTES

# Other files with a chat template: a processor's, or the model's tokenizer configuration if `tokenizer:` is set.
_TEMPLATE_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")

# One of these detects differences in spaces, line breaks, digits, scripts, normalization or byte fallback.
PROBES = (
    "Hello world, it's fine.\n",
    " leading, two  spaces,   three\n\n\nlines\r\n\tand a tab ",
    "def f(a, b):\n    return a + 12345 * 0.5  # don't\n",
    "Ünïcode naïve ½ ﬁ Ｆｕｌｌ e\u0301 ñ",
    "日本語、中文。한국어 русский العربية हिन्दी",
    "🎉👨‍👩‍👧‍👦\u00a0\u200b\u3000…",
    "I'LL they'Re 1234567 3.14 A_B --> {\"a\": [1, 2]} <b>x</b> [y] $z$",
)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with related information from the model's files.

    Attributes:
        tokenizer: Hugging Face fast tokenizer.
        own: `tokenizers.Tokenizer` of the model's tokenizer.json, with all added tokens; None without such a file.
        template: chat template from another file, if the tokenizer has none.
        stops: stop token ids of the generation configuration.
        settings: the tokenizer's JSON without its vocabulary, if it was loaded from its record.
    """

    tokenizer: Any
    own: Any = None
    template: str | None = None
    stops: tuple[int, ...] = ()
    settings: dict[str, Any] | None = None


def load_fast(source: str, revision: str | None, trust_remote_code: bool, name: str) -> tuple[Any, list[str]]:
    """Load the tokenizer of a folder or Hub name.

    Returns:
        transformers tokenizer, fast if possible, and notices.
    Raises:
        UserError: it cannot be loaded, or encodes text differently than its files.
    """
    loaded = _load(source, revision, trust_remote_code, name)
    folder = locate(source, revision)
    if folder is None:
        return loaded, []
    if not (folder / "tokenizer.json").is_file():
        _check_sentencepiece(folder, loaded, name)
        return loaded, []
    text = _difference(loaded, _own(folder / "tokenizer.json", loaded))
    if text is None:
        return loaded, []
    notice = f"tokenizer.json is used directly, because transformers' {type(loaded).__name__} encodes {text[:24]!r} differently"
    return _from_file(source, revision, name), [notice]


def with_model_files(tokenizer: Any, source: ModelSource) -> LoadedTokenizer:
    """Add information from the files of the tokenizer's and the model's folders."""
    model, revision, name = source.model, source.revision, source.name
    origin = str(getattr(tokenizer, "name_or_path", "") or model)
    at = revision if origin == model else None
    for one, commit in {(origin, at), (model, revision)}:
        _download_beside(one, commit, tokenizer)
    places = [place for place in (locate(origin, at), locate(model, revision)) if place is not None]
    file = places[0] / "tokenizer.json" if places and locate(origin, at) is not None else None
    own = _own(file, tokenizer) if file is not None and file.is_file() else None
    return LoadedTokenizer(tokenizer, own, _template_beside(tokenizer, places, name), _stops(places, name))


def _load(source: str, revision: str | None, trust_remote_code: bool, name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # the Rust library raises Exception, transformers any type for broken files
        raise UserError(
            f"The tokenizer of {name} cannot be loaded from {source!r} ({reason_of(error)}); expected a folder with tokenizer files or "
            "a name on the Hub. Correct `model:` or `tokenizer:` of this model."
        ) from error
    if getattr(loaded, "is_fast", False):
        return loaded
    folder = locate(source, revision)
    if folder is not None and (folder / "tokenizer.json").is_file():
        return _from_file(source, revision, name)
    if folder is not None and (folder / "tekken.json").is_file():
        raise UserError(
            f"{name} has only tekken.json, which gives no token offsets; expected `tokenizer.json`. Set `tokenizer:` of this model to a "
            "copy that has one, such as a repository converted for transformers."
        )
    return loaded


def _from_file(source: str, revision: str | None, name: str) -> Any:
    """Load tokenizer.json with the class that uses it unchanged."""
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(source, revision=revision)
    except Exception as error:
        raise UserError(
            f"tokenizer.json of {name} cannot be loaded from {source!r} ({reason_of(error)}); expected a fast tokenizer. Download the "
            "model again, or set another `tokenizer:`."
        ) from error


def _own(path: Path, loaded: Any) -> Any:
    """tokenizer.json unchanged, plus added tokens that are only in the tokenizer's configuration."""
    own = read_file(path)
    if own is None:
        return None
    known = {token.content for token in own.get_added_tokens_decoder().values()}
    missing = [token for _, token in sorted(loaded.added_tokens_decoder.items()) if token.content not in known]
    if missing:
        own = _parse(path)  # others use the first
        own.add_special_tokens([token for token in missing if token.special])
        own.add_tokens([token for token in missing if not token.special])
    return own


def read_file(path: Path) -> Any:
    """`tokenizers.Tokenizer` of a `tokenizer.json`, not to be changed; None for an older format. Raises OSError."""
    state = path.stat()
    return _read(path.resolve(), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)


@lru_cache(
    maxsize=1
)  # it is read when a tokenizer loads and again for the rendering check; a large file takes a second
def _read(path: Path, *state: int) -> Any:
    return _parse(path)


def _parse(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        own = Tokenizer.from_file(str(path))
    except Exception:  # an older format, which the loaded tokenizer can read
        return None
    own.no_truncation()
    own.no_padding()
    return own


def _difference(loaded: Any, own: Any) -> str | None:
    """First probe that the two encode differently, or None."""
    if own is None or not getattr(loaded, "is_fast", False):
        return None
    ours, theirs = (one.encode_batch(list(PROBES), add_special_tokens=False) for one in (loaded.backend_tokenizer, own))
    return next((text for text, a, b in zip(PROBES, ours, theirs, strict=True) if a.ids != b.ids), None)


def _check_sentencepiece(folder: Path, loaded: Any, name: str) -> None:
    """Compare a tokenizer made from a SentencePiece file with SentencePiece itself."""
    path = folder / "tokenizer.model"
    if not path.is_file() or not getattr(loaded, "is_fast", False):
        return
    try:
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=str(path))
    except (ImportError, OSError, RuntimeError):  # not installed, or the file is of another kind (tiktoken)
        return
    for text in PROBES:
        ours = loaded.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if ours != processor.encode(text):
            raise UserError(
                f"{name} has only tokenizer.model, which transformers converts to a tokenizer that encodes {text[:24]!r} differently "
                "than SentencePiece; expected `tokenizer.json`. Set `tokenizer:` of this model to a copy that has one."
            )


def _download_beside(source: str, revision: str | None, loaded: Any) -> None:
    """Download small files of a Hub model that AutoTokenizer does not download."""
    if is_folder(source) or not is_hub_name(source):
        return
    from transformers.utils import cached_file

    for file in (
        "generation_config.json",
        *(() if loaded.chat_template else ("chat_template.jinja", *_TEMPLATE_FILES)),
    ):
        with contextlib.suppress(Exception):  # offline, or the file does not exist
            cached_file(source, file, revision=revision)


def _template_beside(loaded: Any, folders: list[Path], name: str) -> str | None:
    """Chat template in other files of the model or its processor, if the tokenizer has none."""
    if loaded.chat_template:
        return None
    for folder in folders:
        jinja = folder / "chat_template.jinja"
        if jinja.is_file() and jinja.stat().st_size <= MAX_TEMPLATE_BYTES:
            return jinja.read_text(encoding="utf-8")
        for file in _TEMPLATE_FILES:
            found = (read_config(name, folder / file) or {}).get("chat_template")
            if isinstance(found, list):  # older format with named templates
                found = next((one.get("template") for one in found if one.get("name") == "default"), None)
            if isinstance(found, str) and found:
                return found
    return None


def _stops(folders: list[Path], name: str) -> tuple[int, ...]:
    """`eos_token_id` of the generation configuration, or else of the model configuration."""
    for file in ("generation_config.json", "config.json"):
        for folder in reversed(folders):  # the model's folder before the tokenizer's
            found = (read_config(name, folder / file) or {}).get("eos_token_id")
            ids = found if isinstance(found, list) else [found]
            if stops := tuple(one for one in ids if isinstance(one, int)):
                return stops
    return ()
