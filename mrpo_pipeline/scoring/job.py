"""One reference's share of stage one: what of it the cache cannot serve yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mrpo_pipeline.cache import ReferenceCache, check_location
from mrpo_pipeline.dataset.prepare import renderer_of, report_reading
from mrpo_pipeline.models.files import is_folder
from mrpo_pipeline.models.source import ModelSource, as_recorded, fetch, resolve
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.recipe import Scoring
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.scoring.report import ReferenceReport, unfit_counts
from mrpo_pipeline.scoring.scorer import Assignment


@dataclass
class Job:
    """A reference and its ``missing`` completions: the columns of ``wanted_completions``, the longest first."""

    source: ModelSource
    settings: Scoring
    cache_root: str
    cache: ReferenceCache
    renderer: Renderer
    missing: pl.DataFrame
    report: ReferenceReport
    on_bad_row: OnBadRow = "error"

    def assignment(self) -> Assignment:
        """For the process that asks."""
        return Assignment(self.source, self.cache_root, self.settings, on_bad_row=self.on_bad_row)

    def assignment_elsewhere(self) -> Assignment:
        """For any process of any machine. A hub model is fetched here and pinned; what others must come to goes along.

        Raises:
            UserError: for files that are wrong, or a cache that was computed from others.
        """
        here = fetch(self.source)
        fingerprint = resolve(here, self.renderer.identity())
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
    """What is missing of ``wanted`` (see ``wanted_completions``). No weights are read.

    What was recorded as not written by the template is asked about again where such rows are refused, so that it is told.

    Raises:
        UserError: where the cache was computed by another reference than this.
    """
    renderer = renderer_of(source)
    report_reading(source.name, renderer)
    cache = ReferenceCache.open(cache_root, source.name)
    source = as_recorded(source, cache.fingerprint())
    cache.check(resolve(source, renderer.identity()))
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
    # Longest first: the memory peak comes at once, the last batches are small, and of several workers none is left with a
    # long unit when the others are done.
    longest_first = missing.sort(
        pl.col("prompt").str.len_bytes() + pl.col("completion").str.len_bytes(), descending=True, maintain_order=True
    )
    return Job(source, settings, cache_root, cache, renderer, longest_first, report, on_bad_row)


def _from_anywhere(name: str) -> str:
    """A folder's absolute path; a hub name as it is."""
    return str(Path(name).expanduser().absolute()) if is_folder(name) else name
