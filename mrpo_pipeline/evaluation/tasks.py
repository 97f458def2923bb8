"""Downstream tasks, evaluated by lm-evaluation-harness.

The harness loads the model itself, so its numbers equal those of its own command (``lm_eval --model hf``).
"""

from __future__ import annotations

import difflib
import functools
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.recipe import Evaluation, Policy
from mrpo_pipeline.terminal import PLAIN_INTERVAL, QUICK

log = logging.getLogger("mrpo")

Figure = tuple[str, str, str]
"""Task, metric, and the harness's filter of answers (``none`` where a task has one reading of an answer)."""


@dataclass
class TaskScores:
    """The scores of one model.

    Attributes:
        values: the harness's metrics, including those of groups of tasks.
        documents: for each metric that is a mean over documents, each document's value by (id, hash of its text).
        answers: questions and answers by task, one row for each document.
        higher_is_better: by metric, as the harness reports it.
        about: versions, few-shot examples, documents: by task.
    """

    values: dict[Figure, float] = field(default_factory=dict)
    documents: dict[Figure, dict[tuple[int, str], float]] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    higher_is_better: dict[Figure, bool | None] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_tasks(settings: Evaluation) -> None:
    """Refuse unknown tasks before any model loads; nothing is downloaded.

    Raises:
        UserError: if the harness is not installed, or for an unknown task, with the nearest names.
    """
    manager = _manager(settings)
    for name in settings.tasks:
        if name in manager.all_tasks or (name.endswith((".yaml", ".yml")) and Path(name).is_file()):
            continue
        near = difflib.get_close_matches(name, manager.all_tasks, n=4, cutoff=0.6)
        # A task's members often begin with its name.
        near += [other for other in manager.all_tasks if other.startswith(f"{name}_")][:4]
        meant = f"; the nearest: {', '.join(dict.fromkeys(near))}" if near else ""
        raise UserError(
            f"evaluation.tasks names {name!r}, which lm-evaluation-harness does not know: expected one of its "
            f"{len(manager.all_tasks):,} tasks, one of evaluation.include_path, or the path of a YAML file{meant}. Correct the name."
        )


def evaluate_tasks(model: Policy, tokenizer: Any, settings: Evaluation, *, what: str = "tasks") -> TaskScores:
    """Evaluate one model on the recipe's tasks with the harness, on this machine's GPU or else its CPU.

    Args:
        model: base and adapter. tokenizer: the model's, with its chat template.
        settings: ``tasks``, ``tasks_limit``, ``tasks_batch_size``, ``num_fewshot``, ``include_path``, ``chat_template``.
        what: named in messages.

    Raises:
        UserError: as :func:`check_tasks`; for a task whose data can't be read; for a model that can't be loaded.
        RunError: if the harness fails.
    """
    check_tasks(settings)
    with _quiet_harness():
        from lm_eval import simple_evaluate

        log.info("%s: %s", what, ", ".join(settings.tasks))
        manager = _manager(settings)
        try:
            loaded = manager.load(list(settings.tasks))
        except Exception as error:  # whatever a task's YAML or data set raises
            raise UserError(
                f"The tasks {', '.join(settings.tasks)} can't be made ready: {_first_line(error)}. Expected data sets that are in the "
                "local cache, on the hub (HF_HUB_OFFLINE unset), or in files that the task's YAML names. Mend that, or leave "
                "the task out."
            ) from error
        try:
            with _not_looking_round():
                results = simple_evaluate(
                    model=_harness_model(model, tokenizer, settings),
                    tasks=list(loaded["tasks"].values()) if not loaded["groups"] else list(settings.tasks),
                    num_fewshot=settings.num_fewshot,
                    limit=settings.tasks_limit,
                    apply_chat_template=settings.chat_template,
                    fewshot_as_multiturn=settings.chat_template,
                    task_manager=manager,
                    bootstrap_iters=0,  # its standard errors are those of one model; those of the difference are computed here
                )
        except (OSError, UserError):
            raise
        except Exception as error:
            raise RunError(
                f"lm-evaluation-harness failed on {', '.join(settings.tasks)} with {model.model}: {type(error).__name__}: "
                f"{_first_line(error)}. Run with -v for its own messages."
            ) from error
    if results is None:
        raise RunError("lm-evaluation-harness gave no result in this process: `mrpo evaluate` is for one process.")
    return read_results(results)


def read_results(results: Any) -> TaskScores:
    """The harness's result (``simple_evaluate``) by metric and document."""
    scores = TaskScores()
    for task, row in results["results"].items():
        for key, value in row.items():
            metric, comma, reading = key.partition(",")
            if not comma or not isinstance(value, int | float):
                continue
            if metric.endswith("_stderr"):
                continue
            figure = (task, metric, reading)
            scores.values[figure] = float(value)
            scores.higher_is_better[figure] = results.get("higher_is_better", {}).get(task, {}).get(metric)
        scores.about[task] = {
            "version": results.get("versions", {}).get(task),
            "num_fewshot": results.get("n-shot", {}).get(task),
            "documents": results.get("n-samples", {}).get(task, {}).get("effective"),
        }
    for task, samples in results.get("samples", {}).items():
        scores.answers[task] = [_answer(sample) for sample in samples]
        for sample in samples:
            at = (int(sample["doc_id"]), str(sample["doc_hash"]))
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, bool | int | float):
                    scores.documents.setdefault((task, metric, sample["filter"]), {})[at] = float(value)
    # A perplexity is not a mean over documents.
    for figure, documents in list(scores.documents.items()):
        mean = sum(documents.values()) / len(documents)
        if figure not in scores.values or abs(mean - scores.values[figure]) > 1e-9 * max(1.0, abs(mean)):
            del scores.documents[figure]
    return scores


