"""`mrpo compare`: methods × seeds trained and measured on one cache, and what that shows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.cached_logps import CachedPairs, open_caches
from mrpo_pipeline.compare.job import RESULT, Job, finished
from mrpo_pipeline.compare.methods import START, Contender, contenders, settings_of
from mrpo_pipeline.compare.places import Places, places_for
from mrpo_pipeline.compare.processes import Outcome, run_all
from mrpo_pipeline.compare.results import DOCUMENT, Comparison, Trained, machine, summarize
from mrpo_pipeline.counting import in_words
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.outputs import check_output_folder
from mrpo_pipeline.policy.checkpoints import examples_digest
from mrpo_pipeline.policy.settings import LossSettings, PolicySettings
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.stage_two import (
    Split,
    card_of,
    check_method,
    describe,
    examples_of,
    load_splits,
    loss_settings,
    policy_settings,
    with_seed,
)
from mrpo_pipeline.whole_files import write_whole_json

log = logging.getLogger("mrpo")

SWEEP = "sweep"
_INPUTS = ".inputs-"


def compare_recipe(recipe: Recipe) -> Comparison:
    """Train and evaluate every method with every seed; what an earlier call finished is taken as it is.

    Pairs and caches are read once; the runs map what was prepared from files. For a seed, every method starts from the same
    adapter and takes the same batches in the same order.

    Leaves in ``output_dir``: ``recipe.yaml``, ``audit.json``, ``held_out.parquet``, ``start/`` and ``METHOD/seed-N/`` (what
    ``mrpo train`` leaves, ``result.json``, ``pairs.parquet``, ``log.txt``), ``sweep/`` with the runs of a sweep,
    ``comparison.json``, ``comparison.md``, and the report (``report.html``, ``plots/``).

    Raises:
        UserError: for a recipe, pairs or caches that are wrong.
        RunError: where a run failed; what is finished is kept, and a comparison of it is written where one can be made.
    """
    from mrpo_pipeline.policy.processes import refuse_several
    from mrpo_pipeline.report import write_report

    refuse_several("mrpo compare")
    began = time.monotonic()
    entrants = contenders(recipe)
    for one in entrants:
        check_method(recipe, one.method)
    check_output_folder(recipe)
    sweeps = any(len(settings_of(recipe, one)) > 1 for one in entrants)
    if sweeps and not recipe.pairs.weights_fraction:
        raise UserError(
            "The recipe has a compare.sweep and no third split to choose by: a setting chosen on the held-out pairs would flatter "
            "itself there. Expected pairs.weights_fraction above 0, 0.1 say. Set it, or take the sweep out."
        )
    caches = open_caches(recipe)
    splits = load_splits(recipe, caches, "train", "eval")
    folder = Path(recipe.output_dir)
    recipe.write(folder)
    _write_held_out(folder / "held_out.parquet", splits["eval"].pairs)
    _audit(recipe, splits, caches, folder)
    for left_behind in folder.glob(f"{_INPUTS}*"):
        shutil.rmtree(left_behind)
    with tempfile.TemporaryDirectory(prefix=_INPUTS, dir=folder) as inputs:
        desk = _Desk(recipe, splits, policy_settings(recipe, caches), folder, Path(inputs))
        desk.start()
        swept: list[dict[str, Any]] = []
        if sweeps:
            entrants, swept = _choose(desk, entrants)
        for one in entrants:
            desk.add(one)
        desk.run()
    frame = splits["eval"].pairs.frame
    complete = [one for one in map(desk.trained, desk.entries) if one is not None]
    more = {
        "pairs": {name: split.counts() for name, split in splits.items()},
        "costs": desk.costs(time.monotonic() - began),
        "sweep": swept,
        "failed": [{"run": job.title, "reason": reason} for job, reason in desk.outcome.failed.items()],
    }
    comparison = None
    if desk.start_job in desk.outcome.results and complete:
        held_out = desk.held_out
        comparison = summarize(
            folder, complete, held_out, _clusters(frame), recipe.compare.seeds, metric=recipe.compare.metric, more=more
        )
        comparison.write()
        write_report(folder)
    if desk.outcome.failed:
        raise RunError(_failures(desk.outcome, folder, comparison))
    assert comparison is not None
    for name, split in splits.items():
        log.info("%s: %s", name, in_words(split.counts()))
    return comparison


@dataclass
class _Entry:
    """A method that is trained once, under the name it has first."""

    contender: Contender
    identity: str
    jobs: list[Job]
    describes: str
    diagnostics: Mapping[str, float]
    also: list[str] = field(default_factory=list)


class _Desk:
    """Prepares what the runs need, has them made, and keeps what came of them."""

    def __init__(
        self, recipe: Recipe, splits: dict[str, Split], policy: PolicySettings, folder: Path, inputs: Path
    ) -> None:
        self.recipe, self.splits, self.policy, self.folder, self.inputs = recipe, splits, policy, folder, inputs
        self.entries: list[_Entry] = []
        self.outcome = Outcome()
        self.places = Places(1)
        self.made = 0
        self.held_out, _ = examples_of(splits["eval"], Method(name="dpo"))
        self.pending: list[Job] = []
        self.choice = ""

    def start(self) -> None:
        """The policy before training is measured like every other."""
        where = self.inputs / START
        self.held_out.write(where)
        key = _digest(examples_digest(self.held_out), repr(self.policy))
        self.start_job = Job(
            START, 0, str(self.folder / START), str(where), dataclasses.asdict(self.policy),
            dataclasses.asdict(LossSettings()), key,
        )  # fmt: skip
        self.pending.append(self.start_job)

    def keep_choice(self) -> None:
        """The pairs of the third split, by which a sweep chooses: only the policy's tokens of them are looked at."""
        chosen_by, _ = examples_of(self.splits["weights"], Method(name="dpo"))
        where = self.inputs / "choice"
        chosen_by.write(where)
        self.choice = str(where)

    def add(self, one: Contender, *, seeds: Sequence[int] | None = None, root: Path | None = None) -> _Entry:
        """Prepare a method's pairs and its runs; one that is the same training as an earlier one is not trained again.

        Args:
            seeds: the recipe's where None. root: where its folder goes; the comparison's where None.
        """
        recipe, own = self.recipe, one.method
        parts = {name: _without(self.splits[name], one.without) for name in ("train", "eval")}
        train, targets = examples_of(parts["train"], own)
        held_out, _ = examples_of(parts["eval"], own, say=False)
        loss = loss_settings(own)
        identity = _digest(
            examples_digest(train), examples_digest(held_out), repr(train.step_settings), repr(loss), repr(self.policy)
        )
        describes = describe(own) + (f" Without {one.without}." if one.without else "")
        entry = _Entry(one, identity, [], describes, dict(targets.diagnostics))
        twin = next((x for x in self.entries if x.identity == identity), None) if root is None else None
        if twin is not None:
            log.info("%s is the same training as %s: one run stands for both.", one.name, twin.contender.name)
            twin.also.append(one.name)
            return twin
        where = self.inputs / hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        if not where.exists():
            # The token ids are the same for every method; they lie there once.
            kept = self.inputs / "ids"
            if not kept.exists():
                train.write(kept)
            train.write(where / "train", ids_from=kept)
            held_out.write(where / "held_out", ids_from=self.inputs / START)
        for seed in seeds or recipe.compare.seeds:
            place = (root or self.folder) / one.name / f"seed-{seed}"
            seeded = with_seed(recipe, seed).model_copy(
                update={
                    "method": own,
                    "output_dir": str(place),
                    "references": {name: recipe.references[name] for name in one.references},
                }
            )
            training = seeded.training_arguments()
            key = _digest(identity, json.dumps(training, sort_keys=True, default=str))
            job = Job(
                one.name, seed, str(place), str(where / "held_out"), dataclasses.asdict(self.policy),
                dataclasses.asdict(loss), key, str(where / "train"), self.choice, training, seeded.dump(),
                card_of(seeded, parts), dict(targets.diagnostics),
            )  # fmt: skip
            entry.jobs.append(job)
            self.pending.append(job)
        if root is None:
            self.entries.append(entry)
        return entry

    def run(self) -> None:
        """Make the runs that are waiting, but for those that an earlier call finished."""
        left = []
        for job in self.pending:
            before = finished(job)
            if before is None or (job.choice and "choice" not in before):
                left.append(job)
            else:
                log.info("%s: done before", job.title)
                self.outcome.results[job] = before
        self.pending = []
        if not left:
            return
        self.places = places_for(self.recipe, self.policy, self.held_out, len(left))
        log.info("%d runs to make: %s", len(left), self.places.describe())
        found = run_all(left, self.places, self._line)
        self.made += len(found.results)
        self.outcome.results |= found.results
        self.outcome.failed |= found.failed

    def _line(self, job: Job, result: Mapping[str, Any]) -> str:
        share = 100 * result["metrics"]["accuracy/policy"]
        took = f" in {result['train_seconds']:,.0f} s" if job.name != START else ""
        return f"{job.title}: done{took}, prefers the chosen side of {share:.1f} % of held-out pairs"

    def trained(self, entry: _Entry) -> Trained | None:
        """The method with all its runs; None where one of them is missing."""
        results = [self.outcome.results.get(job) for job in entry.jobs]
        there = [result for result in results if result is not None]
        if len(there) < len(results):
            return None
        folders = [Path(job.folder) for job in entry.jobs]
        return Trained(entry.contender, entry.describes, entry.diagnostics, there, folders, entry.also)

    def costs(self, wall_seconds: float) -> dict[str, Any]:
        """What it took; where nothing was left to do, what it took before."""
        results = self.outcome.results.values()
        if not self.made:
            try:
                before: dict[str, Any] = json.loads((self.folder / DOCUMENT).read_text(encoding="utf-8"))["costs"]
                return before
            except (OSError, ValueError, KeyError):
                pass
        return {
            "train_seconds_total": sum(result["train_seconds"] for result in results),
            "evaluate_seconds_total": sum(result["evaluate_seconds"] for result in results),
            "wall_seconds": wall_seconds,
            "runs": len(results),
            "runs_made_now": self.made,
            "processes": self.places.count,
            "threads": self.places.threads,
            "machine": machine(),
        }


