"""Pairs as the policy reads them: prompts cut in their text, completions cut at one byte, what is lost counted.

The policy's tokenizer alone decides the cuts, so that every reference reads the same text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

import mrpo_pipeline
from mrpo_pipeline import kept_pairs
from mrpo_pipeline.counting import require_balance
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, completion_id, read_pairs, split_by_prompt
from mrpo_pipeline.pairs.read import OnBadRow
from mrpo_pipeline.pairs.sources import find_files, looks_right
from mrpo_pipeline.progress import track
from mrpo_pipeline.recipe import Limits, Pairs, Recipe
from mrpo_pipeline.references import ModelSource
from mrpo_pipeline.rendering import Rendered, Renderer, cut_offset, cut_prompt, tokens_counted

log = logging.getLogger("mrpo")

BATCH = 1024

# Files smaller than this together are read and cut in seconds.
KEPT_BYTES = 4 << 20

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
}


@dataclass
class Prepared:
    """Pairs that can be scored and trained on, and the count of those that cannot.

    ``frame`` holds the columns of ``PairTable.frame`` and: ``prompt_read`` (the prompt after its cut), ``prompt_tokens``,
    ``chosen_id`` / ``rejected_id`` (completion ids), ``chosen_cut`` / ``rejected_cut`` (bytes; null where the whole
    completion counts), and the policy's ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` (tokens that count).
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
        parts += [f"{count:,} bad rows skipped ({reason})" for reason, count in self.skipped_rows.items()]
        if self.cut_prompts:
            parts.append(f"{self.cut_prompts:,} pairs with a cut prompt")
        if self.cut_completions:
            parts.append(f"{self.cut_completions:,} completions cut")
        return ", ".join(parts)


def read_splits(settings: Pairs) -> dict[str, PairTable]:
    """The recipe's pairs by split: ``train`` and, where the recipe has them, ``eval`` and ``weights``."""
    if settings.train is None and settings.eval is None:
        raise UserError(
            "The recipe names no pairs: expected `pairs: {train: FILE-OR-GLOB}`. Add it, or give --train-file FILE."
        )
    splits: dict[str, PairTable] = {}
    for split, source in (("train", settings.train), ("eval", settings.eval)):
        if source is not None:
            columns = {str(name): column for name, column in settings.columns.items()}
            splits[split] = read_pairs(
                source, columns=columns, strings=settings.strings, on_bad_row=settings.on_bad_row
            )
            for notice in splits[split].notices:
                log.info("%s: %s", split, notice)
    splits = hold_out(settings, splits)
    if settings.eval is not None and "train" in splits:
        shared = splits["eval"].frame.select("prompt").unique().join(splits["train"].frame, on="prompt", how="semi")
        if shared.height:
            log.warning(
                "%s held-out prompts stand in the training pairs as well: held-out figures will flatter.",
                f"{shared.height:,}",
            )
    return splits


def hold_out(settings: Pairs, splits: dict[str, PairTable]) -> dict[str, PairTable]:
    """The splits that were read, and those that the recipe's fractions take from the training pairs.

    A prompt that stands in a file of held-out pairs as well is not taken for the third split: that is apart from both.
    """
    splits = dict(splits)
    for split, fraction in (("eval", settings.eval_fraction), ("weights", settings.weights_fraction)):
        if fraction and "train" in splits:
            frame = splits["train"].frame
            rest, held_out = split_by_prompt(frame, fraction, salt=split)
            if split == "weights" and "eval" in splits:
                held_out = held_out.join(splits["eval"].frame, on="prompt", how="anti", maintain_order="left")
                rest = frame.join(held_out, on="prompt", how="anti", maintain_order="left")
            require_balance(f"holding out {split} pairs", frame.height, rest.height, {"held out": held_out.height})
            splits[split] = PairTable(held_out)
            splits["train"] = PairTable(rest, splits["train"].skipped)
    return splits


