"""`mrpo merge`: merge an adapter into its base and write one plain checkpoint, completely or not at all."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.files.atomic import whole_folder
from mrpo_pipeline.files.disk_errors import disk_error, explain_disk_errors
from mrpo_pipeline.models.checks import reason_of, told
from mrpo_pipeline.models.files import (
    adapter_content,
    download,
    is_folder,
    is_hub_name,
    locate,
    read_config,
    require_weights,
    weight_files,
)
from mrpo_pipeline.models.merge_check import Differences, NotMergeableError
from mrpo_pipeline.models.merged_files import has_tokenizer
from mrpo_pipeline.models.merging import Adapted, compare, merge
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.policy.model import DTYPES
from mrpo_pipeline.policy.require_adapter import CONFIG, require_adapter
from mrpo_pipeline.policy.train import served_tokenizer
from mrpo_pipeline.recipe import Recipe, load_recipe
from mrpo_pipeline.terminal import quiet_libraries

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_TEXTS = (
    "The river runs past the old mill, and nobody has counted its stones.",
    "def add(first, second):\n    return first + second  # 3.14 × 2",
    "Ein Fluß, 東京の夜, naïve café: привет, мир!",
)
_LONGEST = 64  # tokens of a text
# Report the rounding of the merged weights if it exceeds this share of the adapter's change.
_LOST = 0.5


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged checkpoint, its log-prob differences from the adapted model, and notices for the user."""

    folder: Path
    dtype: str
    differences: Differences
    notices: list[str] = field(default_factory=list)


def merge_adapter(
    adapter: str | Path,
    output_dir: str | Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Merged:
    """Merge an adapter, such as `mrpo train` writes to its folder and to each checkpoint, into its base.

    The result is written beside `output_dir`, loaded, compared with the adapted model by log-probs, and then renamed to it.

    Args:
        adapter: its folder. output_dir: of the merged checkpoint; must be empty or not exist.
        base: folder or hub name of the base; by default the one in `adapter_config.json`.
        dtype: of the merged weights; `auto` is the base checkpoint's. With 16 bits, the sum of base and change is rounded.
        trust_remote_code: run Python code of the base. Never read from a file, because the adapter may be untrusted.

    Raises:
        UserError: for an input that is missing, does not fit, or can't be merged, or an output folder that is not empty.
        RunError: if the merged model differs from the adapted one, or for a disk error.
    """
    adapter, output_dir = Path(adapter), Path(output_dir)
    name, revision = _base_of(adapter, base)
    _check_output(output_dir)
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"--dtype is {dtype!r}: expected auto, {', '.join(DTYPES)}. Give one of them.")
    base_folder = _locate_base(adapter, name, revision)
    recipe = _recipe_of(adapter)
    notices = list(_notices(recipe, base_folder, trust_remote_code))
    _check_code(base_folder, name, recipe, trust_remote_code)
    source = ModelSource(
        model=str(base_folder), adapter=str(adapter), dtype=dtype, trust_remote_code=trust_remote_code
    ).named("the base model")
    kept = "Nothing was left there. Free space or grant access there, then run the same command again."
    with (
        explain_disk_errors(output_dir.parent, f"The merged model could not be written to {output_dir}", kept),
        _tokenizer_of(adapter, name, revision, recipe, trust_remote_code) as tokenizer,
        whole_folder(output_dir.resolve()) as made,
    ):
        reader = _tokenizer(tokenizer if has_tokenizer(tokenizer) else base_folder, trust_remote_code)
        adapted = _merge(source, name, made, reader, tokenizer)
        differences = compare(adapted, made, trust_remote_code=trust_remote_code)
        if not differences.agree:
            raise RunError(
                f"The merged model is not the adapted one: its log-probs are {differences.apart:.2g} nats per token away, expected "
                f"{differences.allowed:g} at most in {adapted.dtype}. Nothing was written to {output_dir}. Please report this adapter."
            )
        notices += _check_tokenizer(reader, made, adapted.vocab_size, trust_remote_code)
    if adapted.lost > _LOST:
        notices.append(
            f"Rounding the merged weights to {adapted.dtype} moves them by {adapted.lost:.0%} of what the adapter changes: part of its "
            "change is lost. --dtype float32 keeps it."
        )
    return Merged(output_dir, adapted.dtype, differences, notices)


def _merge(source: ModelSource, base: str, made: Path, reader: Any, tokenizer: Path) -> Adapted:
    texts = [] if reader is None else [reader(text)["input_ids"][:_LONGEST] for text in _TEXTS]
    try:
        return merge(source, made, texts=texts, tokenizer=tokenizer)
    except NotMergeableError as error:
        raise UserError(
            f"The adapter in {source.adapter} can't be merged into {base}: {error}. Expected an adapter that is a change of plain "
            "weights, such as LoRA, and for a quantized base its full-precision form (--base). Serve it as an adapter, or give the "
            "base that it can be merged into."
        ) from error
    except Exception as error:  # the types depend on the kind of adapter
        if isinstance(error, UserError | RunError | MemoryError) or disk_error(error, made) is not None:
            raise
        raise UserError(
            f"The adapter in {source.adapter} can't be merged into {base} ({reason_of(error)}): expected one that peft loads and "
            "merges. Serve it as an adapter."
        ) from error


