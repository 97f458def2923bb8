"""Two tasks of lm-evaluation-harness in local files: multiple choice, and a generated answer. No network."""

from __future__ import annotations

import json
from pathlib import Path

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""

GENERATED = """
task: tiny_generated
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
metadata: {{version: 2.0}}
"""


def write_tasks(folder: Path, documents: int) -> Path:
    """Write both tasks' YAML and documents; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "questions.jsonl"
    words = ["stone", "water", "wheel", "river", "table", "paper", "green"]
    rows = [
        {
            "question": f"What is {words[i % 7]} and {words[(3 * i + 1) % 7]}?",
            "choices": [f"{words[(i + j) % 7]} {words[(i * j + i + 2) % 7]}" for j in range(3)],
            "answer": (i * i + i // 2) % 3,
        }
        for i in range(documents)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("tiny_choice", CHOICE), ("tiny_generated", GENERATED)):
        (folder / f"{name}.yaml").write_text(text.format(data=data, cache=folder / "read"))
    return folder
