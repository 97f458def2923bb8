"""`mrpo evaluate`: evaluate the policy before and after training on held-out pairs and tasks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_pipeline.dataset.nothing_left import few_pairs_notice
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation.generations import Sample, as_markdown, distinct_prompts, generate
from mrpo_pipeline.evaluation.held_out import PolicyFigures, device_of_choice, dtype_of, evaluate_policy
from mrpo_pipeline.evaluation.staleness import ANSWERS, EVALUATION, SAMPLES, adapter_content, how_asked
from mrpo_pipeline.evaluation.task_changes import TaskChange, table_of, task_changes, write_answers
from mrpo_pipeline.evaluation.tasks import TaskScores, check_chat_template, check_tasks, evaluate_tasks
from mrpo_pipeline.evaluation.trained_with import by_its_method
from mrpo_pipeline.files.atomic import write_whole, write_whole_json
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.pairs.counts import Counts
from mrpo_pipeline.pairs.readable_text import readable_completion, readable_prompt
from mrpo_pipeline.policy.anchor_drift import DRIFT
from mrpo_pipeline.policy.output_dir import check_output_folder
from mrpo_pipeline.policy.require_adapter import require_adapter
from mrpo_pipeline.recipe import Evaluation as EvaluationSettings
from mrpo_pipeline.recipe import Policy, Recipe

log = logging.getLogger("mrpo")

SHOWN = (
    ("accuracy/policy", "prefers the chosen side (sums)"),
    ("accuracy/policy_per_token", "prefers the chosen side (per token)"),
    ("accuracy/anchor", "moved towards the chosen side, against the anchor"),
    *DRIFT.items(),
    ("rewards/accuracies", "… against this method's own π̃"),
    ("rewards/margins", "reward margin"),
    ("loss", "loss"),
)


@dataclass
class Evaluation:
    """Metrics of a policy before and after training."""

    folder: str
    pairs: Counts | None = None
    """None, and the next three fields empty, if only tasks were requested."""
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    tasks: list[TaskChange] = field(default_factory=list)
    adapter: str | None = None
    """SHA-256 of the weights that were measured."""
    asked: dict[str, Any] = field(default_factory=dict)
    """The settings of the tasks, see ``staleness.how_asked``."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs.as_dict() if self.pairs else {},
            "before": self.before,
            "after": self.after,
            "samples": [sample.as_dict() for sample in self.samples],
            "tasks": [change.as_dict() for change in self.tasks],
            "asked": self.asked,
            "adapter": self.adapter,
        }

    def table(self) -> str:
        """A plain table for the terminal, followed by the samples."""
        lines: list[str] = []
        if self.pairs:
            few = few_pairs_notice("eval", self.pairs)
            lines += [
                *([few] if few else []),
                f"{self.pairs.used:,} held-out pairs",
                f"{'':28}{'before':>10}{'after':>10}",
            ]
            lines += [
                f"{name:28}{self.before[name]:10.4f}{self.after[name]:10.4f}  {text}"
                for name, text in SHOWN
                if name in self.after
            ]
            for sample in self.samples:
                lines += ["", f"prompt  {sample.prompt}", f"before  {sample.before}", f"after   {sample.after}"]
            lines.append("")
        if self.tasks:
            lines += [table_of(self.tasks), ""]
        files = [EVALUATION, *([SAMPLES] if self.pairs else []), *([f"{ANSWERS}/"] if self.tasks else [])]
        lines.append(f"Written to {self.folder}: {', '.join(files)}")
        return "\n".join(lines)