def _choose(desk: _Desk, entrants: list[Contender]) -> tuple[list[Contender], list[dict[str, Any]]]:
    """Each method at the setting that does best on the third split, with the first seed; and all that were tried."""
    recipe = desk.recipe
    metric, first = recipe.compare.metric, recipe.compare.seeds[0]
    desk.keep_choice()
    root = desk.folder / SWEEP
    tried = [[(point, desk.add(point, seeds=[first], root=root).jobs[0]) for point in settings_of(recipe, one)]
             for one in entrants]  # fmt: skip
    desk.run()
    desk.choice = ""
    chosen, told = [], []
    for one, points in zip(entrants, tried, strict=True):
        known = [
            (desk.outcome.results[job]["choice"][metric], point) for point, job in points if job in desk.outcome.results
        ]
        if not known:
            continue
        highest = max(figure for figure, _ in known)
        equal = [point for figure, point in known if figure == highest]
        # Where settings do equally well on the third split, the recipe's own is as good as any.
        best = next((point for point in equal if point.method == one.method), equal[0])
        for figure, point in known:
            told.append(
                {
                    "method": one.name,
                    "settings": dict(point.settings),
                    metric: figure,
                    "chosen": point is best,
                    "seed": first,
                }
            )
        chosen.append(replace(one, method=best.method, settings=best.settings))
        if best.settings:
            settings = ", ".join(f"{name} {value:g}" for name, value in best.settings.items())
            level = f" ({len(equal)} did equally well)" if len(equal) > 1 else ""
            log.info(
                "%s: of %d settings tried, the best on the third split is %s%s", one.name, len(known), settings, level
            )
        _take_over(root / best.name / f"seed-{first}", desk.folder / one.name / f"seed-{first}")
    return chosen, told


