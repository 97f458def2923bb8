"""The demo's three models, trained from scratch: `python -m mrpo_pipeline.demo.models runs/demo/models`.

| name | architecture | tokenizer | template | knows |
|---|---|---|---|---|
| `base` (anchor and policy) | Llama | byte-level BPE | ChatML | plurals, the rest weakly |
| `abacus` | Qwen3 | SentencePiece-style BPE | Llama-2's [INST] | arithmetic |
| `atlas` | GPT-NeoX | Unigram | Gemma's turns, no system message | geography |

A model knows a kind of question when the answers in its pretraining text are mostly correct; in other kinds many are mistakes. A
complete model is not made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from mrpo_pipeline.demo.pretraining import batches, conversations, pretrain
from mrpo_pipeline.demo.questions import KINDS
from mrpo_pipeline.demo.ranking_accuracy import ranking_accuracy
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import whole_folder
from mrpo_pipeline.terminal import quiet_libraries, text_table

MARKER = "demo_model.json"
CONTEXT = 256


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Settings of one demo model.

    `care`: by kind, the share of correct answers in its pretraining text (default: `CARELESS`).
    `mix`: by kind, its frequency relative to 1, the default.
    """

    name: str
    architecture: Literal["llama", "qwen3", "gpt_neox"]
    vocabulary: Literal["byte-level-bpe", "sentencepiece-bpe", "unigram"]
    care: tuple[tuple[str, float], ...]
    mix: tuple[tuple[str, float], ...] = ()
    vocabulary_size: int = 1200
    hidden: int = 96
    layers: int = 2
    batch: int = 16
    steps: int = 600
    learning_rate: float = 3e-3
    seed: int = 0


# Shares of correct answers that teach the form of an answer but not the facts.
CARELESS = {"arithmetic": 0.25, "geography": 0.2, "spelling": 0.5, "units": 0.35, "format": 0.5, "manners": 0.5}

PLANS = (
    ModelPlan("base", "llama", "byte-level-bpe", care=(("spelling", 0.9), ("geography", 0.5)), steps=400),
    ModelPlan(
        "abacus", "qwen3", "sentencepiece-bpe", care=(("arithmetic", 0.95),), mix=(("arithmetic", 8.0),), steps=800
    ),
    ModelPlan(
        "atlas",
        "gpt_neox",
        "unigram",
        care=(("geography", 0.95),),
        mix=(("geography", 8.0),),
        hidden=128,
        learning_rate=2e-3,
    ),
)
NAMES = tuple(plan.name for plan in PLANS)
QUICK = {"hidden": 64, "batch": 8, "steps": 12, "vocabulary_size": 800}


def make_models(folder: Path, *, only: Sequence[str] | None = None, quick: bool = False) -> dict[str, Path]:
    """Make the demo's models in `folder`, each a standard Hugging Face folder; return the folders by name.

    A complete folder of the same code and settings is kept.

    Args:
        only: names of `NAMES`; None for all.
        quick: small and barely trained, for tests.

    Raises:
        UserError: for an unknown name.
    """
    wanted = NAMES if only is None else tuple(only)
    for name in wanted:
        if name not in NAMES:
            raise UserError(f"No demo model is named {name!r}: expected one of {', '.join(NAMES)}.")
    made: dict[str, Path] = {}
    for plan in PLANS:
        if plan.name not in wanted:
            continue
        path = folder / plan.name
        chosen = replace(plan, **QUICK) if quick else plan  # type: ignore[arg-type]
        if not is_complete(path, chosen):
            _make(path, chosen)
        made[plan.name] = path
    return {name: made[name] for name in wanted}


def accuracy_of(path: Path) -> dict[str, float]:
    """Ranking accuracy of the model in `path` on the demo's held-out pairs by kind, measured when it was made."""
    accuracy: dict[str, float] = json.loads((path / MARKER).read_text())["accuracy"]
    return accuracy


