"""Steps and tokens of ranked answers, by hand and against the trainer's sampler."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from planned_run import run
from tiny_references import pair

from mrpo_pipeline.dataset.completion_numbering import Distinct
from mrpo_pipeline.dataset.prepare import prepare_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan import plan_run
from mrpo_pipeline.plan.extrapolation import Estimate
from mrpo_pipeline.plan.sampling import read_population
from mrpo_pipeline.plan.stage_two import TrainingData
from mrpo_pipeline.plan.worst_batch import PairLengths, examples_from
from mrpo_pipeline.policy.sampler import StepSampler

ANSWERS = (4, 3, 4, 3, 5)
SEVEN = {"per_device_train_batch_size": 7, "gradient_accumulation_steps": 1}


def ranked_rows(answers: tuple[int, ...] = ANSWERS) -> list[dict]:  # type: ignore[type-arg]
    return [
        pair(f"Question {at} of {count}?", "so " * (1 + one) + ".", "so " * (1 + other) + ".")
        for at, count in enumerate(answers)
        for one, other in combinations(range(count), 2)
    ]


def test_each_prompt_and_completion_of_ranked_answers_is_counted_once(tmp_path: Path) -> None:
    recipe = run(tmp_path, ranked_rows(), training=SEVEN)
    prepared = prepare_splits(recipe, report=False)["train"]
    examples = examples_from(prepared.frame)
    texts = {
        (row["prompt"], row[side]): (len(row["prompt_ids"]), len(row[f"{side}_ids"]))
        for row in prepared.frame.iter_rows(named=True)
        for side in ("chosen", "rejected")
    }
    prompts = {prompt: before for (prompt, _), (before, _) in texts.items()}
    data = TrainingData(read_population(recipe.pairs), prepared, None, set(), lambda _: True)
    completions = sum(after for _, after in texts.values())
    assert data.tokens(shared=True) == Estimate(sum(prompts.values()) + completions)
    assert data.tokens(shared=False) == Estimate(sum(before + after for before, after in texts.values()))
    assert data.completion_tokens() == Estimate(completions)
    rows = sum((before + after) ** 2 for before, after in texts.values())
    again = sum(before**2 for before, _ in texts.values()) - sum(before**2 for before in prompts.values())
    assert data.squares(shared=False) == Estimate(rows)
    assert data.squares(shared=True) == Estimate(rows - again)
    sampler = StepSampler(examples.lengths, size=7, distinct=Distinct.of(examples))
    grouped = plan_run(recipe).training
    assert grouped is not None and grouped.steps_per_epoch == len(sampler) > -(-len(examples) // 7)
    alone = plan_run(run(tmp_path, ranked_rows(), training=SEVEN | {"group_by_prompt": False}))
    assert alone.training is not None and alone.training.steps_per_epoch == -(-len(examples) // 7)
    assert (
        alone.training.tokens_per_epoch == grouped.tokens_per_epoch and alone.training.flops.value > grouped.flops.value
    )


def test_a_setting_that_cannot_be_beside_grouping_is_refused_as_in_training(tmp_path: Path) -> None:
    training = {"group_by_prompt": True, "dataloader_drop_last": True}
    with pytest.raises(UserError, match=r"group_by_prompt is true beside training\.dataloader_drop_last"):
        plan_run(run(tmp_path, ranked_rows(), training=training))


def test_repeated_samples_have_prompts_of_their_own(tmp_path: Path) -> None:
    frame = prepare_splits(run(tmp_path, ranked_rows()), report=False)["train"].frame
    part = PairLengths.of(examples_from(frame), grouped=True)
    both = PairLengths.concat([part, part, part])
    assert both.distinct is not None and part.distinct is not None
    assert len(np.unique(both.distinct.prompts)) == 3 * len(ANSWERS)
    everything = np.arange(len(both))
    assert both.distinct.rows(everything) == 3 * part.distinct.rows(np.arange(len(part))) == 3 * sum(ANSWERS)
    assert both.distinct.tokens(everything) == 3 * part.distinct.tokens(np.arange(len(part)))
