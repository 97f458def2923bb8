"""Stage one: what the cache cannot serve yet is scored, reference after reference, into shards."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import polars as pl

import mrpo_pipeline
from mrpo_pipeline.cache import CompletionRow, ReferenceCache, Unfit
from mrpo_pipeline.engines import open_engine
from mrpo_pipeline.engines.base import Engine, ScoringRequest
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.prepare import prepare_splits, renderer_of, wanted_completions
from mrpo_pipeline.progress import Progress, track
from mrpo_pipeline.recipe import Recipe, Scoring
from mrpo_pipeline.references import ModelSource, fetch, resolve
from mrpo_pipeline.rendering import Rendered, Renderer, tokens_to_score

log = logging.getLogger("mrpo")

# Completions rendered at a time: what bounds the memory that token ids take, whatever the size of the data.
RENDER_BATCH = 8192


@dataclass
class ReferenceReport:
    """What stage one did for one reference."""

    name: str
    wanted: int
    cached: int
    scored: int = 0
    unfit: int = 0
    tokens: int = 0
    control_strings: int = 0
    engine: str = ""
    startup_seconds: float = 0.0
    seconds: float = 0.0

    def summary(self) -> str:
        text = f"{self.name}: {self.scored:,} completions scored, {self.cached:,} cached already"
        if self.unfit:
            text += f", {self.unfit:,} do not fit its context"
        if self.scored:
            text += (
                f" ({self.tokens:,} tokens in {self.seconds:,.1f} s by {self.engine}, which took "
                f"{self.startup_seconds:,.1f} s to start)"
            )
        return text

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass
class _Job:
    source: ModelSource
    renderer: Renderer
    cache: ReferenceCache
    missing: pl.DataFrame
    report: ReferenceReport


def score_references(recipe: Recipe, *, only: Sequence[str] = ()) -> list[ReferenceReport]:
    """Score every completion of the recipe's pairs by every reference, where the cache cannot serve it yet.

    Bad rows, and caches whose fingerprint differs, are told before any model loads.

    Args:
        recipe: pairs, policy (its tokenizer decides the cuts), references, cache and scoring settings.
        only: names of the references to score; all where empty.

    Raises:
        UserError: for pairs, settings or caches that are wrong.
        RunError: when an engine fails; shards written by then stay.
    """
    sources = recipe.sources()
    unknown = set(only) - {source.name for source in sources}
    if unknown:
        raise UserError(
            f"--only names {', '.join(sorted(unknown))}: expected one of the recipe's references "
            f"({', '.join(source.name for source in sources)}). Correct the name."
        )
    prepared = prepare_splits(recipe)
    wanted = wanted_completions(list(prepared.values()))
    jobs = []
    for source in sources:
        if only and source.name not in only:
            continue
        renderer = renderer_of(source)
        cache = ReferenceCache.open(recipe.cache, source.name)
        cache.check(resolve(source, renderer.identity()))
        missing = cache.missing(wanted)
        unfit = cache.unfit(wanted).height
        report = ReferenceReport(source.name, wanted.height, wanted.height - missing.height - unfit, unfit=unfit)
        jobs.append(_Job(source, renderer, cache, missing, report))
    for job in jobs:
        _score(job, recipe.scoring)
        log.info("%s", job.report.summary())
    return [job.report for job in jobs]


def _score(job: _Job, settings: Scoring) -> None:
    if job.missing.is_empty():
        return
    began = time.monotonic()
    # A hub model is fetched now, and the fingerprint taken of what came: the commit is pinned for the engine as well.
    source = fetch(job.source)
    fingerprint = resolve(source, job.renderer.identity())
    job.cache.check(fingerprint)
    engine = open_engine(settings.engine, source, settings.engine_options)
    try:
        job.report.engine = engine.name
        job.report.startup_seconds = time.monotonic() - began
        log.info(
            "%s: %s completions to score by %s (%s)",
            job.source.name, f"{job.missing.height:,}", engine.name, engine.dtype,
        )  # fmt: skip
        for notice in engine.notices:
            log.info("%s", notice)
        job.cache.create_or_check(fingerprint, _recorded(engine))
        began = time.monotonic()
        # Longest first: the memory peak comes at once, and the last batches are small.
        longest_first = job.missing.sort(
            pl.col("prompt").str.len_bytes() + pl.col("completion").str.len_bytes(),
            descending=True,
            maintain_order=True,
        )
        with (
            track(f"scoring {job.source.name}", longest_first.height, "completions") as progress,
            job.cache.writer(rows_per_shard=settings.rows_per_shard, seconds=settings.seconds_per_shard) as writer,
        ):
            for start in range(0, longest_first.height, RENDER_BATCH):
                for row in _score_batch(job, engine, longest_first.slice(start, RENDER_BATCH), progress):
                    writer.add(row)
        job.report.seconds = time.monotonic() - began
    finally:
        engine.close()
    for notice in job.renderer.notices:
        log.info("%s: %s", job.source.name, notice)
    if job.report.control_strings:
        log.warning(
            "%s: %s completions hold control strings of its tokenizer; they are read as text.",
            job.source.name, f"{job.report.control_strings:,}",
        )  # fmt: skip


def _score_batch(job: _Job, engine: Engine, batch: pl.DataFrame, progress: Progress) -> Iterator[CompletionRow]:
    """Render and score one batch, yielding its rows as the engine gives them."""
    texts = list(batch.select("prompt", "completion").iter_rows())
    job.report.control_strings += sum(
        bool(job.renderer.control_strings(prompt) or job.renderer.control_strings(text)) for prompt, text in texts
    )
    rendered = job.renderer.render(texts)
    requests: list[ScoringRequest] = []
    fitting: list[tuple[str, Rendered]] = []
    unfit: list[Unfit] = []
    for (identifier, cut), sides in zip(batch.select("completion_id", "cut").iter_rows(), rendered, strict=True):
        count = tokens_to_score(sides.byte_ends, cut)
        length = len(sides.prompt_ids) + count
        if engine.context_length is not None and length > engine.context_length - 1:
            unfit.append(Unfit(identifier, cut, length, engine.context_length))
            continue
        requests.append(ScoringRequest(sides.prompt_ids, sides.completion_ids[:count]))
        fitting.append((identifier, sides))
    if unfit:
        job.cache.mark_unfit(unfit)
        job.report.unfit += len(unfit)
        progress.advance(len(unfit))
    for index, logprobs in engine.score(requests):
        identifier, sides = fitting[index]
        count = len(logprobs)
        yield CompletionRow(
            completion_id=identifier,
            prompt_tokens=len(sides.prompt_ids),
            token_ids=sides.completion_ids[:count],
            logprobs=logprobs,
            byte_ends=sides.byte_ends[:count],
            complete=count == len(sides.completion_ids),
        )
        job.report.scored += 1
        job.report.tokens += len(sides.prompt_ids) + count
        progress.advance(1)


def _recorded(engine: Engine) -> dict[str, object]:
    """What stands beside the fingerprint for a reader, and is no part of it."""
    return {
        "engine": engine.name,
        "versions": {"mrpo": mrpo_pipeline.__version__, **engine.versions()},
        "machine": f"{platform.system()} {platform.machine()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
