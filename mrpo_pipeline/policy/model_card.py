"""The model card of a trained adapter: what it was made of and how it did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import mrpo_pipeline

_PAPER = "[arXiv 2405.16388](https://arxiv.org/abs/2405.16388)"


def model_card(card: Mapping[str, Any], *, base_model: str, metrics: Mapping[str, float]) -> str:
    """The text of ``README.md``, with the YAML header that the hub reads.

    Args:
        card: any of ``title`` (str), ``method`` (str: one line that says what was trained against), ``recipe`` (YAML
            text), ``references`` (a mapping for each, ``name`` and ``model`` at least), ``start`` (a sentence on the anchor
            and the policy's start), ``data`` (counts by what they count), ``notes`` (sentences).
        base_model: a hub name or folder. metrics: what training and evaluation gave.
    """
    header = {
        "library_name": "peft",
        "base_model": base_model,
        "pipeline_tag": "text-generation",
        "tags": ["mrpo", "preference-optimization", "dpo", "lora"],
    }
    # JSON is YAML, and quotes a folder's name with a colon in it.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()), "---", ""]
    lines += [f"# {card.get('title') or 'A policy trained on preferences'}", ""]
    lines += [
        f"A LoRA adapter for `{base_model}`, trained on preference pairs by `mrpo` {mrpo_pipeline.__version__} against "
        f"cached log-probs of its references (Multi-Reference Preference Optimization, {_PAPER}).",
        "",
    ]
    if card.get("method"):
        lines += [str(card["method"]), ""]
    lines += ["## Use", "", "```python", *_usage(base_model), "```", ""]
    references: Sequence[Mapping[str, Any]] = card.get("references") or []
    if references:
        lines += ["## References", "", str(card.get("start") or "The first is the anchor."), ""]
        columns = list(dict.fromkeys(key for reference in references for key in reference))
        lines += _table(columns, [[reference.get(column) for column in columns] for reference in references])
    if card.get("data"):
        lines += ["## Data", "", *_table(["what", "count"], [[name, count] for name, count in card["data"].items()])]
    if metrics:
        lines += ["## Metrics", "", *_table(["metric", "value"], [[name, metrics[name]] for name in sorted(metrics)])]
    if card.get("notes"):
        lines += ["## Notes", "", *(f"- {note}" for note in card["notes"]), ""]
    if card.get("recipe"):
        lines += ["## Recipe", "", "```yaml", str(card["recipe"]).rstrip("\n"), "```", ""]
    return "\n".join(lines)


def _usage(base_model: str) -> list[str]:
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base_model!r})",
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    def cell(value: Any) -> str:
        if value is None:
            return ""
        text = f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(cell(value) for value in row) + " |" for row in rows),
        "",
    ]