def _base_of(adapter: Path, base: str | None) -> tuple[str, str | None]:
    """(folder or hub name, revision) of the base."""
    path = require_adapter(adapter) / CONFIG
    config = read_config("the adapter", path) or {}
    if adapter_content("the adapter", adapter) is None:
        raise UserError(
            f"{adapter} lacks adapter_model.safetensors: expected the adapter's weights beside {path.name}."
        )
    if base is not None:
        return base, None
    found, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(found, str) or not found:
        raise UserError(
            f"{path} names no base model: expected base_model_name_or_path, as `mrpo train` writes it. Name the base with --base."
        )
    return found, revision if isinstance(revision, str) else None


def _check_output(output: Path) -> None:
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        what = "holds a model already" if (output / "config.json").exists() else "is there already"
        raise UserError(
            f"{output} {what}: expected a folder that is not there yet, or empty. Give another one with --output."
        )


def _locate_base(adapter: Path, name: str, revision: str | None) -> Path:
    folder = locate(name, revision)
    if is_hub_name(name) and not is_folder(name):
        if folder is None or weight_files("the merge", folder) is None:
            folder = download("the merge", "--base", name, revision)
    elif folder is None:
        raise UserError(
            f"The base model {name} of {adapter} is not there: expected the folder or hub name that the adapter was trained from, "
            "as base_model_name_or_path in its adapter_config.json has it. Put it back, or name it with --base."
        )
    if folder is None or not (folder / "config.json").is_file():
        folder = (
            folder if folder is not None and not is_hub_name(name) else download("the merge", "--base", name, revision)
        )
    require_weights("the merge", folder)
    return folder


def _recipe_of(adapter: Path) -> Recipe | None:
    """The recipe of the run that wrote the adapter, if it can be read."""
    for folder in (adapter, *_run_of(adapter)):
        with suppress(UserError):
            return load_recipe(folder / "recipe.yaml")
    return None


def _run_of(adapter: Path) -> list[Path]:
    """The run's folder, if the adapter is one of its checkpoints."""
    return [adapter.resolve().parent] if _CHECKPOINT.fullmatch(adapter.resolve().name) else []


def _check_code(base: Path, name: str, recipe: Recipe | None, trust_remote_code: bool) -> None:
    """Refuse a model that needs its own code without permission to run it."""
    from transformers import CONFIG_MAPPING

    config = read_config("the base model", base / "config.json") or {}
    code = config.get("auto_map")
    if trust_remote_code or not isinstance(code, dict) or config.get("model_type") in CONFIG_MAPPING:
        return
    asked = recipe is not None and recipe.policy is not None and recipe.policy.trust_remote_code
    ran = " It ran in training (policy.trust_remote_code: true)." if asked else ""
    files = ", ".join(sorted({f"{str(one).rpartition('.')[0]}.py" for one in code.values()})[:3])
    raise UserError(
        f"The base model {name} needs Python code that comes with it ({files}), which runs only on request: expected "
        f"--trust-remote-code.{ran} Read the code, and add that option if you trust it."
    )


def _notices(recipe: Recipe | None, base: Path, trust_remote_code: bool) -> Iterator[str]:
    policy = recipe.policy if recipe is not None else None
    if policy is None:
        return
    if policy.quantization is not None:
        yield (
            f"The adapter was trained on the base in {policy.quantization}, and is merged into its full weights: the merged model "
            "differs from the trained one by that quantization's rounding."
        )
    code = (read_config("the base model", base / "config.json") or {}).get("auto_map")
    if policy.trust_remote_code and code and not trust_remote_code:
        yield "The run used the base's own Python code; this command uses that of transformers. --trust-remote-code uses the base's."


@contextmanager
def _tokenizer_of(
    adapter: Path, base: str, revision: str | None, recipe: Recipe | None, trust_remote_code: bool
) -> Iterator[Path]:
    """The folder whose tokenizer files, or template only, replace the base's in the merged model.

    It is the adapter's folder, else its run's. An unfinished run has written none, so its recipe names them.
    """
    for folder in (adapter, *_run_of(adapter)):
        if has_tokenizer(folder):
            yield folder
            return
    policy = recipe.policy if recipe is not None else None
    if policy is None:
        yield adapter
        return
    reads = ModelSource(
        model=base,
        revision=revision,
        tokenizer=policy.tokenizer,
        template=policy.template,
        trust_remote_code=trust_remote_code,
    ).named("policy")
    with tempfile.TemporaryDirectory(prefix="mrpo-tokenizer-") as made:
        with (
            told(
                f"The tokenizer of the run that wrote {adapter} can't be read",
                "expected the files that its recipe names (policy.tokenizer, policy.template). Run the command where it was trained.",
            ),
            quiet_libraries(),
        ):
            served_tokenizer(reads).save_pretrained(made)
        yield Path(made)


def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The folder's tokenizer; None if it has none that loads."""
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        return None
    with suppress(Exception), quiet_libraries():
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    return None


def _check_tokenizer(before: Any, folder: Path, vocab_size: int, trust_remote_code: bool) -> Iterator[str]:
    """Yield notices on the merged folder's tokenizer; raises RunError if it gives other ids than the original."""
    after = _tokenizer(folder, trust_remote_code)
    if after is None:
        yield "Neither the adapter nor the base has a tokenizer that loads: the merged folder has none."
        return
    if before is not None:
        same = [before(text)["input_ids"] for text in _TEXTS] == [after(text)["input_ids"] for text in _TEXTS]
        if (
            not same
            or before.chat_template != after.chat_template
            or before.get_added_vocab() != after.get_added_vocab()
        ):
            raise RunError("The merged folder's tokenizer gives other ids than the original one. Please report this.")
    if len(after) > vocab_size:
        yield f"The tokenizer has {len(after):,} tokens, and the model embeddings for {vocab_size:,}: it cannot read the others."
