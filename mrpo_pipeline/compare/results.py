"""The results of a comparison, as written to ``comparison.json``."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import mrpo_pipeline
from mrpo_pipeline.compare import table
from mrpo_pipeline.compare.comparisons import Outcomes, compare_outcomes, shares
from mrpo_pipeline.compare.job import PAIRS, Job
from mrpo_pipeline.compare.methods import START, Contender
from mrpo_pipeline.compare.metric_selection import drift_per_token, metric_that_moves, ties_within, with_references
from mrpo_pipeline.compare.verdict import verdict_of
from mrpo_pipeline.compare.verdict_case import Verdict
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.errors import RunError
from mrpo_pipeline.evaluation.intervals import mean_known
from mrpo_pipeline.evaluation.pair_outcomes import COMPARABLE, pair_outcomes
from mrpo_pipeline.files.atomic import write_whole
from mrpo_pipeline.policy.anchor_drift import DRIFT, anchor_drift, pair_drift

VERSION = 1
DOCUMENT = "comparison.json"
_OWN = {
    "rewards/accuracies": "own reward larger on the chosen side (not comparable across methods)",
    "loss": "loss (not comparable across methods)",
}


@dataclass
class Comparison:
    """The results of a comparison, and their folder."""

    folder: Path
    document: dict[str, Any]
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        return self.document

    def table(self) -> str:
        """Shares with intervals, differences and the verdict, for the terminal."""
        return table.terminal(self.document)

    def write(self) -> None:
        """Write ``comparison.json`` and ``comparison.md``, each atomically."""
        texts = {
            DOCUMENT: json.dumps(self.document, indent=1, ensure_ascii=False),
            "comparison.md": table.markdown(self.document),
        }
        for name, text in texts.items():
            write_whole(self.folder / name, text)


@dataclass
class Entry:
    """A training and its runs; methods that are the same training share one entry, under the first one's name.

    Attributes:
        identity: digest of everything that determines the training, except the seed. jobs: its runs, in the order of the seeds.
        describes: the method in one line. diagnostics: of the references on the training pairs.
        also: names of further methods that are the same training.
        results: ``result.json`` of each finished run.
    """

    contender: Contender
    identity: str
    jobs: Sequence[Job]
    describes: str
    diagnostics: Mapping[str, float]
    also: list[str] = field(default_factory=list)
    results: Sequence[Mapping[str, Any]] = ()


def summarize(
    folder: Path,
    methods: Sequence[Entry],
    held_out: PreferenceExamples,
    clusters: pl.Series,
    seeds: Sequence[int],
    *,
    metric: str,
    more: Mapping[str, Any],
) -> Comparison:
    """Make the comparison from the files of its runs.

    Args:
        methods: those that were trained with every seed.
        held_out: the pairs, with the anchor's log-probs. clusters: (N,), the prompt's number of each pair.
        more: further entries of the document, such as pairs and costs.
    """
    runs = {one.contender.name: [Path(job.folder) for job in one.jobs] for one in methods}
    outcomes, drift = outcomes_of(folder / START, runs, held_out, clusters, PAIRS)
    contenders = [one.contender for one in methods]
    own_shares = shares(outcomes)
    compared = compare_outcomes(contenders, outcomes)
    requested = metric
    metric, note = metric_that_moves(with_references(outcomes, contenders), requested)
    verdict = verdict_of(contenders, compared, own_shares, len(seeds), metric, note=note)
    last = max((run for one in methods for run in one.results), key=lambda run: str(run.get("finished", "")))
    document = {
        "version": VERSION,
        "mrpo": mrpo_pipeline.__version__,
        # From the run that finished last, so that the same runs always give the same document.
        **{key: last[key] for key in ("finished", "versions") if key in last},
        **more,
        "held_out": len(held_out),
        "prompts": int(clusters.n_unique()),
        "seeds": list(seeds),
        "metrics": {**COMPARABLE, **DRIFT, **_OWN},
        "verdict_metric": metric,
        "asked_metric": requested,
        "drift_per_token": drift,
        "start": {name: float(values.mean()) for name, values in outcomes.start.items()}
        | anchor_drift(*_sums_of(folder / START / PAIRS, held_out), held_out),
        "methods": [_method(one, own_shares[one.contender.name], outcomes, held_out) for one in methods],
        "comparisons": [one.as_dict() for one in compared],
        "verdict": verdict.as_dict(),
    }
    return Comparison(folder, _finite(document), verdict)


def clusters_of(frame: pl.DataFrame) -> pl.Series:
    """(N,) the prompt's number of each pair: pairs of one prompt are not independent."""
    return frame["prompt"].rank("dense").cast(pl.Int64) - 1


