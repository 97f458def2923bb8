"""Find a model's files on this machine, and hash the parts of them that change its log-probs."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.hashing import sha256_of_files

_HEADER_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}

# Written by the library that saved the file, or separate fields of the fingerprint; none changes the weights.
_CONFIG_ASIDE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
_ADAPTER_ASIDE = {"base_model_name_or_path", "peft_version", "inference_mode", "revision"}

# The largest configurations and indices of weights have a few megabytes.
MAX_CONFIG_BYTES = 32 << 20

# transformers keeps a name for every label, whatever the model is.
MAX_LABELS = 1_000_000

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# Files needed to load a model and render text: safetensors weights, configuration, tokenizer, template, its own code.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py"]
_UNWANTED = ["original/*", "onnx/*", "*/consolidated*.safetensors", "consolidated*.safetensors"]


def locate(model: str, revision: str | None = None) -> Path | None:
    """The local folder with the model's files, or None. Uses no network.

    For a hub name: its snapshot in the Hugging Face cache, of the commit that the revision last resolved to there.
    """
    if is_folder(model):
        return Path(model).expanduser()
    if not is_hub_name(model):
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json"):
        found = try_to_load_from_cache(model, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def is_folder(model: str) -> bool:
    """Whether this machine has a folder of that name."""
    try:
        return model != "" and Path(model).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def is_hub_name(model: str) -> bool:
    """Whether the name is a valid hub name; most paths of missing folders are not."""
    return _HUB_NAME.fullmatch(model) is not None and ".." not in model


def no_folder(owner: str, key: str, value: str) -> UserError:
    """The error for a path that does not exist or is a file."""
    refuse_gguf(owner, value)
    return UserError(
        f"{key}: {value} of {owner} is not there: expected a folder with config.json and safetensors weights, or a hub "
        "name like `organisation/model`. Correct the path (a relative one starts at the folder the command is run in)."
    )


def refuse_gguf(owner: str, model: str) -> None:
    """Refuse a GGUF file, or a folder with weights as GGUF only: no engine here supports them.

    Raises:
        UserError: naming the file.
    """
    try:
        path = Path(model).expanduser()
        if path.is_dir() and not any(path.glob("*.safetensors")):
            path = next(iter(sorted(path.glob("*.gguf"))), path)
        if not path.is_file():
            return
        with path.open("rb") as file:
            magic = file.read(4)
    except (OSError, ValueError, RuntimeError):
        return
    if magic == b"GGUF":
        raise UserError(
            f"model: {path} of {owner} is a GGUF file: expected a folder with config.json, tokenizer files and safetensors "
            "weights, or a hub name. Name the model that the file was made from; a GGUF holds a quantized copy of it for llama.cpp."
        )


def read_config(owner: str, path: Path) -> dict[str, Any] | None:
    """The file's JSON object, or None if the file does not exist."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_CONFIG_BYTES:  # a pipe would block forever
            raise ValueError(f"no file, or one of more than {MAX_CONFIG_BYTES >> 20} MiB")
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} of {owner} cannot be read ({error}): expected JSON. Fetch the model again.") from error
    if not isinstance(document, dict):
        raise UserError(
            f"{path} of {owner} holds a {type(document).__name__}: expected a JSON object. Fetch the model again."
        )
    labels = document.get("num_labels")
    if isinstance(labels, int) and labels > MAX_LABELS:
        raise UserError(
            f"{path} of {owner} says num_labels {labels:,}: expected {MAX_LABELS:,} at most, as transformers makes a name for each. "
            "Correct it, or fetch the model again."
        )
    return document


