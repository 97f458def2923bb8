"""What the runs of a comparison need is prepared here, once; they are made, and what came of them is kept."""

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
from mrpo_pipeline.compare.worker_pool import Outcome, run_all
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.policy_start import AnchorStart
from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.dataset.splits import Split, examples_of
from mrpo_pipeline.policy.checkpoints import examples_digest, method_in_use
from mrpo_pipeline.policy.run import card_of
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.recipe.describe import describe, with_seed

log = logging.getLogger("mrpo")


class Desk:
    """Prepares what the runs need, has them made, and keeps what came of them."""

    def __init__(
        self, recipe: Recipe, splits: dict[str, Split], anchor: AnchorStart | None, folder: Path, inputs: Path
    ) -> None:
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

    def start(self) -> None:
        """Measure the policy before training like every other."""
        where = self.inputs / START
        self.held_out.write(where)
        key = _digest(examples_digest(self.held_out), repr(self.policy), repr(self.anchor))
        self.start_job = Job(
            START, 0, str(self.folder / START), str(where), self.policy,
            Method().model_dump(mode="json"), key, choice=self.choice, anchor=self.anchor,
        )  # fmt: skip
        self.pending.append(self.start_job)

    def keep_choice(self) -> PreferenceExamples:
        """The pairs of the third split, which runs measure from now on: a sweep chooses by them."""
        chosen_by, _ = examples_of(self.splits["weights"], Method(name="dpo"))
        where = self.inputs / f"choice-{examples_digest(chosen_by)[:12]}"
        chosen_by.write(where)
        self.choice = str(where)
        return chosen_by

    def add(self, one: Contender, *, seeds: Sequence[int] | None = None, root: Path | None = None) -> Entry:
        """Prepare a method's pairs and its runs; one that is the same training as an earlier one is not trained again.

        Args:
            seeds: the recipe's where None. root: where its folder goes; the comparison's where None.
        """
        recipe, own = self.recipe, one.method
        parts = {name: _without(self.splits[name], one.without) for name in ("train", "eval")}
        train, targets = examples_of(parts["train"], own)
        held_out, _ = examples_of(parts["eval"], own, say=False)
        identity = _digest(
            examples_digest(train),
            examples_digest(held_out),
            repr(method_in_use(train, own)),
            repr(self.policy),
            repr(self.anchor),
        )
        describes = describe(own) + (f" Without {one.without}." if one.without else "")
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
            training = seeded.training_arguments()
            key = _digest(identity, json.dumps(training, sort_keys=True, default=str))
            job = Job(
                one.name, seed, str(place), str(where / "held_out"), self.policy,
                own.model_dump(mode="json"), key, str(where / "train"), self.choice, training, seeded.dump(),
                card_of(seeded, parts), dict(targets.diagnostics), self.anchor,
            )  # fmt: skip
            jobs.append(job)
        self.pending += jobs
        entry = Entry(one, identity, jobs, describes, dict(targets.diagnostics))
        if root is None:
            self.entries.append(entry)
        return entry

    def run(self) -> None:
        """Make the runs that are waiting, but for those that an earlier call finished."""
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
        self.places = places_for(self.recipe, self.held_out, len(left))
        log.info("%d runs to make: %s", len(left), self.places.describe())
        found = run_all(left, self.places, self._line)
        self.made += len(found.results)
        self.outcome.results |= found.results
        self.outcome.failed |= found.failed

    def _line(self, job: Job, result: Mapping[str, Any]) -> str:
        share = 100 * result["metrics"]["accuracy/policy"]
        took = f" in {result['train_seconds']:,.0f} s" if job.name != START else ""
        return f"{job.title}: done{took}, prefers the chosen side of {share:.1f} % of held-out pairs"

    def complete(self) -> list[Entry]:
        """The methods of which every run was made, with the results."""
        made = self.outcome.results
        for entry in self.entries:
            entry.results = [made[job] for job in entry.jobs if job in made]
        return [entry for entry in self.entries if len(entry.results) == len(entry.jobs)]

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


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