def renderer_of(source: ModelSource) -> Renderer:
    """The model's own tokenizer and template; no weights are read."""
    return Renderer.from_pretrained(
        source.model,
        revision=source.revision,
        tokenizer=source.tokenizer,
        template=source.template,
        trust_remote_code=source.trust_remote_code,
        name=source.name,
    )


def policy_renderer(recipe: Recipe) -> Renderer:
    """The policy's renderer: it alone decides the cuts."""
    return renderer_of(recipe.required_policy().source("policy"))


def policy_tokenizer(recipe: Recipe) -> Any:
    """The policy's tokenizer as transformers gives it."""
    from transformers import AutoTokenizer

    policy = recipe.required_policy()
    return AutoTokenizer.from_pretrained(
        policy.tokenizer or policy.model,
        revision=None if policy.tokenizer else policy.revision,
        trust_remote_code=policy.trust_remote_code,
    )


def prepare(
    table: PairTable, renderer: Renderer, limits: Limits, *, what: str = "pairs", on_bad_row: OnBadRow = "error"
) -> Prepared:
    """Cut and tokenize every pair by the policy's tokenizer.

    Args:
        table: the pairs as read.
        renderer: the policy's.
        limits: lengths in the policy's tokens.
        what: named in the progress line.
        on_bad_row: what to do with a pair that the policy's template does not write: stop, or leave it out and count it.

    Raises:
        UserError: for such a pair, where it is not to be skipped; names its file and row.
    """
    frame = table.frame
    prepared = Prepared(frame, frame.height, skipped_rows=dict(table.skipped))
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


def prepare_splits(recipe: Recipe) -> dict[str, Prepared]:
    """Read and prepare every split of the recipe, and say what was kept. Bad rows are told before a tokenizer loads.

    Where there are many pairs, and files of this machine hold them, they are prepared once: see ``kept_pairs``.
    """
    files = _files_worth_keeping(recipe.pairs)
    renderer = _renderer_if_it_loads(recipe) if files else None
    key = _content_key(recipe, files, renderer) if files and renderer else None
    kept = kept_pairs.find(key) if key else None
    if kept is not None:
        for level, text in kept.said:
            log.log(level, "%s", text)
        prepared = _from_kept(kept)
    else:
        with kept_pairs.remembering() as said:
            prepared = _read_and_prepare(recipe, renderer)
        # Files may have been written to meanwhile, or have come to a folder.
        same = files is not None and files == _files_worth_keeping(recipe.pairs)
        if key and files and renderer and same and key == _content_key(recipe, files, renderer):
            tables = {split: part.frame for split, part in prepared.items()}
            counts = {split: part.counts() for split, part in prepared.items()}
            kept = kept_pairs.keep(key, kept_pairs.KeptPairs(tables, counts, said))
            prepared = prepared if kept is None else _from_kept(kept)
    for split, part in prepared.items():
        log.info("%s: %s", split, part.summary())
    return prepared


def _read_and_prepare(recipe: Recipe, renderer: Renderer | None) -> dict[str, Prepared]:
    splits = read_splits(recipe.pairs)
    renderer = renderer or policy_renderer(recipe)
    return {
        split: prepare(table, renderer, recipe.limits, what=f"{split} pairs", on_bad_row=recipe.pairs.on_bad_row)
        for split, table in splits.items()
    }


def _from_kept(kept: kept_pairs.KeptPairs) -> dict[str, Prepared]:
    prepared = {split: Prepared(table, **kept.counts[split]) for split, table in kept.tables.items()}
    for split, part in prepared.items():
        require_balance(f"the {split} pairs kept from before", part.pairs_in, part.frame.height, part.dropped)
    return prepared


# Whatever is wrong with files or tokenizer is told by what reads the pairs, in its order: here it means no keeping.


def _files_worth_keeping(pairs: Pairs) -> list[str] | None:
    """The pairs files, where all are of this machine and large together."""
    sources = [source for source in (pairs.train, pairs.eval) if source is not None]
    try:
        files = [file for source in sources for file in find_files(source)]
        if any(file.remote for file in files):
            return None
        names = [file.name for file in files]
        if not all(map(looks_right, files)):  # not worth hashing, whatever its size: reading it says what is wrong
            return None
        return names if sum(Path(name).stat().st_size for name in names) >= KEPT_BYTES else None
    except (UserError, OSError):
        return None


