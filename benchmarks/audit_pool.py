"""Tiny references that model text, for `bench_audit`: architectures × tokenizers × sizes × seeds, each trained for seconds.

Two worlds: the demo's generated questions, and real pairs where ``--pairs`` names some.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from mrpo_pipeline.demo.pretraining import batches, conversations, pretrain
from mrpo_pipeline.demo.questions import KINDS, draw_prompt
from mrpo_pipeline.demo.vocabularies import VOCABULARIES

CONTEXT = 768
REAL_BYTES = 900  # longer conversations of real pairs are left out: the models are tiny

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """One model. ``other``: it is trained on other text than the pairs'; ``parent``: the model that it is trained from."""

    name: str
    architecture: str
    vocabulary: str
    hidden: int
    layers: int
    size: int
    steps: int
    seed: int
    rate: float = 3e-3
    other: bool = False
    parent: str | None = None
    rounded: bool = False


def plans(seed: int) -> list[Plan]:
    """Nine models of one seed, which also varies sizes and training."""
    rng = Random(f"pool {seed}")
    shapes = [(a, v) for a in ("llama", "qwen3", "gpt_neox", "gpt2") for v in VOCABULARIES]
    rng.shuffle(shapes)
    # Two of each tokenizer: faults need one reference with another kind of tokenizer, and one with the same.
    chosen = [shape for vocabulary in VOCABULARIES for shape in [s for s in shapes if s[1] == vocabulary][:2]]
    made = [
        Plan(
            f"m{at}", architecture, vocabulary, rng.choice((64, 96, 128)), rng.choice((2, 3)), rng.choice((700, 1000, 1400)),
            rng.choice((220, 300, 380)), 100 * seed + at,
        )
        for at, (architecture, vocabulary) in enumerate(chosen)
    ]  # fmt: skip
    tuned = rng.choice(made)
    return [
        *made,
        Plan("barely", "llama", rng.choice(list(VOCABULARIES)), 64, 2, 1000, 15, 100 * seed + 50),
        Plan("large", "llama", rng.choice(list(VOCABULARIES)), 192, 3, 1200, 420, 100 * seed + 51, rate=2e-3),
        Plan("other", "qwen3", rng.choice(list(VOCABULARIES)), 64, 2, 900, 250, 100 * seed + 52, other=True),
        replace(tuned, name="tuned", parent=tuned.name, steps=80, rate=1e-3, seed=100 * seed + 53),
        replace(tuned, name="rounded", parent=tuned.name, steps=0, rounded=True),
    ]


def make_pool(folder: Path, seed: int, real: Sequence[Row] = ()) -> tuple[dict[str, Path], float]:
    """The models of one seed by name, made if missing; and the seconds that this took."""
    began = time.process_time()
    made: dict[str, Path] = {}
    for plan in plans(seed):
        path = folder / f"{'real' if real else 'demo'}-{seed}" / plan.name
        if not (path / "done").is_file():
            _make(path, plan, real, made.get(plan.parent or ""))
        made[plan.name] = path
    return made, time.process_time() - began


def _conversations(plan: Plan, real: Sequence[Row], purpose: str) -> Iterator[list[dict[str, str]]]:
    rng = Random(f"{plan.name} {plan.seed} {purpose}")
    if real and not plan.other:
        while True:
            row = rng.choice(real)
            yield [*row["prompt"], rng.choice((row["chosen"], row["rejected"]))[0]]
    topic = rng.choice(KINDS)
    care = {kind: 0.95 if rng.random() < 0.6 else 0.5 for kind in KINDS}
    # Text other than the pairs': in the demo's world a single topic, in the real one all of the demo's text.
    alone = plan.other and not real
    mix = {kind: 1.0 if kind == topic or not alone else 1e-9 for kind in KINDS}
    yield from conversations(care, mix, f"{plan.name} {plan.seed} {purpose}")


def _make(path: Path, plan: Plan, real: Sequence[Row], parent: Path | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(plan.seed)
    if parent is None:
        texts = [m["content"] for one in islice(_conversations(plan, real, "words"), 2500) for m in one]
        texts += ["system\n", "user\n", "assistant\n", "model\n", "INST", "SYS"] * 100
        tokenizer = VOCABULARIES[plan.vocabulary](texts, plan.size)
        tokenizer.model_max_length = CONTEXT
        model = AutoModelForCausalLM.from_config(_config(plan, tokenizer), dtype=torch.float32)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(parent))
        model = AutoModelForCausalLM.from_pretrained(str(parent), dtype=torch.float32)
    if plan.steps:
        source = (one for one in _conversations(plan, real, "text") if _short(one))
        rows = batches(tokenizer, source, 16, Random(plan.seed))
        pretrain(model, rows, steps=plan.steps, learning_rate=plan.rate, label=f"training {plan.name}")
    if plan.rounded:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:  # 8 bits, one scale per row
                    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-9) / 127
                    weight.copy_((weight / scale).round() * scale)
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "done").write_text(json.dumps(repr(plan)))


def _short(conversation: list[dict[str, str]]) -> bool:
    return sum(len(message["content"].encode()) for message in conversation) < REAL_BYTES // 2


def _config(plan: Plan, tokenizer: Any) -> Any:
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen3Config

    heads = plan.hidden // 32
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": plan.hidden,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": heads,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if plan.architecture == "gpt2":
        return GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=False, **common)
    if plan.architecture == "gpt_neox":
        return GPTNeoXConfig(intermediate_size=4 * plan.hidden, tie_word_embeddings=False, **common)
    gated = {"intermediate_size": 3 * plan.hidden, "num_key_value_heads": heads, "head_dim": 32}
    if plan.architecture == "qwen3":
        return Qwen3Config(tie_word_embeddings=True, **gated, **common)
    return LlamaConfig(tie_word_embeddings=False, **gated, **common)


def read_real(paths: Sequence[Path]) -> list[Row]:
    """Real pairs short enough for the small context of these models."""
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [[*row["prompt"], row["chosen"][0], row["rejected"][0]] for row in rows]
    return [
        row for row, text in zip(rows, texts, strict=True) if sum(len(m["content"].encode()) for m in text) < REAL_BYTES
    ]


def halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to train the models on, and rows for trials, without common prompts."""
    first: list[Row] = []
    second: list[Row] = []
    for row in rows:
        (first if Random(json.dumps(row["prompt"])).random() < 0.5 else second).append(row)
    return first, second


def draw_pairs(count: int, seed: int, real: Sequence[Row] = ()) -> list[Row]:
    """Pairs for one trial on which no model was trained."""
    rng = Random(f"pairs {seed}")
    if real:
        return rng.sample(list(real), min(count, len(real)))
    drawn: dict[str, Row] = {}
    while len(drawn) < count:
        messages, question = draw_prompt(rng.choice(KINDS), "eval", rng)
        sides = {"chosen": question.right, "rejected": question.wrong}
        drawn[json.dumps(messages)] = {
            "prompt": messages,
            **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()},
        }
    return list(drawn.values())
