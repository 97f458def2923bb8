"""One run of a comparison: train a method with a seed and evaluate it on the held-out pairs, or evaluate the start."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.compare.methods import START
from mrpo_pipeline.evaluation.staleness import forget
from mrpo_pipeline.files.atomic import remove_folder, whole_file, write_whole_json
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.files.hashing import sha256_of_small

if TYPE_CHECKING:
    from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart
    from mrpo_pipeline.recipe import Method, Policy

log = logging.getLogger("mrpo")

RESULT = "result.json"
PAIRS = "pairs.parquet"
LOG = "log.txt"
_RUNNING = "running.json"
_PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True, eq=False)
class Job:
    """The input of one run, as plain data.

    Attributes:
        name: the method's name, or ``start``.
        folder: the results folder.
        train, held_out: folders of prepared pairs, memory-mapped. choice: the same of the pairs by which a sweep selects, in a
            folder named by their content; empty for none.
        policy, method, training: as in ``mrpo_pipeline.policy.train``, the first two as plain data.
        key: digest of everything that decides the result.
        card, diagnostics: see ``mrpo_pipeline.policy.train``.
        anchor: ``dataset.anchor_mismatch.AnchorStart`` as plain data; None if the start is not compared.
    """

    name: str
    seed: int
    folder: str
    held_out: str
    policy: Mapping[str, Any]
    method: Mapping[str, Any]
    key: str
    train: str = ""
    choice: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    anchor: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        return "the start" if self.name == START else f"{self.name}, seed {self.seed}"

    @property
    def measured(self) -> dict[str, str]:
        """File of sums → folder of its prepared pairs."""
        return {PAIRS: self.held_out} | ({sums_file(self.choice): self.choice} if self.choice else {})

    def as_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))


def sums_file(choice: str) -> str:
    """The file name for a policy's log-probs of the pairs by which a sweep selects."""
    return f"{Path(choice).name}.parquet"


def finished(job: Job) -> dict[str, Any] | None:
    """The result that an earlier call wrote for this run; None if there is none or its sums are damaged."""
    place = Path(job.folder)
    result = _read(place / RESULT)
    if result is None or result.get("key") != job.key:
        return None
    written = result.get("sums", {})
    for name in job.measured:
        if name not in written:
            return None
        if not (place / name).is_file() or written[name] != sha256_of_small(place / name):
            log.warning("%s: %s was changed after it was written; the run is made again.", job.title, place / name)
            return None
    return result


def run_job(job: Job) -> dict[str, Any]:
    """Train and evaluate, or evaluate the start; writes ``result.json`` last and returns its content.

    An interrupted run resumes from its latest complete checkpoint, if any.
    """
    with held(job.folder, "mrpo compare", within=True):
        return _train_and_measure(job)


def _train_and_measure(job: Job) -> dict[str, Any]:
    from mrpo_pipeline.recipe import Method, Policy

    place = Path(job.folder)
    policy = Policy.model_validate(job.policy)
    method = Method.model_validate(job.method)
    took = 0.0
    if job.name != START:
        began = time.monotonic()
        _train(job, policy, method)
        took = time.monotonic() - began
        # Evaluate the adapter on disk, loaded as a user would load it.
        policy = policy.model_copy(update={"adapter": str(place)})
    measured = _measure(job, policy, method)
    result = {
        "key": job.key,
        **measured,
        "train_seconds": took,
        "sums": {name: sha256_of_small(place / name) for name in job.measured},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }
    write_whole_json(place / RESULT, result)
    (place / _RUNNING).unlink(missing_ok=True)
    return result


def _train(job: Job, policy: Policy, method: Method) -> None:
    from mrpo_pipeline.dataset.examples import PreferenceExamples
    from mrpo_pipeline.policy.checkpoints import DamagedCheckpointsError
    from mrpo_pipeline.policy.train import train_policy

    place = Path(job.folder)
    resume = (_read(place / _RUNNING) or {}).get("key") == job.key
    if not resume:
        _clear(place)
    write_whole_json(place / _RUNNING, {"key": job.key})
    # `_measure` evaluates after training in any case.
    along = job.training.get("eval_strategy", "no") != "no"
    train = partial(
        train_policy,
        policy,
        PreferenceExamples.open(Path(job.train)),
        PreferenceExamples.open(Path(job.held_out)) if along else None,
        method,
        job.training,
        place,
        anchor=_anchor(job),
        card=job.card,
        diagnostics=job.diagnostics,
    )
    try:
        train(resume=resume)
    except DamagedCheckpointsError:
        log.warning("%s: all of its checkpoints are damaged; training starts again from the beginning.", job.title)
        _clear(place)
        train(resume=False)


def _measure(job: Job, policy: Policy, method: Method) -> dict[str, Any]:
    """The policy's metrics on the held-out pairs; writes its log-probs of these and of the pairs by which a sweep selects."""
    import polars as pl

    from mrpo_pipeline.dataset.examples import PreferenceExamples
    from mrpo_pipeline.evaluation.held_out import device_of_choice, dtype_of, evaluate_policy
    from mrpo_pipeline.policy.anchor_check import compare_start
    from mrpo_pipeline.policy.method_state import AT_START, read_snapshot
    from mrpo_pipeline.policy.model import load_policy

    began = time.monotonic()
    model = load_policy(policy).to(device_of_choice())
    snapshot = AT_START if job.name == START else read_snapshot(job.folder)
    anchor, metrics = _anchor(job), {}
    for name, folder in job.measured.items():
        examples = PreferenceExamples.open(Path(folder))
        figures = metrics[name] = evaluate_policy(model, examples, method, snapshot)
        if job.name == START and name == PAIRS and anchor is not None:
            compare_start(examples, figures.chosen, figures.rejected, anchor, dtype_of(model))
        sums = {"pair_id": list(examples.pair_ids), "logps_chosen": figures.chosen, "logps_rejected": figures.rejected}
        with whole_file(Path(job.folder) / name) as temporary:
            pl.DataFrame(sums).write_parquet(temporary)
    return {"metrics": metrics[PAIRS].metrics, "evaluate_seconds": time.monotonic() - began}


def _anchor(job: Job) -> AnchorStart | None:
    from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart

    return None if job.anchor is None else AnchorStart(**job.anchor)


def _clear(place: Path) -> None:
    """Remove the files of another run with this name."""
    from mrpo_pipeline.policy.checkpoints import checkpoints

    for path in checkpoints(place):
        remove_folder(path)
    for name in (RESULT, PAIRS, "weights.parquet", "carried.json", "train_results.json", "eval_results.json"):
        (place / name).unlink(missing_ok=True)
    forget(place)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None
