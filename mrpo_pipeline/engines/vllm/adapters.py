"""An adapter in vLLM: a LoRA request if vLLM serves all of it, else merged into the model before the start."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.files.python_launch import child_environment, module_command
from mrpo_pipeline.models.adapters import file_tensors
from mrpo_pipeline.models.merging import EXPECTED, NOT_MERGEABLE

# Allowed values of vLLM's `max_lora_rank`; a smaller adapter is padded to the next.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Last parts of the names of embeddings and heads. (A head with another name is recognized by its shape.)
_EMBEDDINGS = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "word_embeddings", "tok_embeddings")


class UnsupportedError(Exception):
    """vLLM has no implementation for this model, adapter or quantization; another engine may."""


@dataclass
class Adapted:
    """What vLLM loads.

    Attributes:
        model: folder or hub name of the weights; revision: of a hub name.
        request: vLLM's LoRA request for every text, if the adapter is served as one.
        arguments: of `EngineArgs`, for this request.
        expected: log-probs of `merging.probe_ids(vocab_size)` by transformers, if the adapter was merged.
        vocab_size: of the merged model; None if nothing was merged.
    """

    model: str
    revision: str | None
    request: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)
    expected: list[float] | None = None
    vocab_size: int | None = None
    notices: list[str] = field(default_factory=list)


def adapt(settings: dict[str, Any], config: Any) -> Adapted:
    """Decide how to serve the adapter, and merge it if necessary (see `merging`).

    Args:
        settings: of the engine's process; `merge_because` is set if vLLM has refused the adapter before.
        config: the model's transformers configuration.

    Raises:
        UnsupportedError: an adapter that vLLM does not serve on a quantized model, where merging would not be exact, or of
            a kind that cannot be merged.
        RunError: merging failed.
    """
    model, path = settings["model"], settings["adapter"]
    if path is None:
        return Adapted(model, settings["revision"])
    from vllm.lora.request import LoRARequest

    rank = _largest_rank(path)
    reason = settings["merge_because"] or why_not_served(path, config.get_text_config().vocab_size, rank)
    if reason is None:
        arguments = {
            "enable_lora": True,
            "max_lora_rank": next(size for size in _RANKS if size >= rank),
            "max_loras": 1,
            # Otherwise vLLM also adds an empty delta to the head, with one row per request. Prompt log-probs have a row per
            # token, so they fail on a CPU (0.32), or take longer for nothing.
            "lora_target_modules": _targets(path),
        }
        return Adapted(model, settings["revision"], LoRARequest("reference", 1, path), arguments)
    quantization = settings["quantization"] or getattr(config, "quantization_config", None)
    if quantization is not None:
        raise UnsupportedError(
            f"vLLM cannot serve the adapter {path} beside the model ({reason}), and merged into quantized weights it would "
            "be rounded"
        )
    folder = Path(settings["merged_folder"])
    _merge(settings, folder)
    expected = json.loads((folder / EXPECTED).read_text(encoding="utf-8"))
    notice = f"the adapter {path} was merged into its model for vLLM, in float32: {reason}"
    return Adapted(str(folder), None, expected=expected["logps"], vocab_size=expected["vocab_size"], notices=[notice])


def why_not_served(path: str, vocab_size: int, rank: int) -> str | None:
    """Why vLLM would leave part of the adapter out of prompt log-probs, or refuse it; None if it serves all of it.

    vLLM drops deltas of the head and of embeddings from prompt log-probs, and ignores weights saved whole (`modules_to_save`, new
    tokens). Its own check of the adapter reports what else it does not support (DoRA, biases, …).
    """
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

    if rank > _RANKS[-1]:
        return f"its rank is {rank}, and vLLM's largest {_RANKS[-1]}"
    touched, whole = set(), set()
    for module, kind, shape in file_tensors(Path(path)):
        if kind is None or kind == "token_adapter":
            whole.add(module)
            continue
        head = kind == "lora_B" and shape[0] >= vocab_size  # under any name
        if head or kind.startswith("lora_embedding") or module.rsplit(".", 1)[-1] in _EMBEDDINGS:
            touched.add(module)
    if touched or whole:
        parts = [f"a delta of {name}" for name in sorted(touched)] + [
            f"a whole {name}" for name in sorted(whole - touched)
        ]
        return f"it holds {', '.join(parts[:3])}{' …' if len(parts) > 3 else ''}, which vLLM leaves out of prompt log-probs"
    config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key) and key not in PEFTHelper.__dataclass_fields__:
            return f"it has a {key}, which the vLLM installed does not read"
    try:
        helper = PEFTHelper.from_local_dir(path, None)
        helper.validate_legal(LoRAConfig(max_lora_rank=next(size for size in _RANKS if size >= rank)))
    except (ValueError, TypeError, KeyError) as error:
        return " ".join(str(error).split())
    return None


def _targets(path: str) -> list[str]:
    """The last parts of the names of the modules that an adapter changes."""
    return sorted({module.rsplit(".", 1)[-1] for module, _, _ in file_tensors(Path(path))})


def _largest_rank(path: str) -> int:
    config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    return max([int(config.get("r") or 1), *map(int, (config.get("rank_pattern") or {}).values())])


def _merge(settings: dict[str, Any], folder: Path) -> None:
    wanted = ("model", "revision", "adapter", "dtype", "trust_remote_code")
    given = {name: settings[name] for name in wanted} | {"folder": str(folder)}
    done = subprocess.run(
        module_command("mrpo_pipeline.models.merging", json.dumps(given)),
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=child_environment(),
    )
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()
    message = said[-1] if said else f"exit status {done.returncode}"
    if done.returncode == NOT_MERGEABLE:
        raise UnsupportedError(message)
    raise RunError(
        f"the adapter {settings['adapter']} could not be merged into {settings['model']}, which vLLM needs: {message}. "
        f"Merging holds the model in the memory of this machine and writes it to {folder.parent}: is there room?"
    )
