"""Which checkpoints of a run can be gone on from.

A checkpoint is whole when its marker is there, which is written after everything else, and the files it lists have the
sizes it gives; a run resumes from it when they have the checksums it gives, too. A run that is killed while it writes one
leaves a folder without a marker, which is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.ragged_ids import IdRows, MaskRows
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import remove_folder, sync_file, write_whole_json
from mrpo_pipeline.files.hashing import sha256_of_small
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.targets.settings import TargetSettings

log = logging.getLogger("mrpo")

MARKER = "complete.json"

_NAME = re.compile(r"^checkpoint-(\d+)$")

# The keys of TrainingArguments that change what is computed; a resumed run must have them as they were. Those of logging,
# saving and evaluating are free.
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


class DamagedCheckpointsError(UserError):
    """Every checkpoint that a run could resume from holds a file that training did not write."""


def run_identity(
    examples: PreferenceExamples, policy: Mapping[str, Any], method: Method, arguments: Any
) -> dict[str, str]:
    """What must be the same for a checkpoint to belong to this run, by the name under which a user knows it.

    Args:
        policy: its settings that count. arguments: ``transformers.TrainingArguments``.
    """
    identity = {f"policy.{key}": _text(value) for key, value in policy.items()}
    identity |= {f"method.{key}": _text(value) for key, value in method_in_use(examples, method).items()}
    identity |= {f"training.{key}": _text(getattr(arguments, key)) for key in NUMERIC_ARGUMENTS}
    return identity | {"pairs": examples_digest(examples)}


def method_in_use(examples: PreferenceExamples, method: Method) -> dict[str, Any]:
    """What training reads of the method beside the pairs' own numbers, which are what the rest of it made of them."""
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
    """A hash of everything training reads of the pairs: ids, tokens, and cached numbers."""
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
    if examples.judges is not None:
        digest.update(examples_digest(examples.judges).encode())
    return digest.hexdigest()


def begin(checkpoint: Path) -> None:
    """Make room for a checkpoint: whatever an earlier run left under its name goes, the marker first."""
    _remove(checkpoint)


def mark_complete(checkpoint: Path, identity: Mapping[str, str]) -> None:
    """Write the marker: everything else in the folder has been written and is on the disk."""
    sizes, digests = {}, {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file():
            sync_file(path)
            name = path.relative_to(checkpoint).as_posix()
            sizes[name], digests[name] = path.stat().st_size, sha256_of_small(path)
    marker = {"files": sizes, "sha256": digests, "run": dict(identity)}
    write_whole_json(checkpoint / MARKER, marker | {"marker_sha256": _digest_of(marker)})


def _digest_of(marker: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def damage(checkpoint: Path) -> str | None:
    """Which file of a checkpoint with a marker is not what training wrote; None where all are, or there is no marker.

    A checkpoint of an earlier version has no checksums: the sizes of its files are looked at, and that is logged.
    """
    path = checkpoint / MARKER
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
        sizes, digests = marker["files"], marker.get("sha256")
        own = marker.pop("marker_sha256", None)
        if (own is not None or digests is not None) and own != _digest_of(marker):
            return MARKER
        for name, size in sizes.items():
            file = checkpoint / name
            if not file.is_file() or file.stat().st_size != size:
                return str(name)
            if digests is not None and digests[name] != sha256_of_small(file):
                return str(name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return MARKER
    if digests is None:
        log.warning("%s was written by an earlier version: of its files the sizes alone can be checked.", checkpoint)
    return None


def read_marker(checkpoint: Path) -> dict[str, str] | None:
    """The identity of the run that wrote a whole checkpoint; None for one that is not whole."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        sizes, run = marker["files"], marker["run"]
        if all((checkpoint / name).stat().st_size == size for name, size in sizes.items()):
            return {str(key): str(value) for key, value in run.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def checkpoints(output_dir: Path) -> list[Path]:
    """Every ``checkpoint-N`` folder, whole or not, by step."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def last_whole(output_dir: Path, identity: Mapping[str, str]) -> Path | None:
    """The checkpoint to go on from: of this run, whole, with the most steps; None where there is none.

    Raises:
        UserError: where the whole checkpoints are all of runs with other settings or pairs, naming what differs.
        DamagedCheckpointsError: where there are damaged ones and none that is sound, naming the files.
    """
    other: tuple[Path, dict[str, str]] | None = None
    damaged: list[str] = []
    for checkpoint in reversed(checkpoints(output_dir)):
        if name := damage(checkpoint):
            damaged.append(f"{checkpoint / name}")
            log.warning("%s is not what training wrote: this checkpoint is not used.", checkpoint / name)
            continue
        run = read_marker(checkpoint)
        if run is None:
            continue
        if run == dict(identity):
            return checkpoint
        other = other or (checkpoint, run)
    if other is None and damaged:
        raise DamagedCheckpointsError(
            f"--resume found no sound checkpoint in {output_dir}: {', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} not what "
            "training wrote. Expected the files as they were. Put them back, or train from the start without --resume."
        )
    if other is None:
        return None
    checkpoint, run = other
    names = [name for name in identity if run.get(name) != identity[name]] or sorted(set(run) - set(identity))
    changes = ", ".join(
        f"{name} (the pairs or their cached numbers have changed)"
        if name == "pairs"
        else f"{name} (was {run.get(name, 'absent')}, now {identity.get(name, 'absent')})"
        for name in names
    )
    raise UserError(
        f"--resume found {checkpoint}, which was written with other settings: {changes}. A run can only go on as it began. "
        "Set them back, or train from the start without --resume (in another --output-dir to keep what is there)."
    )


def rotate(
    output_dir: Path, limit: int | None, keep: Iterable[Path | str | None] = (), *, newest: Path | None = None
) -> None:
    """Delete the oldest checkpoints beyond the ``limit`` newest whole ones, and those that are not whole.

    Called after the newest one was marked, so that a whole one is there at every instant.

    Args:
        limit: whole checkpoints to keep; None or 0 for all.
        keep: checkpoints that stay besides, the best one say.
        newest: the one marked last; what the markers' times say where not given. A clock that jumped back would make it the
            oldest.
    """
    if not limit or limit < 0:
        return
    kept = {Path(path).resolve() for path in keep if path is not None}
    # The newest by when they were marked: a run begun anew has fewer steps than what an earlier one left.
    whole = [path for path in checkpoints(output_dir) if read_marker(path) is not None]
    whole.sort(key=lambda path: (path == newest, (path / MARKER).stat().st_mtime_ns))
    room = max(limit - len(kept & {path.resolve() for path in whole[:-1]}), 1)
    kept |= {path.resolve() for path in [p for p in whole if p.resolve() not in kept or p is whole[-1]][-room:]}
    for path in checkpoints(output_dir):
        if path.resolve() not in kept:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    if not checkpoint.is_symlink():
        (checkpoint / MARKER).unlink(missing_ok=True)
    remove_folder(checkpoint, ignore_errors=True)
