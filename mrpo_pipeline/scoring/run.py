"""Stage one end to end: find what is missing, score it, and report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal

import polars as pl

from mrpo_pipeline.dataset.anchor_mismatch import start_notice
from mrpo_pipeline.dataset.drop_reasons import TOO_LONG_FOR, UNWRITTEN_BY
from mrpo_pipeline.dataset.nothing_left import expected_unfit, nothing_left, require_pairs, short_context
from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
from mrpo_pipeline.dataset.truncate import Prepared
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.context_length import known_context
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.pairs.counts import Counts, require_balance
from mrpo_pipeline.recipe import Recipe, Scoring
from mrpo_pipeline.scoring.concurrent_runs import units
from mrpo_pipeline.scoring.job import Job, job_of
from mrpo_pipeline.scoring.report import ReferenceReport
from mrpo_pipeline.scoring.scorer import Scorer
from mrpo_pipeline.terminal import track

log = logging.getLogger("mrpo")


def score_references(recipe: Recipe, *, only: Sequence[str] = ()) -> list[ReferenceReport]:
    """Score every completion of the recipe's pairs that the cache lacks, by every reference.

    Bad rows, and caches with another fingerprint, raise before any model loads.

    Args:
        recipe: pairs, policy (its tokenizer decides the cuts), references, cache and scoring settings.
        only: names of the references to score; all if empty.

    Raises:
        UserError: for invalid pairs, settings or caches.
        RunError: if an engine fails, processes die repeatedly, or log-probs differ from those of transformers by more than their
            dtype explains (``scoring.check``). Shards written before stay.
    """
    sources = recipe.sources()
    unknown = set(only) - {source.name for source in sources}
    if unknown:
        raise UserError(
            f"--only names {', '.join(sorted(unknown))}: expected one of the recipe's references "
            f"({', '.join(source.name for source in sources)}). Correct the name."
        )
    chosen = [source for source in sources if not only or source.name in only]
    settings = {source.name: recipe.scoring_of(source.name) for source in chosen}
    if any(_where(source, settings[source.name]) != "here" for source in chosen):
        from mrpo_pipeline.scoring.ray.session import require_ray

        require_ray()
    prepared = prepare_splits(recipe)
    require_pairs(prepared)
    frames = [part.frame for part in prepared.values()]
    notice = start_notice(recipe)
    if notice:
        log.warning("%s", notice)
    wanted = wanted_completions(list(prepared.values()))
    jobs = [job_of(source, settings[source.name], recipe.cache, wanted, recipe.pairs.on_bad_row) for source in chosen]
    for job in jobs:
        job.cache.clear_leftovers()
        _expect_short_context(job, recipe, frames)
    for where, together in groupby(jobs, key=lambda job: _where(job.source, job.settings)):
        group = list(together)
        if where != "here" and any(not job.missing.is_empty() for job in group):
            from mrpo_pipeline.scoring.ray.run import score_by_workers

            score_by_workers([job for job in group if not job.missing.is_empty()], where)
        for job in group:
            if where == "here" and not job.missing.is_empty():
                _score_here(job)
            _warn_of_control_strings(job)
            _require_scored(job, wanted)
            if job.settings.check:
                _check(recipe, job, wanted)
    problem = _unserved(jobs, recipe, prepared, wanted)
    for split, part in prepared.items():
        log.info("%s: %s", split, part.counts)
    pairs = sum(part.frame.height for part in prepared.values())
    log.info("%s pairs are %s distinct completions.", f"{pairs:,}", f"{wanted.height:,}")
    for job in jobs:
        log.info("%s", job.report.summary())
    if problem is not None:
        raise problem
    return [job.report for job in jobs]


def _expect_short_context(job: Job, recipe: Recipe, frames: list[pl.DataFrame]) -> None:
    """Before scoring, warn of pairs that exceed the reference's context, estimated by the policy's tokens."""
    context = None if job.missing.is_empty() else known_context(job.source)
    expected = None if context is None else expected_unfit(context, frames)
    if context is not None and expected is not None and expected.height:
        log.warning(
            "By the policy's tokens: %s.", short_context(job.source.name, context, recipe.limits, frames, expected)
        )


def _unserved(
    jobs: list[Job], recipe: Recipe, prepared: Mapping[str, Prepared], wanted: pl.DataFrame
) -> RunError | None:
    """Log what each reference cannot read, and the remedy; returns the error to raise if no pair is left."""
    frames = [part.frame for part in prepared.values()]
    dropped: dict[str, int] = {}
    hints, unscorable = [], []
    for job in jobs:
        unfit = job.cache.unfit(wanted)
        unscorable.append(unfit["completion_id"])
        long = unfit.filter(pl.col("tokens") > 0)
        if long.height:
            text = short_context(job.source.name, int(long["context"].to_list()[0]), recipe.limits, frames, long)
            hints += [text] if text else []
            dropped[f"{TOO_LONG_FOR} {job.source.name}"] = _pairs_with(frames, long)
        if long.height < unfit.height:
            unwritten = unfit.filter(pl.col("tokens") == 0)
            dropped[f"{UNWRITTEN_BY} {job.source.name}"] = _pairs_with(frames, unwritten)
    every = pl.DataFrame({"completion_id": pl.concat(unscorable)}) if unscorable else wanted.clear()
    pairs = sum(frame.height for frame in frames)
    if pairs and _pairs_with(frames, every) == pairs:
        read = sum(part.counts.read for part in prepared.values())
        return nothing_left(" and ".join(prepared), [Counts(read, 0, dropped)], ". ".join(hints))
    for hint in hints:
        log.warning("%s.", hint)
    return None


def _pairs_with(frames: list[pl.DataFrame], completions: pl.DataFrame) -> int:
    ids = completions["completion_id"].implode()
    return sum(int((frame["chosen_id"].is_in(ids) | frame["rejected_id"].is_in(ids)).sum()) for frame in frames)


def _where(source: ModelSource, settings: Scoring) -> Literal["here", "local", "ray"]:
    """Where the reference is scored: in this process, in several on this machine, or on a cluster. Served references: here."""
    if source.served is not None:
        return "here"
    if settings.runtime == "ray":
        return "ray"
    return "local" if (settings.workers or 1) > 1 else "here"


def _score_here(job: Job) -> None:
    with Scorer(job.assignment(), job.renderer, job.missing) as scorer, job.cache.register_run() as others:
        engine = scorer.engine
        job.report.workers = 1
        job.report.engine = engine.name
        job.report.startup_seconds = scorer.startup_seconds
        log.info(
            "%s: %s completions to score by %s (%s)",
            job.source.name, f"{job.missing.height:,}", engine.name, engine.dtype,
        )  # fmt: skip
        for notice in engine.notices:
            log.info("%s", notice)
        began = time.monotonic()
        with track(f"scoring {job.source.name}", job.missing.height, "completions") as progress:
            for unit, done_by_others in units(job.source.name, job.cache, job.missing, others, engine.name):
                job.report.cached += done_by_others
                progress.advance(done_by_others)
                for counts in scorer.score(unit):
                    job.report.add(counts)
                    progress.advance(counts.done)
                if others():  # so that they skip it
                    scorer.flush()
            scorer.flush()
        job.report.seconds = time.monotonic() - began
    for notice in (*job.renderer.notices, job.renderer.check.summary()):
        log.info("%s: %s", job.source.name, notice)


def _check(recipe: Recipe, job: Job, wanted: pl.DataFrame) -> None:
    """Recompute some log-probs with transformers, after the engine has freed its memory."""
    from mrpo_pipeline.verify import check_numbers

    drift = check_numbers(recipe, job.source.name, wanted, job.settings.check)
    log.info("%s", drift.summary())


def _warn_of_control_strings(job: Job) -> None:
    if job.report.control_strings:
        log.warning(
            "%s: %s completions hold control strings of its tokenizer; they are read as text.",
            job.source.name, f"{job.report.control_strings:,}",
        )  # fmt: skip


def _require_scored(job: Job, wanted: pl.DataFrame) -> None:
    """Check that every wanted completion is in the cache or recorded as unscorable, and that the counts agree."""
    report = job.report
    lost = job.cache.missing(wanted)
    what = f"completions (the first that lacks is {lost['completion_id'][0]})" if lost.height else "completions"
    require_balance(f"scoring {report.name}", report.wanted, report.wanted - lost.height, what=what)
    dropped = {"do not fit its context": report.unfit, "not written by its template": report.unwritten}
    require_balance(f"scoring {report.name}", report.wanted, report.scored + report.cached, dropped, what="completions")
