"""Pairs cut as the policy reads them: prompts in their text, completions at one byte, what is lost counted.

The policy's tokenizer alone decides the cuts, so that every reference reads the same text.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.dataset.shared_prompt import with_shared_prompt
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, completion_id
from mrpo_pipeline.pairs.completion import completion_text, is_plain
from mrpo_pipeline.pairs.counting import require_balance
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.recipe import Limits
from mrpo_pipeline.rendering import Rendered, Renderer, cut_offset, cut_prompt, own_rendering_test, tokens_counted
from mrpo_pipeline.terminal import track

log = logging.getLogger("mrpo")

BATCH = 1024

PREPARED_SCHEMA: dict[str, pl.DataType] = {
    "prompt_read": pl.String(),
    "prompt_tokens": pl.Int32(),
    "chosen_id": pl.String(),
    "rejected_id": pl.String(),
    "chosen_cut": pl.Int64(),
    "rejected_cut": pl.Int64(),
    "prompt_ids": pl.List(pl.Int32()),
    "chosen_ids": pl.List(pl.Int32()),
    "rejected_ids": pl.List(pl.Int32()),
    "chosen_scored": pl.List(pl.Boolean()),
    "rejected_scored": pl.List(pl.Boolean()),
}


@dataclass
class Prepared:
    """Pairs that can be scored and trained on, and the count of those that cannot.

    ``frame`` holds the columns of ``PairTable.frame`` and: ``prompt_read`` (the prompt after its cut), ``prompt_tokens``,
    ``chosen_id`` / ``rejected_id`` (completion ids), ``chosen_cut`` / ``rejected_cut`` (bytes; null where the whole
    completion counts), and the policy's ``prompt_ids`` (what both sides begin with), ``chosen_ids``, ``rejected_ids`` (the tokens
    behind it, as far as they count) and ``chosen_scored``, ``rejected_scored`` (which of those are scored; null where all are).
    """

    frame: pl.DataFrame
    pairs_in: int
    dropped: dict[str, int] = field(default_factory=dict)
    skipped_rows: dict[str, int] = field(default_factory=dict)
    cut_prompts: int = 0
    cut_completions: int = 0

    def counts(self) -> dict[str, Any]:
        """Every field but the table."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "frame"}

    def summary(self) -> str:
        """One line of counts: pairs in = pairs out + pairs dropped by reason."""
        parts = [f"{self.pairs_in:,} pairs read, {self.frame.height:,} kept"]
        parts += [f"{count:,} dropped ({reason})" for reason, count in self.dropped.items()]
        parts += [f"{count:,} rows left out ({reason})" for reason, count in self.skipped_rows.items()]
        if self.cut_prompts:
            parts.append(f"{self.cut_prompts:,} pairs with a cut prompt")
        if self.cut_completions:
            parts.append(f"{self.cut_completions:,} completions cut")
        return ", ".join(parts)


def prepare(
    table: PairTable,
    renderer: Renderer,
    limits: Limits,
    *,
    what: str = "pairs",
    on_bad_row: OnBadRow = "error",
    refuse_rendered: bool = True,
) -> Prepared:
    """Cut and tokenize every pair by the policy's tokenizer.

    Args:
        table: the pairs as read.
        renderer: the policy's.
        limits: lengths in the policy's tokens.
        what: named in the progress line.
        on_bad_row: what to do with a pair that the policy's template does not write: stop, or leave it out and count it.
        refuse_rendered: stop at prompts that the policy's own template has rendered already.

    Raises:
        UserError: for such a pair, where it is not to be skipped, and for a rendered prompt; names its file and row.
    """
    frame = table.frame
    prepared = Prepared(frame, frame.height, skipped_rows=dict(table.skipped))
    if refuse_rendered:
        frame = _without_rendered(frame, renderer, prepared, on_bad_row)
    parts: list[pl.DataFrame] = []
    with track(f"reading {what}", total=frame.height, unit="pairs") as progress:
        for start in range(0, frame.height, BATCH):
            parts.append(_prepare_batch(frame.slice(start, BATCH), renderer, limits, prepared, on_bad_row))
            progress.advance(min(BATCH, frame.height - start))
    schema = {**frame.schema, **PREPARED_SCHEMA}
    prepared.frame = pl.concat(parts) if parts else pl.DataFrame(schema=schema)
    require_balance(f"cutting {what}", prepared.pairs_in, prepared.frame.height, prepared.dropped)
    _report_control_strings(prepared.frame, renderer)
    for notice in renderer.notices:
        log.info("policy: %s", notice)
    return prepared


