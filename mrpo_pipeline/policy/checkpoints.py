"""Checkpoints that a run can resume from, and the mark of a finished run.

A checkpoint is complete if it has a marker, which is written last, and its files have the sizes in the marker. A run resumes
from it if the files also have the checksums in the marker. A run that is killed while it writes a checkpoint leaves a folder
without a marker, which is ignored. The same marker in the output folder marks the run as finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import remove_folder, sync_file, write_whole_json
from mrpo_pipeline.files.hashing import sha256_of_small
from mrpo_pipeline.policy.run_identity import changes

log = logging.getLogger("mrpo")

MARKER = "complete.json"

_NAME = re.compile(r"^checkpoint-(\d+)$")

HELD_OUT = "held-out pairs"
"""In a finished run's marker: the digest of the pairs that it was evaluated on. It is evaluated again on other ones, not refused."""


class DamagedCheckpointsError(UserError):
    """Every checkpoint of the run holds a damaged file."""


class ChangedRunError(UserError):
    """The run in the output folder has other settings or pairs.

    Attributes:
        differences: the settings, with both values, as a clause.
    """

    def __init__(self, found: Path, differences: str) -> None:
        self.differences = differences
        super().__init__(
            f"--resume found {found}, which was written with other settings: {differences}. Expected the settings that the run started "
            "with. Set them back, or train from the start without --resume (in another --output-dir to keep what is there)."
        )


def mark_complete(checkpoint: Path, identity: Mapping[str, str], files: Iterable[Path] | None = None) -> None:
    """Flush all files of the folder, or the given ones, to disk, then write the marker that lists them."""
    sizes, digests = {}, {}
    for path in sorted(checkpoint.rglob("*") if files is None else files):
        if path.is_file():
            sync_file(path)
            name = path.relative_to(checkpoint).as_posix()
            sizes[name], digests[name] = path.stat().st_size, sha256_of_small(path)
    marker = {"files": sizes, "sha256": digests, "run": dict(identity)}
    write_whole_json(checkpoint / MARKER, marker | {"marker_sha256": _digest_of(marker)})


def _digest_of(marker: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def damaged_file(checkpoint: Path) -> str | None:
    """The first file that differs from the marker; None if none does, or there is no marker.

    A checkpoint of an earlier version has no checksums: only file sizes are compared, and that is logged.
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
        log.warning("%s was written by an earlier version: of its files, the sizes alone can be checked.", checkpoint)
    return None


def read_marker(checkpoint: Path) -> dict[str, str] | None:
    """The identity of the run that wrote a complete checkpoint; None for an incomplete one."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        sizes, run = marker["files"], marker["run"]
        if all((checkpoint / name).stat().st_size == size for name, size in sizes.items()):
            return {str(key): str(value) for key, value in run.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def checkpoints(output_dir: Path) -> list[Path]:
    """Every ``checkpoint-N`` folder by step, complete or not."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found) if path.is_dir()]


def mark_finished(output_dir: Path, identity: Mapping[str, str], held_out: str) -> None:
    """Mark the run in an output folder as finished.

    Args:
        held_out: digest of the held-out pairs; "" for none.
    """
    names = ("adapter_model*.safetensors", "adapter_config.json", "*_results.json")
    files = [path for name in names for path in output_dir.glob(name)]
    mark_complete(output_dir, {**identity, HELD_OUT: held_out}, files)


def is_finished(output_dir: Path, identity: Mapping[str, str], held_out: str, recipe: str = "") -> bool:
    """Whether the output folder holds this run, finished, undamaged, and evaluated on these held-out pairs.

    Args:
        held_out: as in ``mark_finished``. recipe: as in ``latest_complete``.

    Raises:
        ChangedRunError: if it holds a finished run with other settings or training pairs.
    """
    run = read_marker(output_dir)
    if run is None or damaged_file(output_dir):
        return False
    evaluated = run.pop(HELD_OUT, None)
    if run != dict(identity):
        raise ChangedRunError(output_dir, changes(run, identity, output_dir, recipe))
    return evaluated == held_out


def latest_complete(output_dir: Path, identity: Mapping[str, str], recipe: str = "") -> Path | None:
    """Latest complete checkpoint of this run, or None.

    Args:
        recipe: YAML of this run: if the pairs' numbers differ, the error names the settings that differ from ``recipe.yaml``.

    Raises:
        ChangedRunError: if all complete checkpoints are of runs with other settings or pairs; names the differences.
        DamagedCheckpointsError: if there are only damaged ones; names the files.
    """
    other: tuple[Path, dict[str, str]] | None = None
    damaged: list[str] = []
    for checkpoint in reversed(checkpoints(output_dir)):
        if name := damaged_file(checkpoint):
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
            f"--resume found no intact checkpoint in {output_dir}: {', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} not what "
            "training wrote. Expected the original files. Put them back, or train from the start without --resume."
        )
    if other is None:
        return None
    checkpoint, run = other
    raise ChangedRunError(checkpoint, changes(run, identity, output_dir, recipe))


def rotate(
    output_dir: Path, limit: int | None, keep: Iterable[Path | str | None] = (), *, newest: Path | None = None
) -> None:
    """Delete all checkpoints except the ``limit`` newest complete ones.

    Called after the newest one was marked, so that a complete checkpoint exists at all times.

    Args:
        limit: complete checkpoints to keep; None or 0 for all.
        keep: checkpoints to keep in any case, such as the best one.
        newest: the one marked last. By the markers' times alone, a clock set back could make it the oldest.
    """
    if not limit or limit < 0:
        return
    kept = {Path(path).resolve() for path in keep if path is not None}
    # Newest by marker time, not by step: a restarted run has fewer steps than checkpoints of an earlier one.
    whole = [path for path in checkpoints(output_dir) if read_marker(path) is not None]
    whole.sort(key=lambda path: (path == newest, (path / MARKER).stat().st_mtime_ns))
    room = max(limit - len(kept & {path.resolve() for path in whole[:-1]}), 1)
    kept |= {path.resolve() for path in [p for p in whole if p.resolve() not in kept or p is whole[-1]][-room:]}
    for path in checkpoints(output_dir):
        if path.resolve() not in kept:
            remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, the marker first."""
    if not checkpoint.is_symlink():
        (checkpoint / MARKER).unlink(missing_ok=True)
    remove_folder(checkpoint, ignore_errors=True)