def _renderer_if_it_loads(recipe: Recipe) -> Renderer | None:
    try:
        return policy_renderer(recipe)
    except (UserError, OSError):
        return None


def _content_key(recipe: Recipe, files: list[str], renderer: Renderer) -> str | None:
    """What decides the prepared pairs: files, how they are read and cut, the policy's tokenizer."""
    settings = {
        "pairs": recipe.pairs.model_dump(mode="json"),
        "limits": recipe.limits.model_dump(mode="json"),
        "policy": renderer.identity(),
        "version": mrpo_pipeline.__version__,
    }
    try:
        return kept_pairs.key_of(files, settings)
    except OSError:
        return None


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
        budget = None
        if limits.max_length is not None:
            budget = limits.max_length - len(sides[0][1].prompt_ids)
            if budget < 1:
                _drop(prepared, "prompt leaves no room within max_length")
                continue
        cuts = [None if budget is None else cut_offset(side, text, budget) for text, side in sides]
        texts = [
            text if cut is None else text.encode()[:cut].decode() for (text, _), cut in zip(sides, cuts, strict=True)
        ]
        if not all(texts):
            _drop(prepared, "a side is empty after the cut")
            continue
        if texts[0] == texts[1]:
            _drop(prepared, "the sides are equal after the cut")
            continue
        prepared.cut_completions += sum(cut is not None for cut in cuts)
        counted = [
            side.completion_ids[: tokens_counted(side.byte_ends, True, cut)]
            for (_, side), cut in zip(sides, cuts, strict=True)
        ]
        if not all(len(ids) for ids in counted):
            _drop(prepared, "a side is empty after the cut")
            continue
        kept.append(position)
        rows.append(
            {
                "prompt_read": prompt,
                "prompt_tokens": len(sides[0][1].prompt_ids),
                "chosen_id": completion_id(prompt, sides[0][0]),
                "rejected_id": completion_id(prompt, sides[1][0]),
                "chosen_cut": cuts[0],
                "rejected_cut": cuts[1],
                "prompt_ids": sides[0][1].prompt_ids,
                "chosen_ids": counted[0],
                "rejected_ids": counted[1],
            }
        )
    columns = {name: [row[name] for row in rows] for name in PREPARED_SCHEMA}
    return pl.concat([batch[kept], pl.DataFrame(columns, schema=PREPARED_SCHEMA)], how="horizontal")


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


def wanted_completions(parts: Iterator[Prepared] | list[Prepared]) -> pl.DataFrame:
    """The distinct completions of prepared pairs, with the furthest cut that any pair asks for.

    Returns:
        columns ``completion_id``, ``prompt`` (canonical), ``completion``, ``cut`` (bytes; null for the whole).
    """
    sides = [
        part.frame.select(
            pl.col(f"{side}_id").alias("completion_id"),
            pl.col("prompt_read").alias("prompt"),
            pl.col(side).alias("completion"),
            pl.col(f"{side}_cut").alias("cut"),
        )
        for part in parts
        for side in ("chosen", "rejected")
    ]
    every = pl.concat(sides)
    distinct = every.group_by("completion_id", maintain_order=True).agg(
        pl.first("prompt", "completion"),
        pl.when(pl.col("cut").is_null().any()).then(None).otherwise(pl.col("cut").max()).alias("cut"),
        pl.len().alias("sides"),
    )
    again = int((distinct["sides"] - 1).sum())
    require_balance(
        "telling completions apart", every.height, distinct.height, {"the same again": again}, what="sides of pairs"
    )
    return distinct.drop("sides")


def as_arrays(column: pl.Series) -> list[npt.NDArray[np.int32]]:
    """A list column as one array per row, without copying the values."""
    exploded = column.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    ends = np.cumsum(column.list.len().to_numpy())
    return np.split(exploded, ends[:-1]) if len(ends) else []
