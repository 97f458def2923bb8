"""What the texts alone explain is no fault: two kinds of answers, answers that all begin or run alike."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from mrpo_pipeline.audit.findings import Evidence
from mrpo_pipeline.audit.logprob_checks import fault_by_numbers
from mrpo_pipeline.audit.logprob_stats import Patterns, _by_place, _varied
from mrpo_pipeline.audit.statistics import effective_kinds, larger_within, mean_error
from mrpo_pipeline.audit.tokenization import Origin
from mrpo_pipeline.audit.warnings import remarks_on

# As measured on SmolLM2-135M-Instruct, sound, answers that are JSON objects against lines of semicolons (40 pairs).
MEASURED = {
    "completions": 80, "prompts": 40, "tokens": 1142, "nats_per_byte": 1.57, "byte_entropy": 3.11, "first": 5.4, "rest": 2.7,
    "last": 3.6, "first_over_table": 4.7, "first_error": 0.26, "rest_over_table": -0.31, "first_over_text": 2.05,
    "belonging": 39.7, "belonging_alike": 12.2, "alike": 1142, "shared": 0, "first_easy": 0.0, "last_easy": 0.5,
    "last_by_length": 1.0, "bits": 24.0, "distinct": 1.0, "first_kinds": 2.0,
}  # fmt: skip
CONFIRMED = Origin(rendered=80, other_ids=0.0, other_prompts=0.0)


def evidence(origin: Origin = CONFIRMED, **other: Any) -> Evidence:
    figures = {field.name: math.nan for field in fields(Patterns)} | MEASURED | other
    return Evidence("one", Patterns(**figures), origin)


def fault(one: Evidence) -> str | None:
    found = fault_by_numbers(one)
    return found.fault if found else None


def test_two_kinds_of_answers_are_neither_padding_nor_a_template() -> None:
    assert fault(evidence()) is None
    assert fault(evidence(Origin())) is None


def test_only_a_minority_that_ends_well_is_the_longest_of_its_batch() -> None:
    assert fault(evidence(last_easy=0.15, last_by_length=0.95)) == "padding"
    assert fault(evidence(last_easy=0.5, last_by_length=0.95)) is None


def test_only_a_minority_that_begins_well_has_the_longest_prompts_of_its_batch() -> None:
    assert fault(evidence(first_easy=0.15, first_by_prompt=0.95)) == "padding"
    assert fault(evidence(first_easy=0.45, first_by_prompt=0.95)) is None


def test_a_surprise_over_many_beginnings_is_another_template_where_nothing_confirms_its_own() -> None:
    assert fault(evidence(Origin(), first_kinds=9.0)) == "template"
    assert fault(evidence(first_kinds=9.0)) is None
    assert fault(evidence(first_kinds=9.0, last=12.0)) == "template"
    (remark,) = [one["sentence"] for one in remarks_on([evidence()], {}, {}, {})]
    assert "The first token of a completion costs it" in remark


def test_a_plain_template_by_choice_is_a_remark() -> None:
    one = evidence(replace(CONFIRMED, not_own_prompts=1.0), first_over_text=0.0)
    assert fault(one) == "template"
    assert fault(replace(one, plain_by_choice=True)) is None


def test_foreign_text_without_a_tokenizer_is_a_remark() -> None:
    one = evidence(Origin(), nats_per_byte=3.5)
    assert fault(one) is None
    assert any("a mere table of these texts' bytes" in found["sentence"] for found in remarks_on([one], {}, {}, {}))


def test_the_longer_of_two_kinds_says_nothing_within_them() -> None:
    kinds = np.repeat([0, 1], 20)
    length = 10 * kinds + np.tile(np.arange(20) % 5, 2)
    marked = (kinds == 1) ^ (np.tile(np.arange(20) // 5, 2) == 3)
    assert larger_within(length, marked, np.zeros(40, dtype=np.int64)) > 0.7
    assert larger_within(length, marked, kinds) == pytest.approx(0.5)
    assert math.isnan(larger_within(length, kinds == 1, kinds))


def test_error_and_kinds_by_hand() -> None:
    """Two clusters of two, at 0 and at 1: sums −1 and 1, √(2 · 2)/4."""
    assert mean_error(np.array([0.0, 0, 1, 1]), np.array([5, 5, 7, 7])) == pytest.approx(0.5)
    assert effective_kinds(np.array([1, 1, 2, 2])) == 2.0


def test_places_at_which_all_texts_are_alike_do_not_count_as_constant() -> None:
    """Answers that run “Answer : A” and “Answer : B”."""
    place, ids = np.tile([0, 1, 2], 20), np.tile([1, 2, 3, 1, 2, 4], 10)
    nats = place * 3.0 + 0.01 * np.arange(60) / 60
    assert _by_place(nats, ids, place) == pytest.approx(0.0, abs=1e-9)
    varied = np.arange(60) % 7
    assert _by_place(place * 3.0, varied, place) == pytest.approx(1.0)


def test_a_place_at_which_texts_of_one_length_agree_has_nothing_to_deal_out() -> None:
    strata, ids = np.tile([0, 1], 10), np.where(np.arange(20) % 2 == 0, 7, np.arange(20) % 3)
    assert np.array_equal(_varied(ids, strata), strata == 1)
