"""A reference: its settings, its files, and the fingerprint of everything that changes its log-probs.

The fingerprint's fields: ``weights`` (content of the weights and of the configuration), ``revision`` (the hub's commit,
which replaces the weights where they are not available), ``adapted`` and ``adapter`` (whether there is one, and its
content), ``dtype``, ``quantization``, ``engine_options`` (those that may change the log-probs), the renderer's fields of
tokenizer, template and end-of-turn handling, and ``template_file`` (content of the configured Jinja file, which replaces the
template if there is no renderer). For a served reference, ``weights`` is the model's name on the server, ``served_revision`` the
commit if the server reports one, and ``probe`` its log-probs of fixed texts (``cache.probe_logps``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, field_validator

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.engine_options import NO_OPTIONS
from mrpo_pipeline.models.files import (
    adapter_content,
    download,
    header_dtype,
    is_folder,
    is_hub_name,
    locate,
    no_folder,
    read_config,
    require_weights,
    weight_files,
    weights_content,
)
from mrpo_pipeline.models.server import Server
from mrpo_pipeline.models.template_arguments import reserved
from mrpo_pipeline.settings_base import Name, Settings

RENDERING_FIELDS = ("tokenizer", "template", "end_of_turn")
AS_SERVED = "as served"
"""Dtype and quantization in the fingerprint of a served model, which the server chooses."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

