"""Cache of what one process learns about a renderer, so that others compare its identity without it, and load it faster.

Loading a renderer with a large vocabulary takes seconds and hundreds of megabytes, and many commands only need its identity. The
identity and the tokenizer's record are kept in ``mrpo_home()/readings`` under a digest of everything that determines them: the files
of the tokenizer, model and adapter, the template and its arguments, the code of this package and the versions of the libraries.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mrpo_pipeline.files.atomic import write_whole
from mrpo_pipeline.files.hashing import mrpo_home, sha256_of_files
from mrpo_pipeline.files.unused import remove_unused
from mrpo_pipeline.models.files import is_folder, locate
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.rendering.tokenizer import LoadedTokenizer, read_file, with_model_files
from mrpo_pipeline.rendering.vocabulary_reuse import TokenizerRecord

_LIBRARIES = ("mrpo", "transformers", "tokenizers", "jinja2", "huggingface-hub", "sentencepiece", "mistral-common")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST = 200_000_000
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


@dataclass(frozen=True)
class KnownRenderer:
    """What is kept of a renderer.

    Attributes:
        identity: ``Renderer.identity``.
        reading: ``Renderer.reading``.
        place: index in ``_places`` of the tokenizer's files; None if they are elsewhere.
        tokenizer: record of the tokenizer; None if it must be loaded by transformers.
    """

    identity: dict[str, str]
    reading: list[str]
    place: int | None
    tokenizer: TokenizerRecord | None

    def load(self, source: ModelSource) -> LoadedTokenizer | None:
        """The tokenizer, from `tokenizer.json` and the record; None if it must be loaded by transformers."""
        if self.tokenizer is None or self.place is None:
            return None
        name, revision = _places(source)[self.place]
        folder = locate(name, revision) if name else None
        try:
            file = read_file(folder / "tokenizer.json") if folder else None
        except OSError:  # it was just removed
            return None
        if file is None:
            return None
        tokenizer = self.tokenizer.load(file)
        tokenizer.name_or_path = name
        loaded = with_model_files(tokenizer, source)
        return replace(loaded, settings=self.tokenizer.settings)


def place_of(source: ModelSource, path: str) -> int | None:
    """``KnownRenderer.place`` of a tokenizer that was loaded from this folder or Hub name; None if it is another."""
    places = [name and (name, str(Path(name).expanduser())) for name, _ in _places(source)]
    return next((place for place, names in enumerate(places) if names and path in names), None)


def _places(source: ModelSource) -> list[tuple[str | None, str | None]]:
    """(folder or Hub name, revision) of everything that may hold a tokenizer."""
    return [(source.tokenizer, None), (source.adapter, None), (source.model, source.revision)]


def key_of(source: ModelSource) -> str | None:
    """Digest of everything that determines the identity; None if some of it is not in local files."""
    if source.trust_remote_code:
        return None
    folders = [_folder(name, revision) for name, revision in _places(source) if name]
    try:
        files = {
            f"{place}/{path.relative_to(folder)}": path
            for place, folder in enumerate(folders)
            if folder
            for path in _files(folder)
        }
        if source.template not in ("auto", "plain"):
            files["template"] = Path(source.template).expanduser()
        # A pipe or a device never ends; loading reports files that are larger than any tokenizer.
        if not all(path.is_file() and path.stat().st_size <= _LARGEST for path in files.values()):
            return None
        content = dict(zip(files, sha256_of_files([*files.values()]), strict=True))
        keys = {"tokenizer", "adapter", "template", "template_kwargs"}
        settings = source.model_dump(mode="json", include=keys, warnings=False)
        text = json.dumps([content, settings, _code()], sort_keys=True)
    except (OSError, TypeError, ValueError, RuntimeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:32] if all(folders) else None


def _folder(name: str, revision: str | None) -> Path | None:
    """The model's folder if its files are fixed: a local folder, or a hub name at a commit; else None."""
    if is_folder(name) or (revision and _COMMIT.fullmatch(revision)):
        return locate(name, revision)
    return None


def _files(folder: Path) -> list[Path]:
    found = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    return sorted(path for path in found if path.is_file() and path.suffix not in _WEIGHTS)


@cache
def _code() -> list[str]:
    """Digest of the rendering code, and versions of the libraries that it uses."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    versions = []
    for library in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions.append(f"{library} {version(library)}")
    return [digest, *versions]


def _path(key: str) -> Path:
    return mrpo_home() / "readings" / f"{key}.json"


def find(key: str) -> KnownRenderer | None:
    """What is known; None if nothing is, or the file is damaged."""
    path = _path(key)
    try:
        digest, text = path.read_text(encoding="utf-8").split("\n", 1)
        if digest != hashlib.sha256(text.encode()).hexdigest():
            return None
        kept = json.loads(text)
        record = kept["tokenizer"] and TokenizerRecord(**kept["tokenizer"])
        found = KnownRenderer(kept["identity"], kept["reading"], kept["place"], record)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    with suppress(OSError):  # of a folder of another user
        os.utime(path)
    return found


def keep(key: str, known: KnownRenderer) -> None:
    """Write what is known, if the folder can be written to, and remove what was not used for a month."""
    text = json.dumps(asdict(known))
    path = _path(key)
    with suppress(OSError):
        write_whole(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        remove_unused(path.parent)
