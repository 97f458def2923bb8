"""Reasoning and tool calls from a file through the commands, read by three references of different families."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny_models
import yaml
from mrpo_command import mrpo
from structured_templates import HARMONY, MISTRAL_TOOLS, QWEN3_TOOLS
from tiny_tokenizers import qwen, special
from tokenizers import AddedToken

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

USER = {"role": "user", "content": "How is the weather in Zürich?"}
TOOL = {"type": "function", "function": {"name": "look", "description": "Look out.", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "call_1", "function": {"name": "look", "arguments": {"city": "Zürich", "days": 2}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "21 degrees", "tool_call_id": "call_1", "name": "look"}
THOUGHT = {"role": "assistant", "content": "It is warm.", "reasoning_content": "Let me think. " * 3}
PLAIN = {"role": "assistant", "content": "I do not know."}
COLD = {"role": "assistant", "content": "It is cold.", "reasoning_content": "A guess."}
ROWS: list[dict[str, Any]] = [
    {"prompt": [USER], "chosen": [CALLING, RESULT, PLAIN], "rejected": [PLAIN], "tools": [TOOL]},
    {"prompt": [USER], "chosen": [CALLING], "rejected": [{**CALLING, "content": "Wait."}], "tools": [TOOL]},
    {"prompt": [USER, CALLING, RESULT], "chosen": [THOUGHT], "rejected": [COLD], "tools": [TOOL]},
    {"prompt": [USER], "chosen": [THOUGHT], "rejected": [COLD]},
    {"prompt": [USER], "chosen": [THOUGHT], "rejected": [PLAIN]},  # one side alone
    {"prompt": [USER, THOUGHT, {"role": "user", "content": "And now?"}], "chosen": [COLD], "rejected": [THOUGHT]},
    {"prompt": [USER], "chosen": [{**THOUGHT, "content": "Warm. " * 200}], "rejected": [COLD]},  # cut
]
FAMILIES = {
    "base": ("llama", QWEN3_TOOLS, (), "<|im_end|>"),
    "harmony": ("qwen3", HARMONY, ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>"), "<|return|>"),
    "mistral": (
        "mistral",
        MISTRAL_TOOLS,
        *(("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),),
        "</s>",
    ),
}  # fmt: skip


def model(folder: Path, architecture: str, template: str, controls: tuple[str, ...], eos: str) -> Any:
    tokenizer = copy.deepcopy(qwen(template))
    tokenizer.add_tokens([special(token) for token in (*controls, "<s>", "</s>")], special_tokens=True)
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    tiny_models.build(architecture, folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return tokenizer


def ran(*arguments: str, cwd: Path, code: int = 0) -> str:
    done = mrpo(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done.stderr + done.stdout


def write_recipe(folder: Path, references: list[str]) -> None:
    document = {
        "pairs": {"train": "pairs.jsonl"},
        "policy": {"model": "base", "lora": {"r": 2, "alpha": 4}},
        "references": {name: {"model": name} for name in references},
        "cache": "cache",
        "limits": {"max_length": 400, "max_prompt_length": 300},
        "scoring": {"engine": "transformers"},
        "training": {"max_steps": 2, "report_to": "none"},
        "output_dir": "out",
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(document))


def test_scored_by_three_families_trained_on_verified_and_exported_as_trl_reads_them(tmp_path: Path) -> None:
    tokenizers = {name: model(tmp_path / name, *family) for name, family in FAMILIES.items()}
    rows = [row for row in ROWS if row["chosen"] != [THOUGHT] or row["rejected"] != [PLAIN]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_recipe(tmp_path, list(FAMILIES))
    # The Mistral-like template does not support reasoning: the error names it, and skipping counts the rows.
    refused = ran("score-refs", "r.yaml", cwd=tmp_path, code=2)
    assert "mistral" in refused and "reasoning" in refused
    scored = ran("score-refs", "r.yaml", "--on-bad-row", "skip", cwd=tmp_path)
    assert "Traceback" not in scored
    for name in FAMILIES:
        shards = pl.concat([pl.read_parquet(file) for file in (tmp_path / "cache" / name / "shards").glob("*.parquet")])
        assert shards.height == (4 if name == "mistral" else 12), name
        assert (shards["token_ids"].list.len() == shards["logprobs"].list.len()).all()
    ran("cache", "verify", "r.yaml", "--on-bad-row", "skip", cwd=tmp_path)

    write_recipe(tmp_path, ["base", "harmony"])
    trained = ran("train", "r.yaml", cwd=tmp_path)
    assert "Traceback" not in trained and (tmp_path / "out" / "adapter_model.safetensors").is_file()
    ran("targets", "r.yaml", "--for", "trl", "--output", "targets.parquet", cwd=tmp_path)
    frame = pl.read_parquet(tmp_path / "targets.parquet")
    ours = frame.select("prompt_ids", "chosen_ids", "rejected_ids").to_dicts()
    # TRL has no unscored tokens within a completion: rows with tool results or reasoning on one side are not exported.
    kept = [row for row in rows if RESULT not in row["chosen"]]
    assert len(ours) == len(kept)
    config = trl.DPOConfig(str(tmp_path / "trl"), max_length=None, bf16=False, use_cpu=True, report_to="none")
    told = datasets.Dataset.from_list(
        [{key: row.get(key) for key in ("prompt", "chosen", "rejected", "tools")} for row in kept]
    )
    read = trl.DPOTrainer._prepare_dataset(None, told, tokenizers["base"], config, "train")
    for row, theirs in zip(ours, read, strict=True):
        assert row["prompt_ids"] == theirs["prompt_ids"]
        for side in ("chosen_ids", "rejected_ids"):
            whole = theirs[side]
            assert row[side] == whole[: len(row[side])] and len(row[side]) in (
                len(whole),
                len(whole) - 1,
                400 - len(row["prompt_ids"]),
            )
