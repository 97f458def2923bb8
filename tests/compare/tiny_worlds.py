"""Two small worlds with a known truth, each with real models, a real cache and real training.

Every question has one right answer and one decoy, which is the rejected side. References are trained until they are sure of
an answer: the right one, the decoy, or neither more than the other.

``both_needed``: the policy's start believes every decoy. One reference knows the right answers of the first half and believes the
decoys of the second, the other the reverse. A policy kept near one reference is kept near its wrong beliefs; kept near the
harmonic mean of all, it is kept near none of the beliefs that they do not share.

``second_harms``: the start believes neither answer more than the other, so that training against it alone learns all. The
second reference is confident and mostly wrong: a policy trained against it already has the margin on the pairs that the reference
gets wrong, and does not learn them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

ITEMS = [a + b for a in ("wu", "ba", "ki", "zo", "ne", "fa") for b in ("gle", "mop", "tar", "lin")]
RELATIONS = {
    "colour": ("red", "blue", "green", "white", "black", "brown", "grey", "pink"),
    "home": ("sea", "wood", "hill", "lake", "cave", "field", "town", "moor"),
}
TEMPLATES = (
    "What is the {r} of the {i}?",
    "Name the {r} of the {i}.",
    "The {i} has which {r}?",
    "Tell me the {r} of the {i}, please.",
    "Do you know the {r} of the {i}?",
    "Of the {i}, what is the {r}?",
    "I wonder about the {r} of the {i}.",
    "Which {r} has the {i}?",
)
TRAINED_ON = 4

Fact = tuple[str, str]
# The probability that a reference's training text has the right answer to a question.
Belief = Callable[[Fact], float]


def facts(items: int) -> list[Fact]:
    """Two facts for each of this many things."""
    return [(item, relation) for item in ITEMS[:items] for relation in RELATIONS]


def answers(fact: Fact) -> tuple[str, str]:
    """The right answer and the decoy."""
    random = Random("/".join(fact))
    right, decoy = random.sample(RELATIONS[fact[1]], 2)
    return f"It is {right}.", f"It is {decoy}."


def first_half(fact: Fact) -> bool:
    return fact[1] == "colour"


def pairs(trained_on: bool, items: int) -> list[dict[str, Any]]:
    """Every question in the wordings of one split, so that held-out questions ask about known things in other words."""
    templates = TEMPLATES[:TRAINED_ON] if trained_on else TEMPLATES[TRAINED_ON:]
    rows = []
    for number, fact in enumerate(facts(items)):
        right, decoy = answers(fact)
        for place, template in enumerate(templates):
            prompt = template.format(i=fact[0], r=fact[1])
            rows.append(
                {
                    "id": f"{number}-{place}",
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": right}],
                    "rejected": [{"role": "assistant", "content": decoy}],
                }
            )
    Random(0).shuffle(rows)
    return rows


def conversations(belief: Belief, seed: str, items: int) -> Iterator[list[dict[str, str]]]:
    random = Random(seed)
    every = facts(items)
    while True:
        fact = random.choice(every)
        right, decoy = answers(fact)
        yield [
            {"role": "user", "content": random.choice(TEMPLATES).format(i=fact[0], r=fact[1])},
            {"role": "assistant", "content": right if random.random() < belief(fact) else decoy},
        ]


def mostly_wrong(fact: Fact) -> float:
    return float(Random("luck/" + "/".join(fact)).random() < 0.3)


BELIEFS: dict[str, dict[str, Belief]] = {
    "both_needed": {
        "base": lambda fact: 0.15,
        "first": lambda fact: float(first_half(fact)),
        "second": lambda fact: float(not first_half(fact)),
    },
    "second_harms": {"base": lambda fact: 0.5, "braggart": mostly_wrong},
}


def make_models(folder: Path, world: str, *, items: int = 24, steps: int = 250, more: int = 150) -> dict[str, Path]:
    """The world's models: one that has learnt the form of answers, trained further to have each model's beliefs."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from mrpo_pipeline.demo.pretraining import batches, pretrain
    from mrpo_pipeline.demo.vocabularies import byte_level_bpe

    texts = [template.format(i=i, r=r) for template in TEMPLATES for i in ITEMS for r in RELATIONS]
    texts += [text for fact in facts(items) for text in answers(fact)]
    tokenizer = byte_level_bpe(texts + ["system\n", "user\n", "assistant\n"] * 20, 400)
    tokenizer.model_max_length = 64
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    made = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        source = conversations(lambda fact: 0.5, "common", items)
        pretrain(model, batches(tokenizer, source, 48, Random(0)), steps=steps, learning_rate=3e-3, label=world)
        common = {name: value.clone() for name, value in model.state_dict().items()}
        for name, belief in BELIEFS[world].items():
            model.load_state_dict(common)
            rows = batches(tokenizer, conversations(belief, name, items), 48, Random(1))
            pretrain(model, rows, steps=more, learning_rate=2e-3, label=name)
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            made[name] = folder / name
    return made


def recipe_of(folder: Path, models: dict[str, Path], *, items: int = 24, **changes: Any) -> Any:
    """The recipe of a world's comparison; its pairs are written into the folder."""
    from mrpo_pipeline.recipe import parse_recipe

    for part, trained_on in (("train", True), ("eval", False)):
        lines = "".join(json.dumps(row) + "\n" for row in pairs(trained_on, items))
        (folder / f"{part}.jsonl").write_text(lines)
    document: dict[str, Any] = {
        "pairs": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
        "policy": {"model": str(models["base"]), "lora": {"r": 8, "alpha": 16, "target_modules": "all-linear"}},
        "references": {name: {"model": str(path)} for name, path in models.items()},
        "cache": str(folder / "cache"),
        "scoring": {"engine": "transformers"},
        "limits": {"max_length": 64},
        # The trust region would keep every reference within a tenth of the start, whose beliefs are under test.
        "method": {"weights": "uniform", "trust_region": {"kind": "off"}, "beta": 4.0},
        "training": {
            "learning_rate": 4e-3, "num_train_epochs": 6, "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1, "warmup_steps": 0.1, "save_strategy": "no", "logging_steps": 20,
        },
        "compare": {"methods": {"mrpo": {}}, "seeds": [0, 1, 2], "processes": 1},
        "output_dir": str(folder / "out"),
    }  # fmt: skip
    for key, value in changes.items():
        document[key] = {**document[key], **value} if isinstance(document.get(key), dict) else value
    return parse_recipe(document)
