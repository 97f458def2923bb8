"""The identity of a training run: its settings and pairs, by name; and how two runs differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.ragged_ids import IdRows, MaskRows
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.recipe.plain_yaml import read_yaml
from mrpo_pipeline.targets.settings import TargetSettings

# The TrainingArguments that change what is computed: a resumed run must have the same values. Those of logging, saving and
# evaluation may change.
NUMERIC_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "neftune_noise_alpha",
    "train_sampling_strategy",
    "dataloader_drop_last",
)


def run_identity(
    examples: PreferenceExamples, policy: Mapping[str, Any], method: Method, arguments: Any
) -> dict[str, str]:
    """The values that a checkpoint of this run must match, by setting name.

    Args:
        policy: its settings that change what is trained. arguments: ``transformers.TrainingArguments``.
    """
    identity = {f"policy.{key}": _text(value) for key, value in policy.items()}
    identity |= {f"method.{key}": _text(value) for key, value in method_in_use(examples, method).items()}
    identity |= {f"training.{key}": _text(getattr(arguments, key)) for key in NUMERIC_ARGUMENTS}
    return identity | {"pairs": examples_digest(examples)}


def method_in_use(examples: PreferenceExamples, method: Method) -> dict[str, Any]:
    """The settings of the method that training reads in addition to the examples, whose values result from the other settings."""
    found = method.loss_in_use()
    if examples.step_references is not None:
        for key, value in method.model_dump(include=set(TargetSettings.model_fields)).items():
            inner = value if isinstance(value, dict) else None
            found |= {key: value} if inner is None else {f"{key}.{name}": one for name, one in inner.items()}
        found["references"] = list(examples.step_references)
    return found


def _text(value: Any) -> str:
    return json.dumps(getattr(value, "value", value), default=str, sort_keys=True)


def examples_digest(examples: PreferenceExamples) -> str:
    """A hash of all that training reads of the pairs: ids, tokens and cached log-probs."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\n".join(examples.pair_ids).encode())
    for rows in (examples.prompt_ids, examples.chosen_ids, examples.rejected_ids):
        together = IdRows.of(rows)
        digest.update(together.lengths.data)
        digest.update(np.ascontiguousarray(together.flat, dtype=np.int32).data)
    for scored in (examples.chosen_scored, examples.rejected_scored):
        if scored is not None:
            masks = MaskRows.of(scored)
            digest.update(masks.lengths.data)
            digest.update(np.packbits(masks.flat).data)
    for name in ("reference_chosen", "reference_rejected", "weights", "chosen_units", "rejected_units", "margins"):
        column = getattr(examples, name)
        digest.update(b"none" if column is None else np.ascontiguousarray(column, dtype=np.float64).tobytes())
    if examples.floored_margins is not None:
        digest.update(np.ascontiguousarray(examples.floored_margins, dtype=np.float64).tobytes())
    if examples.judges is not None:
        digest.update(examples_digest(examples.judges).encode())
    return digest.hexdigest()


def changes(run: Mapping[str, str], identity: Mapping[str, str], output_dir: Path, recipe: str) -> str:
    """The differences between a run that was found and this one, as a clause."""
    names = [name for name in identity if run.get(name) != identity[name]] or sorted(set(run) - set(identity))
    return ", ".join(
        f"{name} (the pairs or their cached numbers have changed{_recipe_changes(output_dir / 'recipe.yaml', recipe)})"
        if name == "pairs"
        else f"{name} (was {run.get(name, 'absent')}, now {identity.get(name, 'absent')})"
        for name in names
    )


def _recipe_changes(written: Path, recipe: str) -> str:
    """Settings of pairs, references, limits and method that differ from the written recipe, as a clause; "" for none."""
    try:
        before, now = (_flat(read_yaml(text)) for text in (written.read_text(encoding="utf-8"), recipe))
    except (OSError, ValueError):
        return ""
    keys = [key for key in {**before, **now} if key.split(".")[0] in ("pairs", "references", "limits", "method")]
    changed = [
        f"{key} was {before.get(key, 'absent')}, and is {now.get(key, 'absent')} now"
        for key in keys
        if before.get(key, "absent") != now.get(key, "absent")
    ]
    return f": {'; '.join(changed[:3])}" if changed else ""


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{key}.{name}" if key else str(name))
    return found