_DTYPES = {
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp64": "float64",
    "double": "float64",
}
_KNOWN_DTYPES = ("float32", "bfloat16", "float16", "float64")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelSource(Settings):
    """A model and how it reads text."""

    model: Name
    """A folder or a hub name."""
    revision: str | None = None
    """A branch, tag or commit on the hub."""
    adapter: Name | None = None
    """A LoRA adapter on the model: a folder or a hub name. A policy continues its training."""
    tokenizer: Name | None = None
    """A folder or hub name with the tokenizer. Null: the adapter's folder if it has a tokenizer, else the model."""
    template: Name = "auto"
    """The chat template: `auto` (the adapter's or the tokenizer's own, else a plain one), `plain`, or a Jinja file."""
    template_kwargs: dict[str, Any] = Field({})
    """Further variables of the chat template (`{enable_thinking: false}`). A row's `chat_template_kwargs` override them key by key."""
    dtype: str = "auto"
    """`auto` (the checkpoint's own 16 bits on a GPU that computes in them, else float32), `float32`, `bfloat16` or `float16`."""
    quantization: str | None = None
    """`nf4` for 4 bits on a GPU, or what the engine has; null for none."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model."""

    _name: str = PrivateAttr("the model")
    _engine_options: str = PrivateAttr(NO_OPTIONS)

    @field_validator("template_kwargs")
    @classmethod
    def _arguments_of_a_user(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if fault := reserved(arguments):
            raise ValueError(f"arguments of the chat template, such as enable_thinking, and not {fault}")
        return arguments

    @property
    def name(self) -> str:
        """The reference's name, or ``policy``: messages use it."""
        return self._name

    @property
    def engine_options(self) -> str:
        """Options of its engine that may change its log-probs, as ``engine_options.describe_altering`` writes them."""
        return self._engine_options

    @property
    def served(self) -> Server | None:
        """The server that runs the model; None if its files are loaded here. Only a reference can have one."""
        return None

    def named(self, name: str, engine_options: str = NO_OPTIONS) -> Self:
        """A copy with a name and engine options, which come from its place in the recipe and are not keys of the model."""
        copy = self.model_copy()
        copy._name, copy._engine_options = name, engine_options
        return copy

    def loads_like(self, other: ModelSource) -> bool:
        """Whether both have the same model settings; names and other keys may differ."""
        keys = set(ModelSource.model_fields)
        return self.model_dump(include=keys) == other.model_dump(include=keys)


def resolve(source: ModelSource, renderer_identity: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """The fingerprint's fields, from local files; nothing is downloaded.

    Args:
        source: the reference.
        renderer_identity: the renderer's fields that change its ids; None without a renderer (stage two).

    Returns:
        field → value; None if it is unknown here, which a cache does not compare.

    Raises:
        UserError: for weights that exist only as pickles, a configuration that cannot be read, an unknown dtype, and, if
            ``renderer_identity`` is given, a missing folder.
    """
    rendering: Mapping[str, str | None] = renderer_identity or dict.fromkeys(RENDERING_FIELDS)
    if source.served is not None:
        return {**_served_fields(source.served.model), "template_file": _template_file(source), **rendering}
    folder = locate(source.model, source.revision)
    if folder is None and renderer_identity is not None and not is_hub_name(source.model):
        raise no_folder(source.name, "model", source.model)
    fields: dict[str, str | None] = {
        "weights": _weights(source, folder),
        "revision": _revision(source, folder),
        "adapted": "no" if source.adapter is None else "yes",
        "adapter": "none" if source.adapter is None else _adapter(source),
        "dtype": _dtype(source, folder),
        "quantization": _quantization(source, folder),
        "engine_options": source.engine_options,
        "template_file": _template_file(source),
    }
    return {**fields, **rendering}


def _served_fields(model: str | None) -> dict[str, str | None]:
    """The fingerprint of a served model, as far as the recipe determines it. A probe of the server adds its log-probs
    (``engines.served``).

    Args:
        model: the name as served; None if only the server knows it.
    """
    return {
        "weights": None if model is None else served_weights(model),
        "adapted": "no",
        "adapter": "none",
        "dtype": AS_SERVED,
        "quantization": AS_SERVED,
        "engine_options": NO_OPTIONS,
    }


def served_weights(model: str) -> str:
    """For a served model, the model's name on the server replaces the weights' content."""
    return f"served as {model}"


def has_tokenizer(source: ModelSource) -> bool:
    """Whether this machine has the files that render the reference's text: tokenizer, and the Jinja file if one is configured."""
    folder = locate(source.tokenizer) if source.tokenizer else locate(source.model, source.revision)
    if source.adapter and not source.tokenizer and locate(source.adapter) is None:  # it may contain a tokenizer
        return False
    if folder is None or (source.template not in ("auto", "plain") and _template_file(source) is None):
        return False
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def auto_dtype(own: str, *, quantized: bool = False, device: str | None = None) -> str:
    """Resolve ``dtype: auto``, for reference and policy alike: the checkpoint's own 16 bits on a GPU that computes in them, else
    float32.

    On a CPU 16 bits are slow or cost 0.04 nats per token, and a policy trains there in float32, so its reference uses float32, too.

    Args:
        own: the checkpoint's dtype. quantized: whether it is stored quantized; its kernels then need its own dtype.
        device: ``gpu`` or ``cpu``; None for this machine's.
    """
    if own not in ("bfloat16", "float16"):
        return "float32"
    able = quantized or (gpu_computes_in(own) if device is None else device == "gpu")
    return own if able else "float32"


def gpu_computes_in(dtype: str) -> bool:
    """Whether this machine has a GPU that computes in ``bfloat16`` or ``float16``, without emulation."""
    import torch

    if not torch.cuda.is_available():
        return False
    return dtype != "bfloat16" or bool(torch.cuda.is_bf16_supported(including_emulation=False))


def as_recorded(source: ModelSource, fingerprint: Mapping[str, str]) -> ModelSource:
    """The reference with ``dtype: auto`` resolved by a cache's fingerprint, if there is one, so that additions, comparisons and
    recomputations use the cache's dtype on any machine."""
    recorded = fingerprint.get("dtype")
    known = source.dtype == "auto" and recorded and recorded != AS_SERVED
    return source.model_copy(update={"dtype": recorded}) if known else source


def resolve_dtype(source: ModelSource, device: str | None = None) -> str:
    """The dtype in which the model runs: ``float32``, ``bfloat16``, …

    ``auto`` is decided by ``auto_dtype`` from what the configuration says (``dtype``, in older ones ``torch_dtype``), else the
    weights' own dtype. Engines are given this name and not ``auto``: vLLM's own ``auto`` would turn a float32 model into a 16-bit one.

    Args:
        device: as in ``auto_dtype``.

    Raises:
        UserError: for an unknown dtype, or ``auto`` where the model's files are not local (see ``fetch``).
    """
    found = _dtype(source, locate(source.model, source.revision), device)
    if found is None:
        raise UserError(
            f"dtype: auto of {source.name} needs the configuration of {source.model}, which is not on this machine: expected "
            "a model folder, or a hub name that was downloaded. Download it, or give its `dtype`."
        )
    return found


def stored_dtype(source: ModelSource) -> str:
    """The dtype of the checkpoint's weights on disk, the same on any machine; a merged copy keeps it.

    Raises:
        UserError: the model's files are not on this machine.
    """
    return resolve_dtype(source, device="gpu")


def same_model(a: ModelSource, b: ModelSource) -> bool:
    """Whether both load the same weights and the same adapter, so that they give the same log-probs up to dtype.

    If both are local, their content decides; otherwise both must name the same model, revision and adapter. A served model equals
    only one with the same server.
    """
    if a.served is not None or b.served is not None:
        return a.served == b.served
    if a.adapter is None or b.adapter is None:
        if a.adapter != b.adapter:
            return False
    else:
        adapters = _adapter(a), _adapter(b)
        if adapters[0] != adapters[1] or (adapters[0] is None and a.adapter != b.adapter):
            return False
    folders = locate(a.model, a.revision), locate(b.model, b.revision)
    weights = [_weights(one, folder) for one, folder in zip((a, b), folders, strict=True)]
    if None not in weights:
        return weights[0] == weights[1]
    if a.model != b.model:
        return False
    return (_revision(a, folders[0]) or a.revision) == (_revision(b, folders[1]) or b.revision)


def fetch(source: ModelSource) -> ModelSource:
    """Download a hub model's files and pin its commit, so that the fingerprinted files are the loaded ones.

    Returns:
        the source with ``revision`` set to the commit, and a hub adapter replaced by its folder. Local folders are unchanged.

    Raises:
        UserError: if a folder is missing or holds no safetensors weights, or the hub does not provide the files.
    """
    if source.served is not None:  # only its tokenizer is read, and downloaded where it is read
        return source
    if is_folder(source.model):
        require_weights(source.name, Path(source.model).expanduser())
    elif not is_hub_name(source.model):
        raise no_folder(source.name, "model", source.model)
    else:
        folder = download(source.name, "model", source.model, source.revision)
        require_weights(source.name, folder)
        source = source.model_copy(update={"revision": folder.name})
    if source.adapter is not None and not is_folder(source.adapter):
        if not is_hub_name(source.adapter):
            raise no_folder(source.name, "adapter", source.adapter)
        source = source.model_copy(update={"adapter": str(download(source.name, "adapter", source.adapter, None))})
    if source.adapter is not None and _adapter(source) is None:
        raise UserError(
            f"The adapter {source.adapter} of {source.name} lacks adapter_config.json or adapter_model.safetensors: expected a "
            "PEFT adapter. Give its folder or hub name."
        )
    return source


def _weights(source: ModelSource, folder: Path | None) -> str | None:
    return weights_content(source.name, folder, own_code=source.trust_remote_code) if folder else None


def _revision(source: ModelSource, folder: Path | None) -> str | None:
    """The hub's commit, if known."""
    if is_folder(source.model) or not is_hub_name(source.model):
        return None
    if folder is not None:
        return folder.name
    return source.revision if source.revision and _COMMIT.fullmatch(source.revision) else None


def _adapter(source: ModelSource) -> str | None:
    folder = locate(source.adapter) if source.adapter else None
    return adapter_content(source.name, folder) if folder else None


def _dtype(source: ModelSource, folder: Path | None, device: str | None = None) -> str | None:
    if source.dtype != "auto":
        return _dtype_name(source, source.dtype)
    config = read_config(source.name, folder / "config.json") if folder else None
    if folder is None or config is None:
        return None
    quantized = isinstance(config.get("quantization_config"), dict)
    return auto_dtype(_own_dtype(source, folder, config), quantized=quantized, device=device)


def _own_dtype(source: ModelSource, folder: Path, config: Mapping[str, Any]) -> str:
    """The configuration's dtype, else the weights' own, else float32."""
    for settings in (config, config.get("text_config")):
        if isinstance(settings, dict):
            said = settings.get("dtype") or settings.get("torch_dtype")
            if isinstance(said, dict):  # one for each part of a composite model; "" for all of it
                said = said.get("")
            if isinstance(said, str):
                return _dtype_name(source, said)
    files = weight_files(source.name, folder)
    return (files and header_dtype(files[0])) or "float32"


def _dtype_name(source: ModelSource, said: str) -> str:
    name = said.removeprefix("torch.")
    name = _DTYPES.get(name, name)
    if name not in _KNOWN_DTYPES:
        raise UserError(
            f"dtype: {said} of {source.name} is not known: expected auto, {', '.join(_KNOWN_DTYPES)}. Correct it."
        )
    return name


def _quantization(source: ModelSource, folder: Path | None) -> str | None:
    if source.quantization is not None:
        return source.quantization
    config = read_config(source.name, folder / "config.json") if folder else None
    if config is None:
        return None
    settings = config.get("quantization_config")
    return str(settings.get("quant_method", "none")) if isinstance(settings, dict) else "none"


def _template_file(source: ModelSource) -> str | None:
    if source.template in ("auto", "plain"):
        return None
    try:
        return hashlib.sha256(Path(source.template).expanduser().read_bytes()).hexdigest()
    except (OSError, ValueError, RuntimeError):
        return None
