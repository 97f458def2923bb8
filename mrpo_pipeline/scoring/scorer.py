"""Score one reference: its renderer, engine and cache writer. Used by every runtime."""

from __future__ import annotations

import hashlib
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

import polars as pl

import mrpo_pipeline
from mrpo_pipeline.cache import CompletionRow, ReferenceCache, RefusedRowError, Unfit
from mrpo_pipeline.engines import start_engine
from mrpo_pipeline.engines.base import Engine, ImpossibleLogProbError, LogProbs, ScoringRequest
from mrpo_pipeline.engines.served import ServedEngine
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.checks import check_numbers
from mrpo_pipeline.models.files import locate
from mrpo_pipeline.models.source import ModelSource, as_recorded, fetch, resolve
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.pairs.readable_text import readable_completion
from mrpo_pipeline.recipe import Scoring
from mrpo_pipeline.rendering import Rendered, Renderer, tokens_to_score
from mrpo_pipeline.scoring.report import Counts, count_control_strings, texts_of
from mrpo_pipeline.verify.served import confirmation, open_served, served_identity

# Completions rendered at a time: bounds the memory of token ids, whatever the size of the data.
RENDER_BATCH = 8192
# Seconds between two counts that ``Scorer.score`` yields, for the progress bar.
YIELD_EVERY = 0.5


@dataclass(frozen=True)
class Assignment:
    """The input of a process that scores a reference.

    Attributes:
        source: the reference; the process that scores fetches its files.
        cache: the cache's folder or URL, valid on every machine.
        settings: how the reference is scored.
        fingerprint: of the files in the process that started the run; None in that process itself.
        on_bad_row: for a completion that the reference's template does not render: stop, or record and count it.
    """

    source: ModelSource
    cache: str
    settings: Scoring
    fingerprint: Mapping[str, str | None] | None = None
    on_bad_row: OnBadRow = "error"


class Scorer:
    """A reference's engine and an open writer into its cache; a context manager that writes its buffer at the end.

    Fetches a hub model and takes its fingerprint first, so that the engine loads the same commit.

    Raises:
        UserError: for invalid files, settings or cache, or files that differ from ``fingerprint``.
        RunError: if the engine does not start.
    """

    def __init__(
        self, assignment: Assignment, renderer: Renderer | None = None, first: pl.DataFrame | None = None
    ) -> None:
        """
        Args:
            assignment: what is scored.
            renderer: the reference's, if already loaded.
            first: the first argument of ``score``, if known: its start is rendered while vLLM starts.
        """
        began = time.monotonic()
        settings = assignment.settings
        source = fetch(assignment.source)
        self._cache = ReferenceCache.open(assignment.cache, source.name)
        source = as_recorded(source, self._cache.fingerprint())
        with ExitStack() as opening:
            starting = None if source.served else start_engine(settings.engine, source, settings.engine_options)
            if starting is not None:
                opening.callback(starting.close)
            self.renderer = renderer or Renderer.of(source)
            fingerprint = resolve(source, self.renderer.identity())
            if assignment.fingerprint is not None:
                _same_files(source.name, assignment.fingerprint, fingerprint)
            self._name = source.name
            self._source = source
            self._cache.check(fingerprint)
            self._on_bad_row = assignment.on_bad_row
            self._ahead: tuple[list[tuple[str, str]], list[Rendered | UserError]] = ([], [])
            # The transformers engine starts in this process, after the rendering.
            if first is not None and starting is not None and settings.engine != "transformers":
                texts = texts_of(first.head(RENDER_BATCH))
                self._ahead = texts, self.renderer.render_each(texts)
            self.engine: Engine = starting.ready() if starting else open_served(source, self.renderer)
            served = self.engine if isinstance(self.engine, ServedEngine) else None
            opening.callback(self.engine.close)
            _require_unchanged(source, self.renderer, fingerprint)
            fingerprint |= served_identity(served) if served else {}
            self._cache.create_or_check(fingerprint, _recorded(self.engine, settings))
            self._writer = opening.enter_context(
                self._cache.writer(
                    rows_per_shard=settings.rows_per_shard,
                    seconds=settings.seconds_per_shard,
                    confirm=confirmation(served) if served else None,
                )
            )
            self._open = opening.pop_all()
        self.startup_seconds = time.monotonic() - began

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    def cache_identity(self) -> str:
        """Digest of the manifest of the cache that is written to."""
        return manifest_digest(self._cache)

    def score(self, frame: pl.DataFrame) -> Iterator[Counts]:
        """Score the rows (``completion_id``, ``prompt``, ``completion``, ``cut``) into the cache.

        Yields:
            the counts since the last yield, every ``YIELD_EVERY`` seconds and at the end.
        """
        yielded = time.monotonic()
        counts = Counts()
        for start in range(0, frame.height, RENDER_BATCH):
            batch = frame.slice(start, RENDER_BATCH)
            requests, fitting = self._render(batch, counts)
            for index, logprobs in self._scored(requests, fitting, batch):
                identifier, sides = fitting[index]
                count = len(logprobs)
                row = CompletionRow(
                    completion_id=identifier,
                    prompt_tokens=len(sides.prompt_ids),
                    token_ids=sides.scored_ids[:count],
                    logprobs=logprobs,
                    byte_ends=sides.scored_ends[:count],
                    complete=count == len(sides.scored_ids),
                )
                try:
                    self._writer.add(row)
                except RefusedRowError as error:
                    _require_finite_weights(self._source)
                    raise RunError(f"{self._name}: {error} {_text_of(batch, identifier)}") from error
                counts.scored += 1
                counts.tokens += len(requests[index])
                if time.monotonic() - yielded >= YIELD_EVERY:
                    yielded = time.monotonic()
                    yield counts
                    counts = Counts()
        yield counts

    def _scored(
        self, requests: list[ScoringRequest], fitting: list[tuple[str, Rendered]], batch: pl.DataFrame
    ) -> Iterator[tuple[int, LogProbs]]:
        """The engine's results; errors name the completion."""
        try:
            yield from self.engine.score(requests)
        except UserError as error:
            raise UserError(f"{self._name}: {error}") from error
        except ImpossibleLogProbError as error:
            _require_finite_weights(self._source)
            identifier = fitting[error.index][0]
            raise RunError(
                f"{self._name}: in completion {identifier} {error.told} It was not cached; what was scored "
                f"before it is kept. {_text_of(batch, identifier)}"
            ) from error

    def flush(self) -> None:
        """Write the buffer as a shard, now."""
        self._writer.flush()

    def _render(self, batch: pl.DataFrame, counts: Counts) -> tuple[list[ScoringRequest], list[tuple[str, Rendered]]]:
        """The engine's requests, and the completion of each; unscorable completions are recorded and counted."""
        texts = texts_of(batch)
        counts.control_strings += count_control_strings(self.renderer, texts)
        requests: list[ScoringRequest] = []
        fitting: list[tuple[str, Rendered]] = []
        unfit: list[Unfit] = []
        context = self.engine.context_length
        ahead, self._ahead = self._ahead, ([], [])
        rendered = ahead[1] if texts == ahead[0] else self.renderer.render_each(texts)
        keys = batch.select("completion_id", "cut").iter_rows()
        for (identifier, cut), sides in zip(keys, rendered, strict=True):
            if isinstance(sides, UserError):
                if self._on_bad_row == "error":
                    raise UserError(
                        f"{self._name}: completion {identifier}: {sides} Or pass --on-bad-row skip: its pairs are then left out "
                        f"for all references, and counted. {_text_of(batch, identifier)} What was scored before it is kept."
                    ) from sides
                unfit.append(Unfit.unwritten(identifier))
                continue
            part = sides.beginning(tokens_to_score(sides.scored_ends, cut))
            request = ScoringRequest(part.prompt_ids, part.completion_ids, part.scored)
            if context is not None and len(request) > context - 1:
                unfit.append(Unfit(identifier, cut, len(request), context))
                continue
            requests.append(request)
            fitting.append((identifier, sides))
        if unfit:
            self._cache.mark_unfit(unfit)
            unwritten = sum(one.tokens == 0 for one in unfit)
            counts.unfit += len(unfit) - unwritten
            counts.unwritten += unwritten
        return requests, fitting