def weight_files(owner: str, folder: Path) -> list[Path] | None:
    """Sorted safetensors files of the model; None if any is missing.

    Raises:
        UserError: if there are only pickles, or the folder holds an adapter.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model: {folder} of {owner} holds an adapter_config.json: expected a whole model there. Give the base "
            "model as `model` and this folder as `adapter`, or merge it first (`mrpo merge`)."
        )
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = read_config(owner, folder / "model.safetensors.index.json")
    if index is not None:
        listed = index.get("weight_map") or {}
        names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        strays = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
        if strays:
            raise UserError(
                f"{folder / 'model.safetensors.index.json'} of {owner} names {strays[0][:200]!r}, which lies outside that folder: "
                "expected files beside it. Fetch the model again, from somebody whom you trust."
            )
        files = [folder / name for name in names]
        return files if files and all(path.is_file() for path in files) else None
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not files:
        refuse_gguf(owner, str(folder))
    if not files and any(True for pattern in _PICKLES for _ in folder.glob(pattern)):
        raise UserError(
            f"model: {folder} of {owner} holds its weights as pickles only, which can run code when read: expected "
            "safetensors. On a machine where you trust the file, load it with transformers' AutoModelForCausalLM and "
            "`save_pretrained` it to a new folder, which writes safetensors; then name that folder."
        )
    return files or None


def require_weights(owner: str, folder: Path) -> None:
    """Refuse a folder from which no model can be loaded."""
    if weight_files(owner, folder) is None or not (folder / "config.json").is_file():
        raise UserError(
            f"model: {folder} of {owner} lacks config.json or safetensors weights: expected both, and "
            "every file that model.safetensors.index.json names. Fetch the model again."
        )


def weights_content(owner: str, folder: Path, *, own_code: bool = False) -> str | None:
    """Hash of the weights, the configuration and the model's own code; None if files are missing.

    Args:
        own_code: whether the code that comes with the model is run (``trust_remote_code``); only then is it hashed.
    """
    files = weight_files(owner, folder)
    config = read_config(owner, folder / "config.json")
    if files is None or config is None:
        return None
    aside = _CONFIG_ASIDE if own_code else _CONFIG_ASIDE | {"auto_map"}
    # A model's own code determines what it computes.
    code = sorted(folder.rglob("*.py")) if own_code and config.get("auto_map") else []
    names = [path.relative_to(folder).as_posix() for path in [*files, *code]]
    return _digest([*files, *code], names, {key: value for key, value in config.items() if key not in aside})


def adapter_content(owner: str, folder: Path) -> str | None:
    """Hash of a PEFT adapter; None if files are missing."""
    config = read_config(owner, folder / "adapter_config.json")
    files = sorted(folder.glob("adapter_model*.safetensors"))
    if not files and (folder / "adapter_model.bin").is_file():
        raise UserError(
            f"adapter: {folder} of {owner} holds adapter_model.bin, a pickle, which can run code when read: "
            "expected adapter_model.safetensors. Where you trust the file, load it with peft and `save_pretrained` it."
        )
    if config is None or not files:
        return None
    settings = {key: value for key, value in config.items() if key not in _ADAPTER_ASIDE}
    return _digest(files, [path.name for path in files], settings)


def header_dtype(path: Path) -> str | None:
    """The dtype of the first floating tensor, from the safetensors header (its length in 8 bytes, then JSON)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000_000:  # the format's own limit
            return None
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return None
    kinds = (tensor.get("dtype") for name, tensor in header.items() if name != "__metadata__")
    return next((_HEADER_DTYPES[kind] for kind in kinds if kind in _HEADER_DTYPES), None)


def _digest(files: Sequence[Path], names: Sequence[str], settings: Mapping[str, Any]) -> str:
    """One hash of files (names and content) and settings."""
    try:
        contents = sha256_of_files(files)
    except OSError as error:
        raise UserError(
            f"{error.filename or files[0]} cannot be read ({error.strerror or error}): expected the model's files, all of them. Give "
            "read access, or fetch the model again."
        ) from error
    parts = [f"{name} {content}" for name, content in zip(names, contents, strict=True)]
    parts.append(json.dumps(settings, sort_keys=True, separators=(",", ":")))
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


def download(owner: str, key: str, name: str, revision: str | None) -> Path:
    """Folder of the hub model's snapshot, downloaded if missing; its name is the commit."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except Exception as error:  # errors of the hub's client and of HTTP have no common class
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{key}: {name} of {owner} is neither a folder here nor could it be fetched from the hub ({reason}): "
            "expected a folder or a hub name that can be read. Correct the name or `revision`, log in with `hf auth login` for "
            "a gated model, or download it where there is a network and name its folder."
        ) from error
    return Path(folder)
