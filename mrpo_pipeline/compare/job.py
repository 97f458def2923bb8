"""One run of a comparison: a method trained with a seed and measured on the held-out pairs, or the start measured."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.compare.methods import START
from mrpo_pipeline.evaluation.pair_outcomes import COMPARABLE
from mrpo_pipeline.evaluation.staleness import forget
from mrpo_pipeline.files.atomic import remove_folder, whole_file, write_whole, write_whole_json
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.files.hashing import sha256_of_small

if TYPE_CHECKING:
    from mrpo_pipeline.dataset.policy_start import AnchorStart
    from mrpo_pipeline.recipe import Method, Policy

log = logging.getLogger("mrpo")

RESULT = "result.json"
PAIRS = "pairs.parquet"
LOG = "log.txt"
_RUNNING = "running.json"

# Called with the share of the work that is done, between 0 and 1.
Tell = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Job:
    """What a process needs to make one run, as plain data.

    Attributes:
        name: the method's, or ``start``.
        folder: where its results go.
        train, held_out: folders of prepared pairs, which are mapped; ``choice`` the same of pairs that a sweep looks at.
        policy, method, training: as ``mrpo_pipeline.policy.train`` takes them, the first two as plain data.
        recipe: the resolved recipe of this run, YAML, to lie beside its results.
        key: of everything that decides the result.
        card, diagnostics: see ``mrpo_pipeline.policy.train``.
        anchor: ``dataset.policy_start.AnchorStart`` as plain data; None where the start is not compared.
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
    recipe: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    anchor: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        return "the start" if self.name == START else f"{self.name}, seed {self.seed}"

    def as_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        return cls(**json.loads(text))


def finished(job: Job) -> dict[str, Any] | None:
    """What an earlier call left of this very run; None where it left nothing or another run, or its sums are damaged."""
    place = Path(job.folder)
    result = _read(place / RESULT)
    if result is None or result.get("key") != job.key or not (place / PAIRS).is_file():
        return None
    if _is_sound(place, result):
        return result
    log.warning("%s: %s is not what was written there, and the run is made again.", job.title, place / PAIRS)
    return None


def _is_sound(place: Path, result: Mapping[str, Any]) -> bool:
    """Whether the sums of the pairs are those that the run left. Runs of earlier versions have no checksum: theirs are read."""
    import polars as pl

    try:
        if "pairs_sha256" in result:
            return bool(result["pairs_sha256"] == sha256_of_small(place / PAIRS))
        pl.read_parquet(place / PAIRS, columns=["pair_id", "logps_chosen", "logps_rejected"])
    except (OSError, pl.exceptions.PolarsError):
        return False
    return True


def run_job(job: Job, tell: Tell) -> dict[str, Any]:
    """Train and measure, or measure the start; leaves ``result.json`` last, and returns what stands in it.

    A run that was stopped goes on from its last whole checkpoint, where the recipe had it write some.
    """
    with held(job.folder, "mrpo compare", within=True):
        return _made(job, tell)


def _made(job: Job, tell: Tell) -> dict[str, Any]:
    from mrpo_pipeline.recipe import Method, Policy

    place = Path(job.folder)
    policy = Policy.model_validate(job.policy)
    method = Method.model_validate(job.method)
    took = 0.0
    if job.name != START:
        began = time.monotonic()
        _train(job, policy, method, tell)
        took = time.monotonic() - began
        # What is measured is the adapter that lies on disk, loaded as a user would load it.
        policy = policy.model_copy(update={"adapter": str(place)})
    measured = _measure(job, policy, method)
    digest = sha256_of_small(place / PAIRS)
    result = {"key": job.key, **measured, "train_seconds": took, "pairs_sha256": digest}
    write_whole_json(place / RESULT, result)
    (place / _RUNNING).unlink(missing_ok=True)
    return result


def _train(job: Job, policy: Policy, method: Method, tell: Tell) -> None:
    from mrpo_pipeline.dataset.examples import PreferenceExamples
    from mrpo_pipeline.policy.checkpoints import DamagedCheckpointsError
    from mrpo_pipeline.policy.train import train_policy

    place = Path(job.folder)
    resume = (_read(place / _RUNNING) or {}).get("key") == job.key
    if not resume:
        _clear(place)
    write_whole_json(place / _RUNNING, {"key": job.key})
    write_whole(place / "recipe.yaml", job.recipe)
    # Held-out pairs are looked at during training where the recipe says so; at the end, by `_measure`, in any case.
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
        callbacks=[_share_told(tell)],
    )
    try:
        train(resume=resume)
    except DamagedCheckpointsError:
        log.warning("%s: no checkpoint of it is sound, and it is trained from its start.", job.title)
        _clear(place)
        train(resume=False)


def _measure(job: Job, policy: Policy, method: Method) -> dict[str, Any]:
    """The policy's figures on the held-out pairs, its sums of each in ``pairs.parquet``; and what a sweep asks of others."""
    import polars as pl

    from mrpo_pipeline.dataset.examples import PreferenceExamples
    from mrpo_pipeline.evaluation.held_out import device_of_choice, dtype_of, evaluate_policy
    from mrpo_pipeline.policy.anchor_check import compare_start
    from mrpo_pipeline.policy.method_state import AT_START, read_figures
    from mrpo_pipeline.policy.model import load_policy

    began = time.monotonic()
    model = load_policy(policy).to(device_of_choice())
    examples = PreferenceExamples.open(Path(job.held_out))
    carried = AT_START if job.name == START else read_figures(job.folder)
    figures = evaluate_policy(model, examples, method, carried)
    anchor = _anchor(job)
    if job.name == START and anchor is not None:
        compare_start(examples, figures.chosen, figures.rejected, anchor, dtype_of(model))
    table = {"pair_id": list(examples.pair_ids), "logps_chosen": figures.chosen, "logps_rejected": figures.rejected}
    with whole_file(Path(job.folder) / PAIRS) as temporary:
        pl.DataFrame(table).write_parquet(temporary)
    result: dict[str, Any] = {"metrics": figures.metrics}
    if job.choice:
        choice = evaluate_policy(model, PreferenceExamples.open(Path(job.choice)), method, carried)
        result["choice"] = {metric: choice.metrics[metric] for metric in COMPARABLE}
    return {**result, "evaluate_seconds": time.monotonic() - began}


def _anchor(job: Job) -> AnchorStart | None:
    from mrpo_pipeline.dataset.policy_start import AnchorStart

    return None if job.anchor is None else AnchorStart(**job.anchor)


def _share_told(tell: Tell) -> Any:
    from transformers import TrainerCallback

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tell(state.global_step / max(state.max_steps, 1))

    return Told()


def _clear(place: Path) -> None:
    """Take away what another run left under this name."""
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
