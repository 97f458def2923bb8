"""Cache of renderer identities, so that comparing a model's identity with a fingerprint needs no renderer.

Loading a renderer with a large vocabulary takes seconds and hundreds of megabytes, and many commands only need its identity. The
identity is kept in ``mrpo_home()/readings`` under a digest of everything that determines it: the files of the tokenizer, model and
adapter, the template and its arguments, the code of this package and the versions of the libraries.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mrpo_pipeline.files.atomic import write_whole
from mrpo_pipeline.files.hashing import mrpo_home, sha256_of_files
from mrpo_pipeline.models.files import is_folder, locate
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.rendering.renderer import Renderer

_LIBRARIES = ("mrpo", "transformers", "tokenizers", "jinja2", "huggingface-hub", "sentencepiece", "mistral-common")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST = 200_000_000
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")


def renderer_of(source: ModelSource) -> Renderer:
    """The model's own tokenizer and template; no weights are read."""
    return Renderer.from_pretrained(
        source.model,
        revision=source.revision,
        tokenizer=source.tokenizer,
        adapter=source.adapter,
        template=source.template,
        template_kwargs=source.template_kwargs,
        trust_remote_code=source.trust_remote_code,
        name=source.name,
    )


class ModelReading:
    """The identity of a model's renderer (``Renderer.identity``), and the renderer itself, which is loaded at first use.

    Raises:
        UserError: see ``Renderer.from_pretrained``.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        key = _key(source)
        found = _find(key) if key else None
        if found is None:
            found = self.renderer.identity(), self.renderer.reading
            if key and key == _key(source):  # files may have changed meanwhile
                _keep(key, *found)
        self._identity, self.reading = found
        """``reading`` is ``Renderer.reading``."""

    @cached_property
    def renderer(self) -> Renderer:
        return renderer_of(self.source)

    def identity(self) -> dict[str, str]:
        """See ``Renderer.identity``."""
        return dict(self._identity)


def _key(source: ModelSource) -> str | None:
    """Digest of everything that determines the identity; None if some of it is not in local files."""
    if source.trust_remote_code:
        return None
    places = [(source.model, source.revision), (source.tokenizer, None), (source.adapter, None)]
    folders = [_folder(name, revision) for name, revision in places if name]
    try:
        files = [_files(folder) for folder in folders if folder]
        if source.template not in ("auto", "plain"):
            files.append([Path(source.template).expanduser()])
        # A pipe or a device never ends; loading reports files that are larger than any tokenizer.
        if not all(path.is_file() and path.stat().st_size <= _LARGEST for some in files for path in some):
            return None
        content = [
            [(path.name, digest) for path, digest in zip(some, sha256_of_files(some), strict=True)] for some in files
        ]
        settings = source.model_dump(mode="json", include={"tokenizer", "adapter", "template", "template_kwargs"})
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


def _find(key: str) -> tuple[dict[str, str], list[str]] | None:
    try:
        digest, text = _path(key).read_text(encoding="utf-8").split("\n", 1)
        if digest != hashlib.sha256(text.encode()).hexdigest():
            return None
        identity, reading = json.loads(text)
    except (OSError, ValueError):
        return None
    return identity, reading


def _keep(key: str, identity: dict[str, str], reading: list[str]) -> None:
    text = json.dumps([identity, reading])
    with suppress(OSError):
        write_whole(_path(key), f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
