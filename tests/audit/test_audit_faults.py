"""Each fault is planted in the second of two trained references: it is named, and the sound one is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trained_references import Reference, Rows, World, changed, padded, prepared, questions

from mrpo_pipeline.audit import Audit, Readers
from mrpo_pipeline.cache import CompletionRow
from mrpo_pipeline.demo.vocabularies import CHATML_TEMPLATE
from mrpo_pipeline.rendering import Renderer


def named(audit: Audit) -> list[tuple[str, str]]:
    return [(finding.reference, finding.fault) for finding in audit.findings]


def with_chatml(world: World, folder: Path) -> Renderer:
    """The second reference's tokenizer with another template."""
    path = folder / "chatml.jinja"
    path.write_text(CHATML_TEMPLATE, encoding="utf-8")
    return Renderer.from_pretrained(str(world.second.path), template=str(path))


def shuffled_numbers(world: World) -> Rows:
    rows = world.rows(world.second)
    order = np.random.default_rng(0).permutation(len(rows))
    return [
        replace(row, logprobs=np.resize(rows[other].logprobs, len(row.logprobs)))
        for row, other in zip(rows, order, strict=True)
    ]


def shuffled_rows(world: World) -> Rows:
    rows = world.rows(world.second)
    order = np.random.default_rng(0).permutation(len(rows))
    return [replace(rows[other], completion_id=row.completion_id) for row, other in zip(rows, order, strict=True)]


def ids_of_the_first(world: World) -> Rows:
    """The authors' code: every model reads the policy's ids."""
    size = int(world.second.engine._vocab_size)
    rendered = world.first.renderer.render(world.texts)
    fed = [replace(one, prompt_ids=one.prompt_ids % size, completion_ids=one.completion_ids % size) for one in rendered]
    return [
        replace(row, token_ids=one.completion_ids)
        for row, one in zip(world.rows(world.second, fed), rendered, strict=True)
    ]


def bos_twice(world: World) -> Rows:
    rendered = world.second.renderer.render(world.texts)
    return world.rows(
        world.second,
        [replace(one, prompt_ids=np.concatenate([one.prompt_ids[:1], one.prompt_ids])) for one in rendered],
    )


