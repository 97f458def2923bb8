"""The work shared by this project and TRL: the tiny policy, the pairs and their split, this project's recipe and TRL's trainer.

Cheap to import on purpose: a child process starts with its parent's peak memory, so the parent must stay small.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measuring import ROOT, in_own_process

SHARED_PAIRS = ROOT.parent / "shared" / "data" / "pandalm_llmbar.jsonl"
SHARED_LONG_PAIRS = ROOT.parent / "shared" / "data" / "llamafactory_dpo_en.jsonl"
SHARED_PEER = ROOT.parent / "shared" / "peers" / "trl_dpo.py"
SHIPPED_PAIRS = ROOT / "data" / "demo_train.jsonl"

# Without text after the end-of-turn token, which TRL would score, and without a date, which TRL would print as today's.
TEMPLATE = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

POLICY = "Llama of hidden size 256 and 4 layers"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """The same work for all: policy, pairs and training settings (the peer script's defaults)."""

    folder: str
    steps: int = 100
    batch: int = 4
    max_length: int = 256
    learning_rate: float = 1e-3
    beta: float = 0.1
    seed: int = 0
    order: str = "random"
    """How this project puts pairs together; TRL draws them at random."""

    @property
    def training(self) -> dict[str, Any]:
        """Settings that both share."""
        return {
            "max_steps": self.steps,
            "per_device_train_batch_size": self.batch,
            "per_device_eval_batch_size": self.batch,
            "gradient_accumulation_steps": 1,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 5,
            "logging_steps": min(10, self.steps),
            "save_strategy": "no",
            "seed": self.seed,
            "use_cpu": True,
        }

    def path(self, name: str) -> str:
        return str(Path(self.folder) / name)

    @property
    def policy(self) -> str:
        return self.path("policy")

    @property
    def pairs(self) -> str:
        return self.path("pairs.jsonl")

    @property
    def train(self) -> str:
        return self.path("train.jsonl")

    @property
    def held_out(self) -> str:
        return self.path("held_out.jsonl")


def find_pairs(asked: Sequence[str] | None, shared: Sequence[Path] = (SHARED_PAIRS,)) -> list[Path]:
    """The pairs files given, else the shared ones if available, else the one that ships."""
    if asked:
        return [Path(one) for one in asked]
    if all(one.is_file() for one in shared):
        return list(shared)
    print(f"The shared pairs are not here: those that ship ({SHIPPED_PAIRS.relative_to(ROOT)}) are used instead.")
    return [SHIPPED_PAIRS]


def find_long_pairs(asked: Sequence[str] | None, folder: str) -> list[Path]:
    """Pairs with long prompts: those given, the shared ones, or the shipped ones with a synthetic long prompt each."""
    if asked or SHARED_LONG_PAIRS.is_file():
        return [Path(one) for one in asked or [str(SHARED_LONG_PAIRS)]]
    print(
        "The shared pairs with long prompts are not here: those that ship get other questions and answers before theirs."
    )
    rows = read_rows(SHIPPED_PAIRS)
    for number, row in enumerate(rows):
        others = [rows[(number + step) % len(rows)] for step in range(1, 25)]
        talk = [other["prompt"][-1]["content"] + "\n" + other["chosen"][0]["content"] for other in others]
        last = row["prompt"][-1]
        row["prompt"] = [*row["prompt"][:-1], last | {"content": "\n\n".join([*talk, last["content"]])}]
    path = Path(folder) / "long_prompts.jsonl"
    write_rows(path, rows)
    return [path]


def named(pairs: Sequence[Path]) -> str:
    return " and ".join(path.name for path in pairs)


def pairs_with(completions: int, rows: Rows, seed: int) -> int:
    """How many pairs, in the order of the split, have this many distinct completions (or all of them)."""
    ordered, _ = split_rows(rows, len(rows), 0, seed)
    seen: set[str] = set()
    for number, row in enumerate(ordered):
        if len(seen) >= completions:
            return number
        seen |= {json.dumps([row["prompt"], row[side]]) for side in ("chosen", "rejected")}
    return len(ordered)


def has_trl() -> bool:
    if find_spec("trl") and find_spec("datasets"):
        return True
    print("trl or datasets is not installed (pip install 'mrpo[dev]'): this project alone is measured.")
    return False


def set_up(
    task: Task, pairs: Sequence[Path], *, count: int, held_out: int, vocabulary: int, model: str | None = None
) -> None:
    """Write the pairs, their split and the policy to the task's folder: a copy of `model`, else a tiny Llama."""
    rows = read_rows(*pairs)
    train, apart = split_rows(rows, count, held_out, task.seed)
    write_rows(task.pairs, rows)
    write_rows(task.train, train)
    write_rows(task.held_out, apart)
    if model:
        shutil.copytree(model, task.policy)
    else:
        in_own_process(make_policy, task.policy, task.pairs, vocabulary)


def read_rows(*paths: str | Path) -> Rows:
    rows: Rows = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            rows += [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in map(json.loads, file)]
    return rows


def split_rows(rows: Rows, count: int, held_out: int, seed: int) -> tuple[Rows, Rows]:
    """The peer script's split: shuffled, the last rows held out, training rows that share a prompt with them left out."""
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    kept_apart = rows[-held_out:] if held_out else []
    seen = {json.dumps(row["prompt"]) for row in kept_apart}
    rest = rows[: len(rows) - len(kept_apart)]
    return [row for row in rest if json.dumps(row["prompt"]) not in seen][:count], kept_apart


def write_rows(path: str | Path, rows: Rows) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf-8")


def make_policy(folder: str, pairs: str, vocabulary: int) -> None:
    """A Llama of hidden size 256 and 4 layers with random weights, and a byte-level BPE trained on the pairs' text."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(names),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    messages = (
        message for row in read_rows(pairs) for part in row.values() if isinstance(part, list) for message in part
    )
    backend.train_from_iterator((message["content"] for message in messages), trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=names[0], eos_token=names[-1])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def recipe(
    task: Task,
    cache: str,
    output_dir: str,
    *,
    references: Mapping[str, str] | None = None,
    training: Mapping[str, Any] | None = None,
    **scoring: Any,
) -> Any:
    """This project's recipe for the task: DPO against the policy's own start, or MRPO with several references.

    As in TRL, prompts have no limit of their own, and a pair whose prompt alone takes ``max_length`` is left out.
    """
    from mrpo_pipeline.recipe import parse_recipe

    held_out = {"eval": task.held_out} if Path(task.held_out).stat().st_size else {}
    return parse_recipe(
        {
            "pairs": {"train": task.train, **held_out},
            "policy": {"model": task.policy, "lora": {"r": 8, "alpha": 16, "target_modules": "all-linear"}},
            "references": {name: {"model": model} for name, model in (references or {"anchor": task.policy}).items()},
            "cache": cache,
            "limits": {"max_prompt_length": None, "max_length": task.max_length},
            "scoring": {"engine": "transformers", **scoring},
            "method": {"name": "mrpo" if references and len(references) > 1 else "dpo", "beta": task.beta},
            "training": {**task.training, "train_sampling_strategy": task.order, **(training or {})},
            "output_dir": output_dir,
        }
    )


def resident(folder: str) -> Any:
    """A reference in memory: a call returns the sums of a batch's completions, without full logits and shared prompts."""
    from transformers import AutoModelForCausalLM

    from mrpo_pipeline.models.head import Head
    from mrpo_pipeline.policy.forward import PolicyForward

    return PolicyForward(Head.of(AutoModelForCausalLM.from_pretrained(folder).eval()))


def trl_trainer(
    task: Task,
    output_dir: str,
    *,
    precompute: bool,
    evaluates: bool = True,
    kind: Any = None,
    callbacks: Sequence[Any] = (),
    training: Mapping[str, Any] | None = None,
) -> Any:
    """TRL's DPOTrainer, set up as in the peer script, for when that script is absent or its trainer is inspected.

    Args:
        evaluates: whether it gets the held-out pairs.
        kind: a subclass of ``DPOTrainer`` that measures.
        training: further settings of its ``DPOConfig``.
    """
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar
    from trl import DPOConfig, DPOTrainer

    disable_progress_bar()
    disable_progress_bars()
    held_out = read_rows(task.held_out) if evaluates else []
    return (kind or DPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(task.policy, dtype=torch.float32),
        args=DPOConfig(
            **{
                **task.training,
                "output_dir": output_dir,
                "beta": task.beta,
                "max_length": task.max_length,
                "precompute_ref_log_probs": precompute,
                "precompute_ref_batch_size": 2 * task.batch,
                "bf16": False,
                "gradient_checkpointing": False,
                "report_to": "none",
                "disable_tqdm": True,
                **(training or {}),
            }
        ),
        train_dataset=Dataset.from_list(read_rows(task.train)),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=AutoTokenizer.from_pretrained(task.policy),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=list(callbacks),
    )