def evaluate_recipe(
    recipe: Recipe,
    adapter: Path | None = None,
    *,
    tasks_only: bool = False,
    output_dir: Path | None = None,
    given: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate the policy's start and the trained adapter, with the method that the adapter was trained with.

    Both are evaluated on the recipe's held-out pairs and on its ``evaluation.tasks``, without held-out pairs on the tasks only.

    Args:
        adapter: the adapter's folder; default: the recipe's ``output_dir``.
        tasks_only: skip the pairs; no cache is needed then.
        output_dir: results folder; default: the adapter's folder.
        given: settings of the command line, by dotted key: those under ``method`` override the adapter's method.

    Raises:
        UserError: without an adapter, pairs or tasks; for a completion that is not scored, or an unknown task.
    """
    from mrpo_pipeline.policy.distributed import require_one_process

    require_one_process("mrpo evaluate")
    folder = require_adapter(Path(adapter if adapter is not None else recipe.output_dir))
    output = folder if output_dir is None else output_dir
    if output.resolve() != folder.resolve():
        _check_output(recipe, output)
    with held(output, "mrpo evaluate"):
        return _evaluate(recipe, folder, output, tasks_only=tasks_only, given=given or {})


def _evaluate(recipe: Recipe, folder: Path, output: Path, *, tasks_only: bool, given: Mapping[str, Any]) -> Evaluation:
    recipe = by_its_method(recipe, folder, given)
    tasks = recipe.evaluation.tasks
    if tasks_only and not tasks:
        raise UserError(
            "--tasks-only is given and the recipe names no task: expected evaluation.tasks. Give --tasks NAMES."
        )
    if tasks:
        check_tasks(recipe.evaluation)
    result = Evaluation(str(output), adapter=adapter_content(folder))
    if not tasks_only and not (tasks and recipe.pairs.eval is None and not recipe.pairs.eval_fraction):
        _measure_on_pairs(recipe, folder, output, result)
    if tasks:
        result.tasks, result.asked = _measure_on_tasks(recipe, folder, output), how_asked(recipe.evaluation)
    if output.resolve() != folder.resolve():
        recipe.write(output)
    write_whole_json(output / EVALUATION, result.as_dict())
    return result


def _check_output(recipe: Recipe, output: Path) -> None:
    """Refuse a results folder that holds another adapter, whose own results would be replaced."""
    check_output_folder(recipe.model_copy(update={"output_dir": str(output)}))
    if (output / "adapter_config.json").is_file():
        raise UserError(
            f"output_dir (--output-dir): {output} holds another adapter, and these results would lie beside it as its own: expected "
            "a folder without an adapter. Name another one."
        )


def _measure_on_pairs(recipe: Recipe, folder: Path, output: Path, result: Evaluation) -> None:
    from mrpo_pipeline.dataset.anchor_mismatch import anchor_start, start_notice
    from mrpo_pipeline.dataset.prepare import tokenizer_of
    from mrpo_pipeline.dataset.reference_logps import caches_of_method
    from mrpo_pipeline.dataset.shared_prompt import own_prompts
    from mrpo_pipeline.dataset.splits import check_columns, check_method, examples_of, load_splits
    from mrpo_pipeline.policy.anchor_check import compare_start
    from mrpo_pipeline.policy.method_state import AT_START, read_snapshot
    from mrpo_pipeline.policy.model import load_policy

    check_method(recipe, recipe.method)
    caches = caches_of_method(recipe)
    if caches and not recipe.required_policy().check_anchor:
        log.warning("%s", start_notice(recipe))
    # Training pairs are read only if the held-out pairs, or those of held-out weights, are split from them.
    needed = recipe.method.needs_held_out(list(recipe.references))
    if recipe.pairs.eval is not None and not needed:
        recipe = recipe.model_copy(update={"pairs": recipe.pairs.model_copy(update={"train": None})})
    splits = load_splits(recipe, caches, "eval")
    check_columns(recipe.method, splits)
    split = splits["eval"]
    examples, _ = examples_of(split, recipe.method, report=False)
    policy, anchor = recipe.required_policy(), anchor_start(recipe, caches)
    frame = split.pairs.frame
    chosen = distinct_prompts(frame, recipe.evaluation.samples)
    samples = [
        Sample(readable_prompt(prompt), readable_completion(good), readable_completion(bad))
        for prompt, good, bad in chosen.select("prompt_read", "chosen", "rejected").iter_rows()
    ]
    figures: dict[str, PolicyFigures] = {}
    tokenizer = tokenizer_of(recipe.required_policy())
    for moment, measured in (("before", policy), ("after", _trained(policy, folder))):
        model = load_policy(measured).to(device_of_choice())
        snapshot = AT_START if moment == "before" else read_snapshot(folder)
        figures[moment] = evaluate_policy(
            model, examples, recipe.method, snapshot, what=f"evaluating {moment} training"
        )
        if moment == "before" and anchor is not None:
            compare_start(examples, figures[moment].chosen, figures[moment].rejected, anchor, dtype_of(model))
        prompts = own_prompts(chosen, "chosen")
        answers = generate(model, tokenizer, prompts, max_new_tokens=recipe.evaluation.max_new_tokens)
        for sample, answer in zip(samples, answers, strict=True):
            setattr(sample, moment, answer)
        del model
    result.pairs, result.samples = split.counts, samples
    log.info("eval: %s", result.pairs)
    result.before, result.after = figures["before"].metrics, figures["after"].metrics
    write_whole(output / SAMPLES, as_markdown(samples))


def _measure_on_tasks(recipe: Recipe, folder: Path, output: Path) -> list[TaskChange]:
    """The harness's metrics before and after; writes the answers to ``tasks/TASK.parquet``."""
    from mrpo_pipeline.policy.train import served_tokenizer

    policy = recipe.required_policy()
    check_chat_template(policy, recipe.evaluation)
    # Tasks are read in the same way before and after training, as the pairs are.
    tokenizer = served_tokenizer(policy)
    scores = {
        "before": _start_on_tasks(policy.model_dump_json(), recipe.evaluation.model_dump_json()),
        "after": evaluate_tasks(_trained(policy, folder), tokenizer, recipe.evaluation, what="tasks after training"),
    }
    write_answers(scores, output / ANSWERS)
    return task_changes(scores["before"], scores["after"])


@functools.lru_cache(maxsize=1)
def _start_on_tasks(policy: str, settings: str) -> TaskScores:
    """The start's metrics; cached, for several adapters on the same start."""
    from mrpo_pipeline.policy.train import served_tokenizer

    start, evaluation = Policy.model_validate_json(policy), EvaluationSettings.model_validate_json(settings)
    return evaluate_tasks(start, served_tokenizer(start), evaluation, what="tasks before training")


def _trained(policy: Policy, folder: Path) -> Policy:
    """The policy after training: the same base with the trained adapter."""
    return policy.model_copy(update={"adapter": str(folder)})
