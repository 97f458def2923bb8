"""The runs of a comparison: prepare their input, execute them, and collect their results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mrpo_pipeline.compare.job import Job, finished
from mrpo_pipeline.compare.methods import START, Contender
from mrpo_pipeline.compare.parallelism import Places, places_for
from mrpo_pipeline.compare.results import DOCUMENT, Entry, machine
from mrpo_pipeline.compare.selected_pairs import selected, total_steps
from mrpo_pipeline.compare.worker_pool import Outcome, run_all
from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart
from mrpo_pipeline.dataset.completion_numbering import is_ranked
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.dataset.splits import Split, examples_of
from mrpo_pipeline.policy.run import model_card_fields
from mrpo_pipeline.policy.run_identity import examples_digest, method_in_use
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.recipe.describe_method import describe, with_seed

log = logging.getLogger("mrpo")


class Runs:
    """The runs of a comparison. Methods share prepared pairs; those that are the same training share their runs."""

    def __init__(
        self,
        recipe: Recipe,
        splits: dict[str, Split],
        anchor: AnchorStart | None,
        folder: Path,
        inputs: Path,
        methods: Sequence[Method],
        arguments: Any,
    ) -> None:
        """
        Args:
            methods: all methods to compare. arguments: ``transformers.TrainingArguments``.
        """
        self.methods, self.arguments = methods, arguments
        self.ranked: bool | None = None
        self.by_prompt = False
        self.steps = 0
        self.recipe, self.splits, self.folder, self.inputs = recipe, splits, folder, inputs
        self.policy = recipe.required_policy().model_dump(mode="json")
        self.anchor = None if anchor is None else dataclasses.asdict(anchor)
        self.entries: list[Entry] = []
        self.outcome = Outcome()
        self.places = Places(1)
        self.made = 0
        self.held_out, _ = examples_of(splits["eval"], Method(name="dpo"))
        self.pending: list[Job] = []
        self.choice = ""

    def add_start(self) -> None:
        """Add the evaluation of the policy before training."""
        where = self.inputs / START
        self.held_out.write(where)
        key = _digest(examples_digest(self.held_out), repr(self.policy), repr(self.anchor))
        self.start_job = Job(
            START, 0, str(self.folder / START), str(where), self.policy,
            Method().model_dump(mode="json"), key, choice=self.choice, anchor=self.anchor,
        )  # fmt: skip
        self.pending.append(self.start_job)

    def evaluate_on_third_split(self) -> PreferenceExamples:
        """Evaluate the runs that are added from now on also on the third split, by which a sweep selects; returns its pairs."""
        chosen_by, _ = examples_of(self.splits["weights"], Method(name="dpo"))
        where = self.inputs / f"choice-{examples_digest(chosen_by)[:12]}"
        chosen_by.write(where)
        self.choice = str(where)
        return chosen_by

    def add(self, one: Contender, *, seeds: Sequence[int] | None = None, root: Path | None = None) -> Entry:
        """Prepare a method's pairs and runs; a method that is the same training as an earlier one shares its runs.

        Args:
            seeds: default: the recipe's. root: parent of its folder; default: the comparison's folder.
        """
        recipe, own = self.recipe, one.method
        parts = {name: _without(self.splits[name], one.without) for name in ("train", "eval")}
        every = parts["train"].pairs.frame.height
        if one.whole is not None:
            trained = (x.contender.name for x in self.entries if one.whole in (x.contender.name, *x.also))
            one = replace(one, whole=next(trained, one.whole))
            parts["train"] = selected(parts["train"], str(recipe.compare.selection))
        train, targets = examples_of(parts["train"], own, report=one.whole is None)
        one = replace(one, pairs=len(train))
        held_out, _ = examples_of(parts["eval"], own, report=False)
        identity = _digest(
            examples_digest(train),
            examples_digest(held_out),
            repr(method_in_use(train, own)),
            repr(self.policy),
            repr(self.anchor),
        )
        describes = describe(own) + (f" Without {one.without}." if one.without else "")
        if one.whole is not None:
            as_many = recipe.compare.selection_as_many
            describes += f" On {len(train):,} selected of {every:,} pairs, for as many {as_many} as {one.whole}."
        twin = next((x for x in self.entries if x.identity == identity), None) if root is None else None
        if twin is not None:
            log.info("%s is the same training as %s: one run serves both.", one.name, twin.contender.name)
            twin.also.append(one.name)
            return twin
        where = self.inputs / hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        if not where.exists():
            # All methods share the token ids, which are written once.
            kept = self.inputs / ("ids" if one.whole is None else "selected-ids")
            if not kept.exists():
                train.write(kept)
            train.write(where / "train", ids_from=kept)
            held_out.write(where / "held_out", ids_from=self.inputs / START)
        jobs = []
        for seed in seeds or recipe.compare.seeds:
            place = (root or self.folder) / one.name / f"seed-{seed}"
            seeded = with_seed(recipe, seed).model_copy(
                update={
                    "method": own,
                    "output_dir": str(place),
                    "references": {name: recipe.references[name] for name in one.references},
                }
            )
            if one.whole is not None and recipe.compare.selection_as_many == "steps":
                seeded = seeded.model_copy(update={"training": {**seeded.training, "max_steps": self.steps}})
            training = self._training(seeded, train)
            if one.whole is None:
                self.steps = total_steps(train, self.arguments, by_prompt=self.by_prompt)
            key = _digest(identity, json.dumps(training, sort_keys=True, default=str))
            job = Job(
                one.name, seed, str(place), str(where / "held_out"), self.policy,
                own.model_dump(mode="json"), key, str(where / "train"), self.choice, training,
                model_card_fields(seeded, parts), dict(targets.diagnostics), self.anchor,
            )  # fmt: skip
            jobs.append(job)
        self.pending += jobs
        entry = Entry(one, identity, jobs, describes, dict(targets.diagnostics))
        if root is None:
            self.entries.append(entry)
        return entry

    def _training(self, seeded: Recipe, train: PreferenceExamples) -> dict[str, Any]:
        """The recipe's training settings. Either all methods group pairs by prompt or none, so that their steps hold the same pairs."""
        from mrpo_pipeline.policy.argument_checks import groups_by_prompt
        from mrpo_pipeline.policy.arguments import fast_paths

        training = seeded.training
        fast = fast_paths(training)
        if self.ranked is None:
            self.ranked = is_ranked(train) if fast.group_by_prompt == "auto" else False
            drop_last = self.arguments.dataloader_drop_last
            self.by_prompt = all(groups_by_prompt(fast, one, train, drop_last=drop_last) for one in self.methods)
        # Without ranked pairs the settings, and so the run's key, stay those of earlier versions.
        return {**training, "group_by_prompt": self.by_prompt} if self.ranked else training

    def execute(self) -> None:
        """Execute the pending runs, except those that an earlier call finished."""
        left = []
        for job in self.pending:
            before = finished(job)
            if before is None:
                left.append(job)
            else:
                log.info("%s: done before", job.title)
                self.outcome.results[job] = before
        self.pending = []
        if not left:
            return
        self.places = self._places(left)
        log.info("%d runs to execute: %s", len(left), self.places.describe())
        found = run_all(left, self.places, self._line)
        self.made += len(found.results)
        self.outcome.results |= found.results
        self.outcome.failed |= found.failed

    def _places(self, jobs: Sequence[Job]) -> Places:
        """How many of the jobs run at a time, by the training pairs of the last one; START has none."""
        job = jobs[-1]
        pairs = PreferenceExamples.open(Path(job.train)) if job.train else self.held_out
        as_run = {"training": job.training, "method": Method.model_validate(job.method)}
        return places_for(self.recipe.model_copy(update=as_run), pairs, len(jobs))

    def _line(self, job: Job, result: Mapping[str, Any]) -> str:
        share = 100 * result["metrics"]["accuracy/policy"]
        took = f" in {result['train_seconds']:,.0f} s" if job.name != START else ""
        return f"{job.title}: done{took}, prefers the chosen side of {share:.1f} % of held-out pairs"

    def complete(self) -> list[Entry]:
        """The methods with all runs finished, and their results."""
        made = self.outcome.results
        for entry in self.entries:
            entry.results = [made[job] for job in entry.jobs if job in made]
        return [entry for entry in self.entries if len(entry.results) == len(entry.jobs)]

    def costs(self, wall_seconds: float) -> dict[str, Any]:
        """The costs of this call; if it executed no run, those of the earlier call."""
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


def _without(split: Split, name: str | None) -> Split:
    """The split without a reference; it keeps only pairs that this reference also has scored."""
    return split if name is None else Split(split.prepared, _drop_reference(split.pairs, name))


def _drop_reference(pairs: CachedPairs, name: str) -> CachedPairs:
    kept = [index for index, other in enumerate(pairs.names) if other != name]
    return replace(
        pairs,
        names=[pairs.names[index] for index in kept],
        logps_chosen=np.ascontiguousarray(pairs.logps_chosen[:, kept]),
        logps_rejected=np.ascontiguousarray(pairs.logps_rejected[:, kept]),
        caches=[cache for cache in pairs.caches if cache.name != name],
        held_out=None if pairs.held_out is None else _drop_reference(pairs.held_out, name),
    )


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
