"""A model's own tokenizer: the one of its files, whatever the library that loads them makes of it.

transformers chooses a class by the model's type and may rebuild the tokenizer: a byte-level `tokenizer.json` under
`LlamaTokenizer` loses spaces and line breaks, a `tekken.json` beside it makes a tokenizer without offsets. So what was
loaded is compared with `tokenizer.json` itself on texts of many kinds, and where they differ the file decides.
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
from mrpo_pipeline.rendering.template_text import MAX_TEMPLATE_BYTES

# Where a model may have its template but in the tokenizer's own files: a processor's, or the configuration of the model's
# tokenizer where `tokenizer:` names another.
_TEMPLATE_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")

# Where spaces, line breaks, digits, scripts, normalisation or byte fallback are handled differently, one of these shows it.
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
    """A tokenizer and what its model's files say beside it.

    Attributes:
        tokenizer: Hugging Face fast tokenizer.
        own: `tokenizers.Tokenizer` of the model's tokenizer.json, with all added tokens; None where it has no such file.
        template: chat template that lies beside a tokenizer which has none itself.
        stops: ids that the model stops with, by its generation configuration.
    """

    tokenizer: Any
    own: Any = None
    template: str | None = None
    stops: tuple[int, ...] = ()


def load_fast(source: str, revision: str | None, trust_remote_code: bool, name: str) -> tuple[Any, list[str]]:
    """The tokenizer of a folder or hub name, as its files have it.

    Returns:
        a tokenizer of transformers, fast where it can be, and what a user should know of it.
    Raises:
        UserError: where it cannot be loaded, or reads text in another way than the files do.
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
    told = f"its ids are those of its tokenizer.json: transformers' {type(loaded).__name__} gives others (of {text[:24]!r}, for one)"
    return _from_file(source, revision, name), [told]


def with_model_files(tokenizer: Any, model: str, revision: str | None, name: str) -> LoadedTokenizer:
    """What the files of the tokenizer's folder and of the model's say beside the tokenizer."""
    source = str(getattr(tokenizer, "name_or_path", "") or model)
    at = revision if source == model else None
    for one, commit in {(source, at), (model, revision)}:
        _download_beside(one, commit, tokenizer)
    places = [place for place in (locate(source, at), locate(model, revision)) if place is not None]
    file = places[0] / "tokenizer.json" if places and locate(source, at) is not None else None
    own = _own(file, tokenizer) if file is not None and file.is_file() else None
    return LoadedTokenizer(tokenizer, own, _template_beside(tokenizer, places, name), _stops(places, name))


def _load(source: str, revision: str | None, trust_remote_code: bool, name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # the Rust library raises bare ones, transformers any kind over files that are broken
        raise UserError(
            f"The tokenizer of {name} cannot be loaded from {source!r} ({reason_of(error)}): expected a folder with "
            "tokenizer files or a name on the hub: mend `model:` or `tokenizer:` of this model."
        ) from error
    if getattr(loaded, "is_fast", False):
        return loaded
    folder = locate(source, revision)
    if folder is not None and (folder / "tokenizer.json").is_file():
        return _from_file(source, revision, name)
    if folder is not None and (folder / "tekken.json").is_file():
        raise UserError(
            f"{name} has its tokenizer as tekken.json alone, which mistral-common reads without telling where a token ends in the "
            "text: expected `tokenizer.json`. Give a copy of this model that has one (`tokenizer:` of this model; the "
            "repositories of models converted for transformers have it)."
        )
    return loaded


def _from_file(source: str, revision: str | None, name: str) -> Any:
    """By the class that takes tokenizer.json as it is."""
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(source, revision=revision)
    except Exception as error:
        raise UserError(
            f"tokenizer.json of {name} cannot be loaded from {source!r} ({reason_of(error)}): expected the file of a fast "
            "tokenizer. Fetch the model again, or give another `tokenizer:`."
        ) from error


def _own(path: Path, loaded: Any) -> Any:
    """tokenizer.json as it is, and the added tokens that only the tokenizer's configuration names."""
    state = path.stat()
    own = _read(str(path), state.st_mtime_ns, state.st_size)
    if own is None:
        return None
    own.no_truncation()
    own.no_padding()
    known = {token.content for token in own.get_added_tokens_decoder().values()}
    missing = [token for _, token in sorted(loaded.added_tokens_decoder.items()) if token.content not in known]
    if missing:
        own.add_special_tokens([token for token in missing if token.special])
        own.add_tokens([token for token in missing if not token.special])
    return own


@lru_cache(maxsize=1)  # it is read when a tokenizer loads and again for its proof; a large one takes a second
def _read(path: str, changed: int, size: int) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(path)
    except Exception:  # what loaded reads it after all, for instance an older form
        return None


def _difference(loaded: Any, own: Any) -> str | None:
    """The first probe of which the two give other ids."""
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
                f"{name} has its tokenizer as tokenizer.model alone, and what transformers makes of it reads text in another way than "
                f"SentencePiece does (for instance {text[:24]!r}): expected `tokenizer.json`. Give a copy of this model that has "
                "one as `tokenizer:` of this model."
            )


def _download_beside(source: str, revision: str | None, loaded: Any) -> None:
    """Of a hub name, the small files that are read beside the tokenizer's; AutoTokenizer does not download them."""
    if is_folder(source) or not is_hub_name(source):
        return
    from transformers.utils import cached_file

    for file in (
        "generation_config.json",
        *(() if loaded.chat_template else ("chat_template.jinja", *_TEMPLATE_FILES)),
    ):
        with contextlib.suppress(Exception):  # offline, or there is none: what is there is read
            cached_file(source, file, revision=revision)


def _template_beside(loaded: Any, folders: list[Path], name: str) -> str | None:
    """The chat template in the files of the model or its processor, where the tokenizer has none itself."""
    if loaded.chat_template:
        return None
    for folder in folders:
        jinja = folder / "chat_template.jinja"
        if jinja.is_file() and jinja.stat().st_size <= MAX_TEMPLATE_BYTES:
            return jinja.read_text(encoding="utf-8")
        for file in _TEMPLATE_FILES:
            found = (read_config(name, folder / file) or {}).get("chat_template")
            if isinstance(found, list):  # the older form of several named ones
                found = next((one.get("template") for one in found if one.get("name") == "default"), None)
            if isinstance(found, str) and found:
                return found
    return None


def _stops(folders: list[Path], name: str) -> tuple[int, ...]:
    """Ids in `eos_token_id` of the model's generation configuration, or else of its configuration."""
    for file in ("generation_config.json", "config.json"):
        for folder in reversed(folders):  # the model's own before those of another tokenizer's folder
            found = (read_config(name, folder / file) or {}).get("eos_token_id")
            ids = found if isinstance(found, list) else [found]
            if stops := tuple(one for one in ids if isinstance(one, int)):
                return stops
    return ()