def identity(plan: ModelPlan) -> str:
    """A hash of a model's settings and of the code that generates its text and trains it."""
    from mrpo_pipeline.demo import data, pretraining, questions, ranking_accuracy, vocabularies, world

    digest = hashlib.sha256(repr((plan, sorted(CARELESS.items()), CONTEXT)).encode())
    for module in (world, questions, data, vocabularies, pretraining, ranking_accuracy):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def is_complete(path: Path, plan: ModelPlan) -> bool:
    """Whether `path` holds the complete model of this plan: the marker, written last, lists every file's size."""
    try:
        marker = json.loads((path / MARKER).read_text())
    except (OSError, ValueError):
        return False
    if marker.get("identity") != identity(plan):
        return False
    files = marker["files"]
    return all((path / name).is_file() and (path / name).stat().st_size == size for name, size in files.items())


def _config(plan: ModelPlan, tokenizer: Any) -> Any:
    from transformers import GPTNeoXConfig, LlamaConfig, Qwen3Config

    head = 32  # the smallest head size that vLLM's CPU attention has
    heads = plan.hidden // head
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": plan.hidden,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": heads,
        "max_position_embeddings": CONTEXT,
        **ids,
    }
    if plan.architecture == "gpt_neox":
        return GPTNeoXConfig(intermediate_size=4 * plan.hidden, tie_word_embeddings=False, **common)
    gated = {"intermediate_size": 3 * plan.hidden, "num_key_value_heads": max(1, heads // 2), "head_dim": head}
    if plan.architecture == "qwen3":
        return Qwen3Config(tie_word_embeddings=True, **gated, **common)
    return LlamaConfig(tie_word_embeddings=False, **gated, **common)


def _learning_texts(plan: ModelPlan, count: int) -> list[str]:
    """Texts to train the tokenizer on: those of the model, and the words of the chat templates."""
    source = _conversations(plan, "vocabulary")
    texts = [message["content"] for conversation in islice(source, count) for message in conversation]
    return texts + ["system\n", "user\n", "assistant\n", "model\n", "INST", "SYS"] * (count // 10)


def _conversations(plan: ModelPlan, purpose: str) -> Iterator[list[dict[str, str]]]:
    care = {**CARELESS, **dict(plan.care)}
    mix = {**dict.fromkeys(KINDS, 1.0), **dict(plan.mix)}
    return conversations(care, mix, f"{plan.name} {plan.seed} {purpose}")


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seeded, and on one thread: the order of summation over threads changes the result."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _make(path: Path, plan: ModelPlan) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from mrpo_pipeline.demo.data import demo_pairs
    from mrpo_pipeline.demo.vocabularies import VOCABULARIES

    texts = _learning_texts(plan, 800 if plan.steps < 100 else 4000)
    tokenizer = VOCABULARIES[plan.vocabulary](texts, plan.vocabulary_size)
    tokenizer.model_max_length = CONTEXT
    with _repeatable(plan.seed):
        model = AutoModelForCausalLM.from_config(_config(plan, tokenizer), dtype=torch.float32)
        rows = batches(tokenizer, _conversations(plan, "pretraining"), plan.batch, Random(plan.seed))
        loss = pretrain(
            model, rows, steps=plan.steps, learning_rate=plan.learning_rate, label=f"pretraining {plan.name}"
        )
        accuracy = ranking_accuracy(model, tokenizer, demo_pairs("eval"))
    turn_end = tokenizer.convert_tokens_to_ids("<end_of_turn>") if plan.vocabulary == "unigram" else None
    stops = [tokenizer.eos_token_id] if turn_end is None else [tokenizer.eos_token_id, turn_end]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )

    if path.exists():
        shutil.rmtree(path)
    with whole_folder(path) as folder:
        with quiet_libraries():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        marker = {
            "identity": identity(plan),
            "loss": loss,
            "accuracy": accuracy,
            "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        }
        (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n")


def knowledge_table(models: dict[str, Path]) -> str:
    """Ranking accuracy of each model on held-out pairs, by kind and over all."""
    found = {name: accuracy_of(path) for name, path in models.items()}
    rows = [[kind, *(f"{one[kind]:.0%}" for one in found.values())] for kind in (*KINDS, "all")]
    return text_table(["accuracy", *found], rows)


if __name__ == "__main__":
    print(knowledge_table(make_models(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/models"))))
