"""An adapter and its base as one plain checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from mrpo_pipeline.adapters import put_adapter
from mrpo_pipeline.broken_models import told
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.model_files import read_config

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def merge_adapter(
    adapter: str | Path, output_dir: str | Path, *, dtype: str = "auto", trust_remote_code: bool = False
) -> Path:
    """Merge what ``mrpo train`` left, from that folder alone: the base is named in its ``adapter_config.json``.

    Args:
        adapter: the folder. output_dir: of the merged checkpoint: safetensors, configuration and tokenizer.
        dtype: of the merged weights; ``auto`` is the base checkpoint's own. In float16 or bfloat16 the sum of base and
            adapter is rounded once, so merged and unmerged log-probs differ by that.

    Raises:
        UserError: for a folder without an adapter, a base that is gone, or an output folder that holds a model already.
    """
    import torch
    from transformers import AutoModelForCausalLM

    adapter, output_dir = Path(adapter), Path(output_dir)
    config_path = adapter / "adapter_config.json"
    if not config_path.is_file():
        raise UserError(
            f"{adapter} holds no adapter: expected a folder with adapter_config.json, as `mrpo train` leaves it in its "
            "--output-dir. Give that folder."
        )
    config = read_config("the adapter", config_path) or {}
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{config_path} names no base model: expected base_model_name_or_path, as `mrpo train` writes it. Add it there."
        )
    if output_dir.resolve() == adapter.resolve() or (output_dir / "config.json").exists():
        raise UserError(f"{output_dir} holds a model already: expected another folder for the merged one. Give one.")
    expected = (
        "expected the folder or hub name it was trained from. Put it back, or correct base_model_name_or_path there."
    )
    with told(f"The base model {base}, which {config_path} names, can't be loaded", expected):
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=revision,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    with told(
        f"The adapter in {adapter} can't be put on {base}", "expected one that was trained from it. Give its folder."
    ):
        merged = put_adapter(model, str(adapter)).merge_and_unload(safe_merge=True)
    merged.save_pretrained(output_dir)
    for name in _TOKENIZER_FILES:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, output_dir / name)
    return output_dir