def _text_of(batch: pl.DataFrame, identifier: str) -> str:
    """The completion's beginning, so that the user can find it in the pairs."""
    text = readable_completion(batch.filter(pl.col("completion_id") == identifier)["completion"][0])
    return f"The completion begins {text[:60]!r}."


def manifest_digest(cache: ReferenceCache) -> str:
    """SHA-256 of the manifest file; empty without a manifest."""
    manifest = cache.manifest()
    return "" if manifest is None else hashlib.sha256(manifest.to_bytes()).hexdigest()


# Options whose values must not be in a manifest (`hf_token`).
_SECRET = re.compile(r"(^|_)(token|key|secret|password)$", re.IGNORECASE)


def _recorded(engine: Engine, settings: Scoring) -> dict[str, object]:
    """Information for people, stored beside the fingerprint."""
    return {
        "engine": engine.name,
        "options": {key: value for key, value in settings.engine_options.items() if not _SECRET.search(key)},
        "versions": {"mrpo": mrpo_pipeline.__version__, **engine.versions()},
        "machine": f"{platform.system()} {platform.machine()}",
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


def _require_finite_weights(source: ModelSource) -> None:
    """Raise UserError if NaN or infinity in the weights explains an engine's invalid log-prob."""
    folder = locate(source.model, source.revision)
    if folder is not None and source.served is None:
        check_numbers(source.name, folder)


def _require_unchanged(source: ModelSource, renderer: Renderer, fingerprint: Mapping[str, str | None]) -> None:
    """Raise RunError if the model's files changed while the engine loaded them."""
    for field, value in resolve(source, renderer.identity()).items():
        if value != fingerprint[field]:
            raise RunError(
                f"The files of {source.name} were changed while they were read: `{field}` was {fingerprint[field]} and is {value} "
                "now. Nothing was scored. Run `mrpo score-refs` again once they no longer change."
            )


def _same_files(name: str, expected: Mapping[str, str | None], found: Mapping[str, str | None]) -> None:
    """Raise UserError if this machine's files differ from those of the machine that started the run."""
    for field, value in expected.items():
        if value is not None and found.get(field) is not None and found[field] != value:
            raise UserError(
                f"{platform.node()} would score {name} with other files than the machine that started this run: `{field}` is "
                f"{found[field]} on {platform.node()} and {value} where the run was started. Expected the same model, adapter, "
                "tokenizer and template on every machine. Name them by a shared folder or by hub name and `revision`."
            )
