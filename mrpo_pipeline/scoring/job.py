"""One reference's part of stage one: the completions that the cache lacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mrpo_pipeline.cache import ReferenceCache, check_location
from mrpo_pipeline.dataset.prepare import report_reading
from mrpo_pipeline.models.files import is_folder
from mrpo_pipeline.models.source import ModelSource, as_recorded, fetch, resolve
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.recipe import Scoring
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.rendering.identity_cache import ModelReading
from mrpo_pipeline.scoring.report import ReferenceReport, unfit_counts
from mrpo_pipeline.scoring.scorer import Assignment


@dataclass
class Job:
    """A reference and its ``missing`` completions: the columns of ``wanted_completions``, longest first."""

    source: ModelSource
    settings: Scoring
    cache_root: str
    cache: ReferenceCache
    reading: ModelReading
    missing: pl.DataFrame
    report: ReferenceReport
    on_bad_row: OnBadRow = "error"

    @property
    def renderer(self) -> Renderer:
        """Loaded at first use."""
        return self.reading.renderer

    def assignment(self) -> Assignment:
        """The input of ``Scorer`` in this process."""
        return Assignment(self.source, self.cache_root, self.settings, on_bad_row=self.on_bad_row)

    def assignment_elsewhere(self) -> Assignment:
        """The input of ``Scorer`` in any process on any machine. A hub model is fetched here and pinned; includes the fingerprint.

        Raises:
            UserError: for invalid files, or a cache that was computed from other files.
        """
        here = fetch(self.source)
        fingerprint = resolve(here, self.reading.identity())
        self.cache.check(fingerprint)
        if self.source.dtype == "auto":  # the machine that scores may have a GPU where this one has none
            fingerprint["dtype"] = None
        template = self.source.template
        elsewhere = {
            "revision": here.revision,
            "model": _from_anywhere(self.source.model),
            "adapter": self.source.adapter and _from_anywhere(self.source.adapter),
            "tokenizer": self.source.tokenizer and _from_anywhere(self.source.tokenizer),
            "template": template if template in ("auto", "plain") else str(Path(template).expanduser().absolute()),
        }
        source = self.source.model_copy(update=elsewhere)
        location = check_location(self.cache_root)
        cache = str(location.absolute()) if isinstance(location, Path) else location
        return Assignment(source, cache, self.settings, fingerprint, self.on_bad_row)


def job_of(
    source: ModelSource, settings: Scoring, cache_root: str, wanted: pl.DataFrame, on_bad_row: OnBadRow = "error"
) -> Job:
    """The job of scoring what the cache lacks of ``wanted`` (see ``wanted_completions``). Reads no weights.

    If bad rows are errors, completions recorded as not rendered by the template are tried again, so that the error is raised.

    Raises:
        UserError: if the cache was computed by another reference.
    """
    reading = ModelReading(source)
    report_reading(source.name, reading)
    cache = ReferenceCache.open(cache_root, source.name)
    source = as_recorded(source, cache.fingerprint())
    cache.check(resolve(source, reading.identity()))
    missing = cache.missing(wanted)
    unfit = cache.unfit(wanted)
    report = ReferenceReport(
        name=source.name, wanted=wanted.height, cached=wanted.height - missing.height - unfit.height
    )
    if on_bad_row == "error":
        unwritten = unfit.filter(pl.col("tokens") == 0)
        unfit = unfit.filter(pl.col("tokens") > 0)
        missing = pl.concat([missing, unwritten.select(missing.columns)])
    report.add(unfit_counts(unfit))
    if not missing.is_empty():
        cache.require_writable()
    # Longest first: the memory peak comes at once, the last batches are small, and no worker has a long unit left when the
    # others are done. The completions of a prompt stay together, for an engine that runs it once.
    length = pl.col("prompt").str.len_bytes() + pl.col("completion").str.len_bytes()
    longest_first = missing.sort(
        length.max().over("prompt"), "prompt", length, descending=[True, False, True], maintain_order=True
    )
    return Job(source, settings, cache_root, cache, reading, longest_first, report, on_bad_row)


def _from_anywhere(name: str) -> str:
    """A folder's absolute path; a hub name as it is."""
    return str(Path(name).expanduser().absolute()) if is_folder(name) else name