def _without_rendered(
    frame: pl.DataFrame, renderer: Renderer, prepared: Prepared, on_bad_row: OnBadRow
) -> pl.DataFrame:
    """The pairs without those whose prompt the policy's own template has rendered already."""
    is_rendered = own_rendering_test(renderer)
    prompts = [prompt for prompt in frame["prompt"].unique(maintain_order=True) if is_rendered(prompt)]
    if not prompts:
        return frame
    rendered = frame["prompt"].is_in(prompts)
    if on_bad_row == "skip":
        prepared.dropped["rendered by the policy's chat template"] = int(rendered.sum())
        return frame.filter(~rendered)
    file, row = frame.filter(rendered).select("file", "row").row(0)
    raise UserError(
        f"{file}: row {row}: the prompt is rendered by the policy's own chat template (so are {int(rendered.sum()):,} of "
        f"{frame.height:,} pairs): its control tokens would be read as text, and each reference has a template of its own. Expected "
        "messages (role and content) or plain text. Give what the prompts were made of, pass --on-bad-row skip to leave such rows "
        "out, or set pairs.serialized: text if they are content."
    )


def _drop(prepared: Prepared, reason: str) -> None:
    prepared.dropped[reason] = prepared.dropped.get(reason, 0) + 1


def _cut_prompts(prompts: list[str], renderer: Renderer, limit: int | None) -> dict[str, str | UserError | None]:
    """Each distinct prompt → the prompt as it will be read; None where it cannot be made to fit, and what is wrong where the
    template does not write it."""
    distinct = list(dict.fromkeys(prompts))
    if limit is None:
        return {prompt: prompt for prompt in distinct}
    try:
        lengths = renderer.prompt_lengths(distinct)
        return {
            prompt: prompt if length <= limit else cut_prompt(renderer, prompt, limit)
            for prompt, length in zip(distinct, lengths, strict=True)
        }
    except UserError as error:
        if len(distinct) == 1:
            return {distinct[0]: error}
    middle = len(distinct) // 2
    return {**_cut_prompts(distinct[:middle], renderer, limit), **_cut_prompts(distinct[middle:], renderer, limit)}


def _unwritten(batch: pl.DataFrame, position: int, error: UserError, prepared: Prepared, on_bad_row: OnBadRow) -> None:
    """Refuse the pair, or count it."""
    if on_bad_row == "error":
        file, row = batch.select("file", "row").row(position)
        raise UserError(f"{file}: row {row}: {error} Or pass --on-bad-row skip to leave such rows out.") from error
    _drop(prepared, "the policy's template does not write it")


