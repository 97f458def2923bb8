"""Counts of stage one, and its report on a reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import polars as pl

from mrpo_pipeline.rendering import Renderer


@dataclass
class Counts:
    """Counts of completions: scored, too long for the context (``unfit``), not rendered by the template (``unwritten``), and with
    control strings; and ``tokens`` that the engine read, including those read again after a worker died."""

    scored: int = 0
    unfit: int = 0
    unwritten: int = 0
    tokens: int = 0
    control_strings: int = 0

    @property
    def done(self) -> int:
        return self.scored + self.unfit + self.unwritten

    def add(self, other: Counts) -> None:
        for counted in fields(Counts):
            setattr(self, counted.name, getattr(self, counted.name) + getattr(other, counted.name))


@dataclass(kw_only=True)
class ReferenceReport(Counts):
    """What stage one did for one reference."""

    name: str
    wanted: int
    cached: int
    engine: str = ""
    startup_seconds: float = 0.0
    seconds: float = 0.0
    workers: int = 0
    """Processes that scored it: 1 for this process alone."""
    deaths: int = 0
    """Processes that died; others took over their work."""

    def summary(self) -> str:
        text = (
            f"{self.name}: {self.wanted:,} completions wanted, {self.scored:,} scored, {self.cached:,} cached already"
        )
        if self.unfit:
            text += f", {self.unfit:,} do not fit its context"
        if self.unwritten:
            text += f", {self.unwritten:,} its template does not write"
        if self.scored:
            text += (
                f" ({self.tokens:,} tokens in {self.seconds:,.1f} s by {self.engine}, which took "
                f"{self.startup_seconds:,.1f} s to start)"
            )
        if self.workers > 1 or self.deaths:
            text += f"; {self.workers} workers" + (f", of which {self.deaths} died" if self.deaths else "")
        return text

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "wanted": self.wanted, "cached": self.cached} | asdict(self)


def unfit_counts(records: pl.DataFrame) -> Counts:
    """Counts of ``ReferenceCache.unfit``: too long for the context, and not rendered by the template."""
    unwritten = int((records["tokens"] == 0).sum())
    return Counts(unfit=records.height - unwritten, unwritten=unwritten)


def count_control_strings(renderer: Renderer, texts: Iterable[tuple[str, str]]) -> int:
    """How many of the (prompt, completion) contain control strings of the renderer's tokenizer."""
    return sum(bool(renderer.control_strings(prompt) or renderer.control_strings(text)) for prompt, text in texts)


def texts_of(frame: pl.DataFrame) -> list[tuple[str, str]]:
    """(prompt, completion) of each row."""
    return list(frame.select("prompt", "completion").iter_rows())