def outcomes_of(
    start: Path, runs: Mapping[str, Sequence[Path]], examples: PreferenceExamples, clusters: pl.Series, file: str
) -> tuple[Outcomes, float]:
    """The outcomes of the start and of the runs' policies on the pairs, and the drift in nats per token that ties cover.

    Args:
        start, runs: their folders; those of the runs by method, in the order of the seeds.
        examples: the pairs, with the anchor's log-probs. clusters: (N,), the prompt's number of each pair.
        file: name of the file in each folder with the policy's log-probs of these pairs.
    """
    sums = _sums_of(start / file, examples)
    drift = drift_per_token(*sums, examples)
    ties = ties_within(drift, examples)
    found = {
        name: _over_seeds([pair_outcomes(*_sums_of(x / file, examples), examples, ties=ties) for x in places])
        for name, places in runs.items()
    }
    return Outcomes(clusters.to_numpy(), pair_outcomes(*sums, examples, ties=ties), found), drift


def _method(one: Entry, known: Mapping[str, Any], outcomes: Outcomes, held_out: PreferenceExamples) -> dict[str, Any]:
    contender = one.contender
    metrics: dict[str, Any] = {}
    for metric, values in outcomes.methods[contender.name].items():
        share = known[metric]
        per_seed = values.mean(axis=0).tolist()
        metrics[metric] = {"mean": share.mean, "low": share.low, "high": share.high, "per_seed": per_seed}
    drift = [pair_drift(*_sums_of(Path(job.folder) / PAIRS, held_out), held_out) for job in one.jobs]
    for metric in DRIFT:
        values = np.stack([by[metric] for by in drift], axis=1)
        moved = mean_known(values, outcomes.clusters, shares=False)
        metrics[metric] = {
            "mean": moved.mean, "low": moved.low, "high": moved.high, "per_seed": values.mean(axis=0).tolist(),
        }  # fmt: skip
    for metric in _OWN:
        per_seed = [float(result["metrics"][metric]) for result in one.results]
        metrics[metric] = {"mean": sum(per_seed) / len(per_seed), "low": None, "high": None, "per_seed": per_seed}
    return {
        "name": contender.name,
        "describes": one.describes,
        "method": contender.method.model_dump(mode="json"),
        "references": list(contender.references),
        "baseline": contender.baseline,
        "reference_free": contender.reference_free,
        "pairs": contender.pairs,
        "also": list(one.also),
        "swept": dict(contender.settings),
        "metrics": metrics,
        "train_seconds": [float(result["train_seconds"]) for result in one.results],
        "diagnostics": dict(one.diagnostics),
    }


def _sums_of(path: Path, examples: PreferenceExamples) -> tuple[Any, Any]:
    """(N,) each, nats: the policy's log-probs of the chosen and the rejected sides."""
    frame = pl.read_parquet(path)
    if frame["pair_id"].to_list() != list(examples.pair_ids):
        raise RunError(
            f"{path} holds other pairs than those compared: it was changed since it was written. Delete {path.parent}, and run "
            "the same command again."
        )
    return frame["logps_chosen"].to_numpy(), frame["logps_rejected"].to_numpy()


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {metric: np.stack([run[metric] for run in runs], axis=1) for metric in COMPARABLE}


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON lacks, by null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine() -> str:
    """Short description of this machine."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {_processor()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
