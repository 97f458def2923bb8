"""docs/recipes.md matches the settings, and every key is described."""

from __future__ import annotations

from pathlib import Path

from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.recipe.docs_page import keys, recipe_reference

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text(encoding="utf-8") == recipe_reference(), (
        "run: python -m mrpo_pipeline.recipe.docs_page docs/recipes.md"
    )


def test_every_key_is_described_and_on_the_page() -> None:
    page = recipe_reference()
    found = dict(keys())
    assert [key for key, field in found.items() if not field.description] == []
    assert [key for key in found if f"| `{key}` |" not in page] == []
    # Keys of each kind, so that a walk that misses a kind fails.
    assert {
        "cache", "method.trust_region.epsilon", "policy.lora.r", "references.NAME.scoring", "method.modpo.NAME.weight",
        "compare.sweep.beta", "limits.max_length", "evaluation.tasks",
    } <= found.keys()  # fmt: skip


def test_types_bounds_and_defaults_are_described_in_words() -> None:
    page = recipe_reference()
    rows = {line.split(" | ")[0].strip("| `"): line for line in page.splitlines() if line.startswith("| `")}
    assert "number, > 0 | `0.1` |" in rows["method.beta"]
    assert "`text`, `messages` | `text` |" in rows["pairs.strings"]
    assert "text | must be given |" in rows["references.NAME.model"]
    assert "`[q_proj, v_proj]`" in rows["policy.lora.target_modules"]
    assert "`true` |" in rows["training.share_prompt"] and "training.micro_batch_tokens" in rows


def test_the_descriptions_of_keys_are_not_in_a_dumped_recipe() -> None:
    assert "Rank." not in Recipe().dump()
