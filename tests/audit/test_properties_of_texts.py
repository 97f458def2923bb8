"""Properties of the texts are not faults: two kinds of answers, answers with a common beginning or pattern."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from mrpo_pipeline.audit.cached_ids_check import Tokenization
from mrpo_pipeline.audit.findings import Evidence
from mrpo_pipeline.audit.logprob_checks import fault_by_logprobs
from mrpo_pipeline.audit.logprob_stats import LogprobStats, _by_position, _varied
from mrpo_pipeline.audit.statistics import auc_within, clustered_error, effective_count
from mrpo_pipeline.audit.warnings import warnings_of

# Measured on SmolLM2-135M-Instruct (sound): answers that are JSON objects against lines of semicolons (40 pairs).
MEASURED = {
    "completions": 80, "prompts": 40, "tokens": 1142, "nats_per_byte": 1.57, "byte_entropy": 3.11, "first": 5.4, "rest": 2.7,
    "last": 3.6, "first_over_unigram": 4.7, "first_error": 0.26, "rest_over_unigram": -0.31, "first_over_text": 2.05,
    "dependence": 39.7, "dependence_same_length": 12.2, "same_length_tokens": 1142,
    "shared_prefixes": 0, "first_easy": 0.0, "last_easy": 0.5,
    "last_auc_length": 1.0, "significant_bits": 24.0, "distinct": 1.0, "first_variety": 2.0,
}  # fmt: skip
CONFIRMED = Tokenization(rendered=80, different_ids=0.0, different_prompts=0.0)


def evidence(origin: Tokenization = CONFIRMED, **other: Any) -> Evidence:
    figures = {field.name: math.nan for field in fields(LogprobStats)} | MEASURED | other
    return Evidence("one", LogprobStats(**figures), origin)


def fault(one: Evidence) -> str | None:
    found = fault_by_logprobs(one)
    return found.fault if found else None


def test_two_kinds_of_answers_are_neither_padding_nor_a_template() -> None:
    assert fault(evidence()) is None
    assert fault(evidence(Tokenization())) is None


def test_only_a_minority_that_ends_well_is_the_longest_of_its_batch() -> None:
    assert fault(evidence(last_easy=0.15, last_auc_length=0.95)) == "padding"
    assert fault(evidence(last_easy=0.5, last_auc_length=0.95)) is None


def test_only_a_minority_that_begins_well_has_the_longest_prompts_of_its_batch() -> None:
    assert fault(evidence(first_easy=0.15, first_auc_prompt=0.95)) == "padding"
    assert fault(evidence(first_easy=0.45, first_auc_prompt=0.95)) is None


def test_a_surprise_over_many_beginnings_is_another_template_where_nothing_confirms_its_own() -> None:
    assert fault(evidence(Tokenization(), first_variety=9.0)) == "template"
    assert fault(evidence(first_variety=9.0)) is None
    assert fault(evidence(first_variety=9.0, last=12.0)) == "template"
    (warning,) = [one["sentence"] for one in warnings_of([evidence()], {}, {}, {})]
    assert "The first token of a completion costs" in warning


def test_a_plain_template_by_choice_is_a_warning() -> None:
    one = evidence(replace(CONFIRMED, foreign_prompts=1.0), first_over_text=0.0)
    assert fault(one) == "template"
    assert fault(replace(one, plain_by_choice=True)) is None


def test_foreign_text_without_a_tokenizer_is_a_warning() -> None:
    one = evidence(Tokenization(), nats_per_byte=3.5)
    assert fault(one) is None
    assert any("the byte frequencies of these texts" in found["sentence"] for found in warnings_of([one], {}, {}, {}))


def test_auc_is_computed_within_kinds() -> None:
    kinds = np.repeat([0, 1], 20)
    length = 10 * kinds + np.tile(np.arange(20) % 5, 2)
    marked = (kinds == 1) ^ (np.tile(np.arange(20) // 5, 2) == 3)
    assert auc_within(length, marked, np.zeros(40, dtype=np.int64)) > 0.7
    assert auc_within(length, marked, kinds) == pytest.approx(0.5)
    assert math.isnan(auc_within(length, kinds == 1, kinds))


def test_error_and_kinds_by_hand() -> None:
    """Two clusters of two, at 0 and at 1: sums −1 and 1, √(2 · 2)/4."""
    assert clustered_error(np.array([0.0, 0, 1, 1]), np.array([5, 5, 7, 7])) == pytest.approx(0.5)
    assert effective_count(np.array([1, 1, 2, 2])) == 2.0


def test_positions_at_which_all_texts_agree_are_not_constant_log_probs() -> None:
    """Answers “Answer : A” and “Answer : B”."""
    place, ids = np.tile([0, 1, 2], 20), np.tile([1, 2, 3, 1, 2, 4], 10)
    nats = place * 3.0 + 0.01 * np.arange(60) / 60
    assert _by_position(nats, ids, place) == pytest.approx(0.0, abs=1e-9)
    varied = np.arange(60) % 7
    assert _by_position(place * 3.0, varied, place) == pytest.approx(1.0)


def test_positions_at_which_texts_of_one_length_agree_are_not_permuted() -> None:
    strata, ids = np.tile([0, 1], 10), np.where(np.arange(20) % 2 == 0, 7, np.arange(20) % 3)
    assert np.array_equal(_varied(ids, strata), strata == 1)
