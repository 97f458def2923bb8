"""`mrpo compare`: train and evaluate methods × seeds on one cache, and compare them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.compare.methods import Contender, contenders, settings_of
from mrpo_pipeline.compare.results import Comparison, clusters_of, summarize
from mrpo_pipeline.compare.runs import Runs
from mrpo_pipeline.compare.sweep_selection import choose
from mrpo_pipeline.compare.worker_pool import Outcome
from mrpo_pipeline.dataset.anchor_mismatch import anchor_start, start_notice
from mrpo_pipeline.dataset.reference_logps import CachedPairs, open_caches
from mrpo_pipeline.dataset.splits import Split, check_columns, check_method, load_splits
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.files.atomic import remove_leftovers, temporary_folder, whole_file, write_whole_json
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.pairs.readable_text import readable_completion, readable_prompt
from mrpo_pipeline.policy.output_dir import check_output_folder
from mrpo_pipeline.policy.run import check_training
from mrpo_pipeline.recipe import Recipe

log = logging.getLogger("mrpo")

_INPUTS = ".inputs-"


def compare_recipe(recipe: Recipe) -> Comparison:
    """Train and evaluate every method with every seed, except runs that an earlier call finished.

    Pairs and caches are read once; the runs memory-map the prepared pairs. With the same seed, all methods start from the same
    adapter and take the same batches in the same order.

    Writes to ``output_dir``: ``recipe.yaml``, ``audit.json``, ``held_out.parquet``, ``start/`` and ``METHOD/seed-N/`` (the files of
    ``mrpo train``, ``result.json``, ``pairs.parquet``, ``log.txt``), ``sweep/`` with the runs of a sweep,
    ``comparison.json``, ``comparison.md``, and the report (``report.html``, ``plots/``).

    Raises:
        UserError: for an invalid recipe, pairs or caches.
        RunError: if a run failed; finished runs are kept, and a comparison of them is written if possible.
    """
    from mrpo_pipeline.policy.distributed import require_one_process

    require_one_process("mrpo compare")
    began = time.monotonic()
    entrants = contenders(recipe)
    for one in entrants:
        check_method(recipe, one.method)
    check_output_folder(recipe)
    with held(recipe.output_dir, "mrpo compare"):
        return _compare(recipe, entrants, began)


def _compare(recipe: Recipe, entrants: list[Contender], began: float) -> Comparison:
    from mrpo_pipeline.policy.argument_checks import require_full_batch
    from mrpo_pipeline.report import write_report

    sweeps = any(len(settings_of(recipe, one)) > 1 for one in entrants)
    if sweeps and not recipe.pairs.weights_fraction:
        raise UserError(
            "The recipe has a compare.sweep and no third split to choose by: on the held-out pairs, a setting chosen by them would look "
            "better than it is. Expected pairs.weights_fraction above 0, such as 0.1. Set it, or remove the sweep."
        )
    arguments = check_training(recipe, [one.method for one in entrants])
    caches = open_caches(recipe)
    if not recipe.required_policy().check_anchor:
        log.warning("%s", start_notice(recipe))
    splits = load_splits(recipe, caches, "train", "eval")
    for one in entrants:
        check_columns(one.method, splits)
    require_full_batch(arguments, splits["train"].pairs.frame.height)
    folder = Path(recipe.output_dir)
    recipe.write(folder)
    _write_held_out(folder / "held_out.parquet", splits["eval"].pairs)
    _audit(recipe, splits, caches, folder)
    remove_leftovers(folder, _INPUTS)
    with temporary_folder(folder, _INPUTS) as inputs:
        runs = Runs(
            recipe, splits, anchor_start(recipe, caches), folder, inputs, [one.method for one in entrants], arguments
        )
        chosen_by = runs.evaluate_on_third_split() if sweeps else None
        runs.add_start()
        swept: list[dict[str, Any]] = []
        if chosen_by is not None:
            entrants, swept = choose(runs, entrants, chosen_by)
        for one in entrants:
            runs.add(one)
        runs.execute()
    frame = splits["eval"].pairs.frame
    complete = runs.complete()
    more = {
        "pairs": {name: split.counts.as_dict() for name, split in splits.items()},
        "costs": runs.costs(time.monotonic() - began),
        "sweep": swept,
        "failed": [{"run": job.title, "reason": reason} for job, reason in runs.outcome.failed.items()],
    }
    comparison = None
    if runs.start_job in runs.outcome.results and complete:
        comparison = summarize(
            folder,
            complete,
            runs.held_out,
            clusters_of(frame),
            recipe.compare.seeds,
            metric=recipe.compare.metric,
            more=more,
        )
        comparison.write()
        write_report(folder)
    if runs.outcome.failed:
        raise RunError(_failures(runs.outcome, folder, comparison))
    assert comparison is not None
    for name, split in splits.items():
        log.info("%s: %s", name, split.counts)
    return comparison


def _write_held_out(path: Path, pairs: CachedPairs) -> None:
    """Write the held-out pairs as readable text, with the anchor's sums."""
    table = pl.DataFrame(
        {
            "pair_id": pairs.frame["pair_id"],
            "prompt": [readable_prompt(prompt) for prompt in pairs.frame["prompt_read"]],
            "chosen": [readable_completion(one) for one in pairs.frame["chosen"]],
            "rejected": [readable_completion(one) for one in pairs.frame["rejected"]],
            "anchor_logps_chosen": pairs.logps_chosen[:, 0],
            "anchor_logps_rejected": pairs.logps_rejected[:, 0],
        }
    )
    with whole_file(path) as temporary:
        table.write_parquet(temporary)


def _audit(recipe: Recipe, splits: Mapping[str, Split], caches: Sequence[ReferenceCache], folder: Path) -> None:
    """Audit the references before training: log the findings, and write ``audit.json`` for the report."""
    from mrpo_pipeline.audit import audit_pairs, readers_of

    readers = {source.name: readers_of(source) for source in recipe.sources()}
    audit = audit_pairs(splits, caches, method=recipe.method, readers=readers)
    for finding in audit.findings:
        log.warning("%s: %s", finding.reference, finding.sentence)
    write_whole_json(folder / "audit.json", audit.as_dict())


def _failures(outcome: Outcome, folder: Path, comparison: Comparison | None) -> str:
    count, total = len(outcome.failed), len(outcome.failed) + len(outcome.results)
    first = next(iter(outcome.failed))
    others = f" (and {', '.join(job.title for job in list(outcome.failed)[1:])})" if count > 1 else ""
    kept = "A comparison of the complete methods was written. " if comparison else ""
    return (
        f"{count} of {total} runs failed: {first.title}{others}. {outcome.failed[first]} Finished runs are kept in {folder}. "
        f"{kept}Run the same command again to continue with the rest."
    )