def to_e4m3(values: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()


PLANTED: dict[str, tuple[str, Callable[[World], Rows]]] = {
    "pads before the prompts": ("padding", lambda world: padded(world, world.second)),
    "pads after the prompts": ("padding", lambda world: padded(world, world.second, between=True)),
    "another tokenizer's ids": ("tokenizer", ids_of_the_first),
    "two BOS": ("bos", bos_twice),
    "rows under other ids": ("shuffled", shuffled_rows),
    "log-probs of other texts": ("shuffled", shuffled_numbers),
    "e4m3": ("rounding", lambda world: changed(world.rows(world.second), to_e4m3)),
    "steps of a sixteenth": (
        "rounding",
        lambda world: changed(world.rows(world.second), lambda v: np.round(v * 16) / 16),
    ),
    "steps that are not powers of two": (
        "rounding",
        lambda world: changed(world.rows(world.second), lambda v: np.round(v / 0.03) * 0.03),
    ),
    "the first one's cache": ("copy", lambda world: world.rows(world.first)),
    "one number everywhere": ("constant", lambda world: changed(world.rows(world.second), lambda v: 0 * v - 7.1)),
    "by the position alone": (
        "constant",
        lambda world: changed(world.rows(world.second), lambda v: -1.5 - np.arange(len(v)) / 7),
    ),
    "every third is zero": (
        "zeros",
        lambda world: changed(world.rows(world.second), lambda v: np.where(np.arange(len(v)) % 3 == 1, 0, v)),
    ),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_named_and_the_sound_reference_is_not(world: World, kind: str) -> None:
    fault, make = PLANTED[kind]
    audit = world.audit((world.first, world.rows(world.first)), (world.second, make(world)))
    assert named(audit) == [("second", fault)]
    assert audit.references["second"]["assessment"] == "broken" and audit.references["first"]["assessment"] == "sound"
    assert "second" in audit.findings[0].sentence or "RECIPE" in audit.findings[0].sentence


def test_sound_references_are_not_named(world: World) -> None:
    audit = world.audit((world.first, world.rows(world.first)), (world.second, world.rows(world.second)))
    assert named(audit) == [] and audit.broken == []
    assert {one["assessment"] for one in audit.references.values()} == {"sound"}


@pytest.mark.parametrize("kind", [kind for kind in PLANTED if kind != "the first one's cache"])
def test_a_single_reference_is_enough(world: World, kind: str) -> None:
    fault, make = PLANTED[kind]
    assert named(world.audit((world.second, make(world)))) == [("second", fault)]


@pytest.mark.parametrize("text", ["by the rows' counts", "by the recipe", "by the numbers alone"])
def test_another_template_is_named(world: World, tmp_path: Path, text: str) -> None:
    other = with_chatml(world, tmp_path)
    rows = world.rows(world.second, other.render(world.texts))
    readers = {"second": Readers(other, world.second.renderer)} if text == "by the recipe" else None
    if text == "by the numbers alone":
        readers = {"second": Readers()}
    audit = world.audit((world.first, world.rows(world.first)), (world.second, rows), readers=readers)
    assert named(audit) == [("second", "template")]
    assert ("`template:`" in audit.findings[0].sentence) == (text == "by the recipe")


def test_a_wrong_tokenizer_in_the_recipe_is_found(world: World) -> None:
    rows = ids_of_the_first(world)
    readers = {"second": Readers(world.first.renderer, world.second.renderer)}
    audit = world.audit((world.first, world.rows(world.first)), (world.second, rows), readers=readers)
    assert named(audit) == [("second", "tokenizer")] and "`tokenizer:`" in audit.findings[0].sentence


def test_the_copy_is_the_one_with_foreign_ids_in_any_order(world: World) -> None:
    rows = world.rows(world.first)
    audit = world.audit((world.second, rows), (world.first, rows))
    assert named(audit) == [("second", "copy")]


def test_tiny_differences_are_a_copy_and_another_dtype_is_a_warning(world: World) -> None:
    rows = world.rows(world.first)
    rng = np.random.default_rng(0)
    twin = Reference(world.first.path, "twin")
    for size, found, warned in ((1e-5, [("twin", "copy")], False), (1e-2, [], True)):
        noisy = changed(rows, lambda v, size=size: np.minimum(v + size * rng.standard_normal(len(v)), 0))
        audit = world.audit((world.first, rows), (twin, noisy), readers={"twin": Readers(world.first.renderer)})
        findings = [one for one in named(audit) if one[1] == "copy"]
        assert findings == found
        assert any("nearly the same model" in warning["sentence"] for warning in audit.warnings) == warned


def test_a_weak_reference_gets_a_warning_not_a_finding(world: World) -> None:
    """Eight times the nats, and no other difference."""
    weak = changed(world.rows(world.second), lambda values: 8 * values)
    audit = world.audit((world.first, world.rows(world.first)), (world.second, weak))
    assert named(audit) == [] and audit.references["second"]["assessment"] == "doubtful"
    (warning,) = [one["sentence"] for one in audit.warnings if "nats per byte, the others" in one["sentence"]]
    assert f"{audit.weightings['weights']['adaptive']['second']:.0%}" in warning


def test_foreign_text_with_easy_long_texts_is_not_padding(world: World) -> None:
    """Weak on all texts, but the longest fifth ends regularly: prefixes are consistent."""
    rows = world.rows(world.second)
    total = np.array([row.prompt_tokens + len(row.logprobs) for row in rows])
    longest = total > np.quantile(total, 0.8)

    def foreign(row: CompletionRow, knows_the_end: bool) -> CompletionRow:
        ending = np.float32(-0.5 if knows_the_end else -12)
        return replace(row, logprobs=np.append(6 * row.logprobs[:-1], ending).astype(np.float32))

    found = world.audit((world.second, [foreign(*one) for one in zip(rows, longest, strict=True)]))
    stats = found.references["second"]["stats"]
    assert stats["first_over_text"] > 1 and stats["last_auc_length"] > 0.95 and stats["shared_prefixes"] >= 20
    assert named(found) == []


def test_one_prompt_is_not_enough(world: World, tmp_path: Path) -> None:
    """Answers to other questions are unlikely for a sound model too: the pairs are the cause."""
    asked = questions(40)
    pairs = prepared(tmp_path / "pairs.jsonl", [{**row, "prompt": asked[0]["prompt"]} for row in asked], world.first)
    alone = World(tmp_path, world.first, world.second, pairs)
    audit = alone.audit((world.first, alone.rows(world.first)), (world.second, alone.rows(world.second)))
    assert named(audit) == []
    assert {one["reference"] for one in audit.warnings if "completions of 1 prompt with" in one["sentence"]} == {
        "first", "second"
    }  # fmt: skip


def test_a_few_pairs_are_checked_by_ids_and_counts_only(world: World) -> None:
    few = world.prepared.frame.head(1)
    audit = world.audit((world.second, shuffled_numbers(world)), pairs=few)
    assert named(audit) == []
    assert "too few" in audit.warnings[0]["sentence"]
    assert named(world.audit((world.second, bos_twice(world)), pairs=few)) == [("second", "bos")]


def test_a_base_model_with_the_plain_template_is_sound(world: World) -> None:
    """With the plain template, both ends of a completion are unlikely for a sound base model, most of all in short ones."""
    plain = Renderer.from_pretrained(str(world.second.path), template="plain")
    base = Reference(world.second.path, "base")
    base.__dict__["renderer"] = plain
    rendered = plain.render(world.texts)
    total = np.array([len(one.prompt_ids) + len(one.completion_ids) for one in rendered])
    longest = total > np.quantile(total, 0.8)

    def of_a_base_model(row: CompletionRow, ends_well: bool) -> CompletionRow:
        ends = np.array([-16 if not ends_well else -1.5], dtype=np.float32)
        return replace(row, logprobs=np.concatenate([ends * 0 - 11, row.logprobs[1:-1], ends]).astype(np.float32))

    rows = [of_a_base_model(*one) for one in zip(world.rows(world.second, rendered), longest, strict=True)]
    audit = world.audit((base, rows))
    stats = audit.references["base"]["stats"]
    assert stats["first_over_text"] > 1 and stats["last"] > 4 and stats["last"] > 3 * stats["rest"]
    assert named(audit) == []
    text = " ".join(warning["sentence"] for warning in audit.warnings)
    assert "The end-of-turn token costs" in text and "The first token of a completion costs" in text
    # The same log-probs of a model with a template indicate another template.
    own = Readers(plain, world.second.renderer)
    assert "template" in [fault for _, fault in named(world.audit((base, rows), readers={"base": own}))]


def test_an_unexpected_end_of_turn_is_only_a_warning(world: World) -> None:
    """A base model with a template, or incomplete completions: no fault by the log-probs."""
    rows = [replace(row, logprobs=np.append(row.logprobs[:-1], np.float32(-14))) for row in world.rows(world.second)]
    audit = world.audit((world.first, world.rows(world.first)), (world.second, rows))
    assert named(audit) == []
    assert any("The end-of-turn token costs 14.0 nats" in warning["sentence"] for warning in audit.warnings)
