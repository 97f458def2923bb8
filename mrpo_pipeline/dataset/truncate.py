"""Cut and tokenize pairs by the policy's tokenizer: prompts in their text, completions at one byte, with counts.

Only the policy's tokenizer decides the cuts, so every reference reads the same text.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import polars as pl

from mrpo_pipeline.dataset import drop_reasons
from mrpo_pipeline.dataset.shared_prompt import with_shared_prompt
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, completion_id
from mrpo_pipeline.pairs.completion import completion_text, is_plain
from mrpo_pipeline.pairs.counts import Counts
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.recipe import Limits
from mrpo_pipeline.rendering import Rendered, Renderer, already_rendered_test, cut_offset, cut_prompt, tokens_counted
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
    """Pairs ready to be scored and trained on, and counts of the others.

    ``frame`` has the columns of ``PairTable.frame`` and: ``prompt_read`` (the prompt after its cut), ``prompt_tokens``,
    ``chosen_id`` / ``rejected_id`` (completion ids), ``chosen_cut`` / ``rejected_cut`` (bytes; null for no cut), and the policy's
    ``prompt_ids`` (common to both sides), ``chosen_ids``, ``rejected_ids`` (the tokens after it, up to the cut) and
    ``chosen_scored``, ``rejected_scored`` (the mask of scored ones; null for all).
    """

    frame: pl.DataFrame
    counts: Counts


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
        what: the name in the progress line.
        on_bad_row: for a pair that the policy's template can't render, stop, or drop and count it.
        refuse_rendered: treat prompts that the policy's template has already rendered as bad rows.

    Raises:
        UserError: for a bad row with ``on_bad_row="error"``; names its file and row.
    """
    frame = table.frame
    counts = Counts(frame.height, 0, skipped_rows=dict(table.skipped))
    if refuse_rendered:
        frame = _without_rendered(frame, renderer, counts, on_bad_row)
    parts: list[pl.DataFrame] = []
    with track(f"reading {what}", total=frame.height, unit="pairs") as progress:
        for start in range(0, frame.height, BATCH):
            parts.append(_prepare_batch(frame.slice(start, BATCH), renderer, limits, counts, on_bad_row))
            progress.advance(min(BATCH, frame.height - start))
    schema = {**frame.schema, **PREPARED_SCHEMA}
    prepared = pl.concat(parts) if parts else pl.DataFrame(schema=schema)
    counts.used = prepared.height
    counts.checked(f"cutting {what}")
    _report_control_strings(prepared, renderer)
    for notice in renderer.notices:
        log.info("policy: %s", notice)
    return Prepared(prepared, counts)


def _without_rendered(frame: pl.DataFrame, renderer: Renderer, counts: Counts, on_bad_row: OnBadRow) -> pl.DataFrame:
    """The pairs whose prompt is not already rendered by the policy's template."""
    is_rendered = already_rendered_test(renderer)
    prompts = [prompt for prompt in frame["prompt"].unique(maintain_order=True) if is_rendered(prompt)]
    if not prompts:
        return frame
    rendered = frame["prompt"].is_in(prompts)
    if on_bad_row == "skip":
        counts.drop(drop_reasons.RENDERED, int(rendered.sum()))
        return frame.filter(~rendered)
    file, row = frame.filter(rendered).select("file", "row").row(0)
    raise UserError(
        f"{file}: row {row}: the prompt is rendered by the policy's own chat template (so are {int(rendered.sum()):,} of "
        f"{frame.height:,} pairs): its control tokens would be read as text, and each reference has a template of its own. Expected "
        "messages (role and content) or plain text. Give the original messages, pass --on-bad-row skip to leave such rows out, or "
        "set pairs.serialized: text if they are content."
    )


def _cut_prompts(prompts: list[str], renderer: Renderer, limit: int | None) -> dict[str, str | UserError | None]:
    """Each distinct prompt → the prompt after its cut; None if it can't be cut to fit, and the error if the template can't render
    it."""
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


def _unwritten(batch: pl.DataFrame, position: int, error: UserError, counts: Counts, on_bad_row: OnBadRow) -> None:
    """Raise for a pair that the template can't render, or count it."""
    if on_bad_row == "error":
        file, row = batch.select("file", "row").row(position)
        raise UserError(f"{file}: row {row}: {error} Or pass --on-bad-row skip to leave such rows out.") from error
    counts.drop(drop_reasons.UNWRITTEN)


def _prepare_batch(
    batch: pl.DataFrame, renderer: Renderer, limits: Limits, counts: Counts, on_bad_row: OnBadRow
) -> pl.DataFrame:
    read_as = _cut_prompts(batch["prompt"].to_list(), renderer, limits.max_prompt_length)
    items: list[tuple[str, str]] = []
    fitting: list[int] = []
    for position, (prompt, chosen, rejected) in enumerate(batch.select("prompt", "chosen", "rejected").iter_rows()):
        read = read_as[prompt]
        if isinstance(read, UserError):
            _unwritten(batch, position, read, counts, on_bad_row)
            continue
        if read is None:
            counts.drop(drop_reasons.PROMPT_TOO_LONG)
            continue
        counts.cut_prompts += read != prompt
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
                _unwritten(batch, position, one, counts, on_bad_row)
                break
            sides.append((items[side][1], one))
        if len(sides) < 2:
            continue
        budgets = [None if limits.max_length is None else limits.max_length - len(one.prompt_ids) for _, one in sides]
        if any(budget is not None and budget < 1 for budget in budgets):
            counts.drop(drop_reasons.NO_ROOM)
            continue
        cuts = [
            None if budget is None else cut_offset(side, completion, budget)
            for (completion, side), budget in zip(sides, budgets, strict=True)
        ]
        texts = [completion_text(completion) for completion, _ in sides]
        texts = [text if cut is None else text.encode()[:cut].decode() for text, cut in zip(texts, cuts, strict=True)]
        if not all(texts):
            counts.drop(drop_reasons.EMPTY)
            continue
        counted = [
            side.beginning(tokens_counted(side.scored_ends, True, cut))
            for (_, side), cut in zip(sides, cuts, strict=True)
        ]
        # Structured completions with the same text differ if the tokens between reasoning, content and calls do.
        same = all(is_plain(completion) for completion, _ in sides) or _same_ids(*counted)
        if same and texts[0] == texts[1]:
            counts.drop(drop_reasons.EQUAL)
            continue
        counts.cut_completions += sum(cut is not None for cut in cuts)
        if not all(len(side.completion_ids) for side in counted):
            counts.drop(drop_reasons.EMPTY)
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
    """Warn about pairs that hold control tokens as text, with their number and the first one."""
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