def _answer(sample: dict[str, Any]) -> dict[str, Any]:
    """One document in readable form: question, expected answer and the model's answer."""
    first = sample["arguments"][0]
    filtered = sample["filtered_resps"]
    return {
        "doc_id": int(sample["doc_id"]),
        "doc_hash": str(sample["doc_hash"]),
        "filter": sample["filter"],
        "prompt": str(first[0]),
        "target": str(sample["target"]),
        "answer": str(filtered[0]) if len(filtered) == 1 else str(filtered),
        **{metric: float(sample[metric]) for metric in sample["metrics"] if isinstance(sample[metric], int | float)},
    }


def check_chat_template(policy: ModelSource, settings: Evaluation) -> None:
    """Refuse a chat template of the policy that is not the tokenizer's own, which the harness would use. Raises UserError."""
    if settings.chat_template and policy.template_kwargs:
        raise UserError(
            f"evaluation.chat_template is true, and policy.template_kwargs is {policy.template_kwargs!r}: the harness renders without "
            "arguments of the template. Expected none. Evaluate without the chat template, or put the arguments into the template as "
            "its defaults (tokenizer_config.json)."
        )
    if settings.chat_template and policy.template != "auto":
        raise UserError(
            f"evaluation.chat_template is true, and policy.template is {policy.template!r}: the harness renders with the "
            "tokenizer's own template. Expected policy.template auto. Evaluate without the chat template, or put the "
            "template into the tokenizer (tokenizer_config.json)."
        )


def _harness_model(model: Policy, tokenizer: Any, settings: Evaluation) -> Any:
    """The policy as a model of the harness, in the dtype of training and evaluation."""
    from lm_eval.models.huggingface import HFLM

    from mrpo_pipeline.evaluation.held_out import device_of_choice
    from mrpo_pipeline.policy.model import base_dtype, load_config, load_policy

    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "trust_remote_code": model.trust_remote_code,
        "batch_size": settings.tasks_batch_size,
    }
    dtype = base_dtype(model, load_config(model))
    try:
        if model.quantization is None:
            return HFLM(
                pretrained=model.model,
                revision=model.revision or "main",
                peft=model.adapter,
                dtype=dtype,
                device=device_of_choice(),
                **common,
            )
        return HFLM(pretrained=load_policy(model), backend="causal", **common)
    except (OSError, ValueError) as error:
        raise UserError(
            f"lm-evaluation-harness can't load {model.model}"
            + (f" with the adapter {model.adapter}" if model.adapter else "")
            + f": {_first_line(error)}. Expected a causal language model, and an adapter that fits it. Correct policy.model or "
            "--adapter."
        ) from error


def _manager(settings: Evaluation) -> Any:
    """The harness's index of tasks: only ``include_path`` if it has all requested tasks, because the full index takes seconds."""
    paths = [settings.include_path] if isinstance(settings.include_path, str) else settings.include_path or []
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(
                f"evaluation.include_path names {path}, which is no folder: expected one with the YAML files of tasks. Correct it."
            )
    if paths:
        own = _index(tuple(paths), False)
        if all(name in own.all_subtasks for name in settings.tasks):
            return own
    return _index(tuple(paths), True)


@functools.lru_cache(maxsize=4)
def _index(paths: tuple[str, ...], whole: bool) -> Any:
    try:
        with _quiet_harness():
            from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"evaluation.tasks needs lm-evaluation-harness, which can't be imported ({error}): expected the extra `tasks`. "
            "Install it: pip install 'mrpo[tasks]'."
        ) from None
    return TaskManager(include_path=list(paths) or None, include_defaults=whole)


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Hide the harness's log lines unless ``-v`` is set. Without a terminal, show its progress bars as occasional lines."""
    from tqdm.std import tqdm

    from mrpo_pipeline.terminal import quiet_libraries

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate")]
    levels = [logger.level for logger in loggers]
    verbose = logging.getLogger().isEnabledFor(logging.INFO)
    for logger in loggers:
        logger.setLevel(logging.INFO if verbose else logging.ERROR)
    start_bar = tqdm.__init__
    if not sys.stderr.isatty():
        tqdm.__init__ = functools.partialmethod(start_bar, mininterval=PLAIN_INTERVAL, delay=QUICK)
    try:
        with quiet_libraries():
            yield
    finally:
        tqdm.__init__ = start_bar
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _not_looking_round() -> Iterator[None]:
    """Skip the harness's queries of git and the machine, which take seconds and print to stderr, for records that are not kept here."""
    from lm_eval import evaluator

    asked = ("get_git_commit_hash", "add_env_info")
    before = {name: getattr(evaluator, name) for name in asked}
    for name in asked:
        setattr(evaluator, name, lambda *_: None)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(evaluator, name, function)


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