def _prepare_batch(
    batch: pl.DataFrame, renderer: Renderer, limits: Limits, prepared: Prepared, on_bad_row: OnBadRow
) -> pl.DataFrame:
    read_as = _cut_prompts(batch["prompt"].to_list(), renderer, limits.max_prompt_length)
    items: list[tuple[str, str]] = []
    fitting: list[int] = []
    for position, (prompt, chosen, rejected) in enumerate(batch.select("prompt", "chosen", "rejected").iter_rows()):
        read = read_as[prompt]
        if isinstance(read, UserError):
            _unwritten(batch, position, read, prepared, on_bad_row)
            continue
        if read is None:
            _drop(prepared, "prompt does not fit max_prompt_length")
            continue
        prepared.cut_prompts += read != prompt
        fitting.append(position)
        items += [(read, chosen), (read, rejected)]
    rendered = renderer.render_each(items)
    rows: list[dict[str, object]] = []
    kept: list[int] = []
    for at, position in enumerate(fitting):
        prompt = items[2 * at][0]
        sides: list[tuple[str, Rendered]] = []
        for side in (2 * at, 2 * at + 1):
            one = rendered[side]
            if isinstance(one, UserError):
                _unwritten(batch, position, one, prepared, on_bad_row)
                break
            sides.append((items[side][1], one))
        if len(sides) < 2:
            continue
        budgets = [None if limits.max_length is None else limits.max_length - len(one.prompt_ids) for _, one in sides]
        if any(budget is not None and budget < 1 for budget in budgets):
            _drop(prepared, "prompt leaves no room within max_length")
            continue
        cuts = [
            None if budget is None else cut_offset(side, completion, budget)
            for (completion, side), budget in zip(sides, budgets, strict=True)
        ]
        texts = [completion_text(completion) for completion, _ in sides]
        texts = [text if cut is None else text.encode()[:cut].decode() for text, cut in zip(texts, cuts, strict=True)]
        if not all(texts):
            _drop(prepared, "a side is empty after the cut")
            continue
        counted = [
            side.beginning(tokens_counted(side.scored_ends, True, cut))
            for (_, side), cut in zip(sides, cuts, strict=True)
        ]
        # Reasoning, content and calls of equal text together are not the same completion where tokens between them differ.
        same = all(is_plain(completion) for completion, _ in sides) or _same_ids(*counted)
        if same and texts[0] == texts[1]:
            _drop(prepared, "the sides are equal after the cut")
            continue
        prepared.cut_completions += sum(cut is not None for cut in cuts)
        if not all(len(side.completion_ids) for side in counted):
            _drop(prepared, "a side is empty after the cut")
            continue
        prompt_ids, chosen, rejected = with_shared_prompt(*counted)
        kept.append(position)
        rows.append(
            {
                "prompt_read": prompt,
                "prompt_tokens": len(prompt_ids),
                "chosen_id": completion_id(prompt, sides[0][0]),
                "rejected_id": completion_id(prompt, sides[1][0]),
                "chosen_cut": cuts[0],
                "rejected_cut": cuts[1],
                "prompt_ids": prompt_ids,
                "chosen_ids": chosen.ids,
                "rejected_ids": rejected.ids,
                "chosen_scored": None if chosen.scored is None else chosen.scored.tolist(),
                "rejected_scored": None if rejected.scored is None else rejected.scored.tolist(),
            }
        )
    columns = {name: [row[name] for row in rows] for name in PREPARED_SCHEMA}
    return pl.concat([batch[kept], pl.DataFrame(columns, schema=PREPARED_SCHEMA)], how="horizontal")


def _same_ids(one: Rendered, other: Rendered) -> bool:
    return np.array_equal(one.prompt_ids, other.prompt_ids) and np.array_equal(one.completion_ids, other.completion_ids)


def _report_control_strings(frame: pl.DataFrame, renderer: Renderer) -> None:
    """Say how many rows hold control tokens written out as text, and name the first."""
    found = 0
    first = ""
    columns = ("file", "row", "prompt", "chosen", "rejected")
    for file, row, *texts in frame.select(columns).iter_rows():
        strings = [string for text in texts for string in renderer.control_strings(text)]
        if strings:
            first = first or f"{file}, row {row}, {strings[0]!r}"
            found += 1
    if found:
        log.warning(
            "%s of %s pairs hold control strings of the %s tokenizer; they are read as text (first: %s).",
            f"{found:,}", f"{frame.height:,}", renderer.name or "policy's", first,
        )  # fmt: skip