def _take_over(tried: Path, place: Path) -> None:
    """The run that a sweep made of the setting it chose is the method's run of that seed."""
    try:
        key = json.loads((tried / RESULT).read_text(encoding="utf-8"))["key"]
        if (place / RESULT).is_file() and json.loads((place / RESULT).read_text(encoding="utf-8")).get("key") == key:
            return
    except (OSError, ValueError, KeyError):
        return
    if place.exists():
        shutil.rmtree(place)
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(tried, partial)
    partial.rename(place)


def _without(split: Split, name: str | None) -> Split:
    """The split as if a reference were not in the recipe; its pairs stay those that all references can serve."""
    return split if name is None else Split(split.prepared, _drop_reference(split.pairs, name))


def _drop_reference(pairs: CachedPairs, name: str) -> CachedPairs:
    kept = [index for index, other in enumerate(pairs.names) if other != name]
    return replace(
        pairs,
        names=[pairs.names[index] for index in kept],
        logps_chosen=np.ascontiguousarray(pairs.logps_chosen[:, kept]),
        logps_rejected=np.ascontiguousarray(pairs.logps_rejected[:, kept]),
        held_out=None if pairs.held_out is None else _drop_reference(pairs.held_out, name),
    )


def _clusters(frame: pl.DataFrame) -> pl.Series:
    """(N,) the number of each pair's prompt: pairs of one prompt are not independent of each other."""
    return frame["prompt"].rank("dense").cast(pl.Int64) - 1


def _write_held_out(path: Path, pairs: CachedPairs) -> None:
    """The held-out pairs as a person reads them, beside the anchor's sums."""
    from mrpo_pipeline.evaluation.samples import readable

    pl.DataFrame(
        {
            "pair_id": pairs.frame["pair_id"],
            "prompt": [readable(prompt) for prompt in pairs.frame["prompt_read"]],
            "chosen": pairs.frame["chosen"],
            "rejected": pairs.frame["rejected"],
            "anchor_logps_chosen": pairs.logps_chosen[:, 0],
            "anchor_logps_rejected": pairs.logps_rejected[:, 0],
        }
    ).write_parquet(path)


def _audit(recipe: Recipe, splits: Mapping[str, Split], caches: Sequence[ReferenceCache], folder: Path) -> None:
    """What the references are worth, before any training: what looks broken is said at once, the rest is for the report."""
    from mrpo_pipeline.audit import audit_pairs, readers_of

    readers = {source.name: readers_of(source) for source in recipe.sources()}
    audit = audit_pairs(splits, caches, method=recipe.method, readers=readers)
    for finding in audit.findings:
        log.warning("%s: %s", finding.reference, finding.sentence)
    write_whole_json(folder / "audit.json", audit.as_dict())


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _failures(outcome: Outcome, folder: Path, comparison: Comparison | None) -> str:
    count, total = len(outcome.failed), len(outcome.failed) + len(outcome.results)
    first = next(iter(outcome.failed))
    others = f" (and {', '.join(job.title for job in list(outcome.failed)[1:])})" if count > 1 else ""
    kept = "A comparison of the methods that are complete is written. " if comparison else ""
    return (
        f"{count} of {total} runs failed: {first.title}{others}. {outcome.failed[first]} What is finished is kept in {folder}. "
        f"{kept}Start the same command again to go on with the rest."
    )
