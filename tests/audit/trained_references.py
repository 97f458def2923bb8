"""Two tiny references trained to answer, pairs for them, and caches with planted faults, written by the cache's writer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.audit import Audit, Readers, audit_pairs
from mrpo_pipeline.cache import CompletionRow, ReferenceCache
from mrpo_pipeline.dataset.prepare import wanted_completions
from mrpo_pipeline.dataset.reference_logps import join_references
from mrpo_pipeline.dataset.splits import Split
from mrpo_pipeline.dataset.truncate import Prepared, prepare
from mrpo_pipeline.demo.pretraining import batches, conversations, pretrain
from mrpo_pipeline.demo.questions import KINDS, draw_prompt
from mrpo_pipeline.demo.vocabularies import VOCABULARIES
from mrpo_pipeline.engines import ScoringRequest, open_engine
from mrpo_pipeline.models.source import ModelSource, resolve
from mrpo_pipeline.pairs import read_pairs
from mrpo_pipeline.pairs.counts import Counts
from mrpo_pipeline.recipe import Limits
from mrpo_pipeline.rendering import Rendered, Renderer

Rows = list[CompletionRow]


@dataclass
class Reference:
    """A model folder, opened once."""

    path: Path
    name: str

    @cached_property
    def source(self) -> ModelSource:
        return ModelSource(model=str(self.path)).named(self.name)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer.from_pretrained(str(self.path), name=self.name)

    @cached_property
    def engine(self) -> Any:
        return open_engine("transformers", self.source)

    def score(self, rendered: Sequence[Rendered]) -> list[np.ndarray]:
        found = dict(self.engine.score([ScoringRequest(one.prompt_ids, one.completion_ids) for one in rendered]))
        return [found[at] for at in range(len(rendered))]


def taught(folder: Path, name: str, vocabulary: str, seed: int, steps: int = 140) -> Reference:
    """A small Llama trained on questions and answers for a few seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    care, mix = dict.fromkeys(KINDS, 0.8), dict.fromkeys(KINDS, 1.0)
    talk = conversations(care, mix, f"{name} {seed}")
    tokenizer = VOCABULARIES[vocabulary]([m["content"] for one in islice(talk, 800) for m in one], 800)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=256, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, dtype="float32",
        )
    )  # fmt: skip
    pretrain(model, batches(tokenizer, talk, 16, Random(seed)), steps=steps, learning_rate=5e-3, label=name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Reference(folder, name)


def questions(count: int) -> list[dict[str, Any]]:
    """Pairs that are not in the training data."""
    rng, made = Random("audit tests"), {}
    while len(made) < count:
        messages, question = draw_prompt(rng.choice(KINDS), "eval", rng)
        sides = {"chosen": question.right, "rejected": question.wrong}
        made[json.dumps(messages)] = {
            "prompt": messages,
            **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()},
        }
    return list(made.values())


def prepared(path: Path, pairs: Sequence[dict[str, Any]], policy: Reference) -> Prepared:
    """The pairs, cut by the policy's tokens."""
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    return prepare(read_pairs(str(path)), policy.renderer, Limits(max_prompt_length=128, max_length=200))


@dataclass
class World:
    """Two trained references, ``first`` and ``second``, and prepared pairs."""

    folder: Path
    first: Reference
    second: Reference
    prepared: Prepared

    def __post_init__(self) -> None:
        self.wanted = wanted_completions([self.prepared])
        self.texts = list(self.wanted.select("prompt", "completion").iter_rows())
        self._made = 0

    @classmethod
    def make(cls, folder: Path, pairs: int = 80) -> World:
        first = taught(folder / "first", "first", "byte-level-bpe", 1)
        second = taught(folder / "second", "second", "sentencepiece-bpe", 2)
        return cls(folder, first, second, prepared(folder / "pairs.jsonl", questions(pairs), first))

    def rows(self, reference: Reference, rendered: Sequence[Rendered] | None = None) -> Rows:
        """The rows that stage one would cache, optionally of another rendering."""
        rendered = reference.renderer.render(self.texts) if rendered is None else rendered
        return [
            CompletionRow(key, len(one.prompt_ids), one.completion_ids, logps, one.byte_ends, True)
            for key, one, logps in zip(self.wanted["completion_id"], rendered, reference.score(rendered), strict=True)
        ]

    def cache(self, reference: Reference, rows: Rows) -> ReferenceCache:
        self._made += 1
        cache = ReferenceCache.open(self.folder / f"cache-{self._made}", reference.name)
        cache.create_or_check(resolve(reference.source, reference.renderer.identity()), {"engine": "tests"})
        with cache.writer() as writer:
            for row in rows:
                writer.add(row)
        return cache

    def audit(
        self,
        *given: tuple[Reference, Rows],
        readers: dict[str, Readers] | None = None,
        pairs: pl.DataFrame | None = None,
    ) -> Audit:
        """The audit of these references with these rows."""
        caches = [self.cache(reference, rows) for reference, rows in given]
        own = {reference.name: Readers(reference.renderer) for reference, _ in given}
        prepared = self.prepared if pairs is None else Prepared(pairs, Counts(pairs.height, pairs.height))
        split = Split(prepared, join_references(caches, prepared))
        return audit_pairs({"train": split}, caches, readers=own | (readers or {}))


def padded(world: World, reference: Reference, *, between: bool = False, batch: int = 8) -> Rows:
    """Batches in the data's order with pads that the mask does not hide: before the prompts, or between prompts and
    completions. Between them, both completions of a prompt see the same pads."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(reference.path), dtype=torch.float32)
    rendered = reference.renderer.render(world.texts)
    logps = []
    for start in range(0, len(rendered), batch):
        part = rendered[start : start + batch]
        prompts = max(len(one.prompt_ids) for one in part)
        width = max((prompts if between else len(one.prompt_ids)) + len(one.completion_ids) for one in part)
        ids = np.zeros((len(part), width), dtype=np.int64)
        begins = []
        for at, one in enumerate(part):
            begin = prompts if between else width - len(one.completion_ids)
            prompt = 0 if between else begin - len(one.prompt_ids)
            ids[at, prompt : prompt + len(one.prompt_ids)] = one.prompt_ids
            ids[at, begin : begin + len(one.completion_ids)] = one.completion_ids
            begins.append(begin)
        with torch.inference_mode():
            every = model(input_ids=torch.from_numpy(ids)).logits.log_softmax(-1).numpy()
        for at, (one, begin) in enumerate(zip(part, begins, strict=True)):
            logps.append(every[at, np.arange(begin - 1, begin - 1 + len(one.completion_ids)), one.completion_ids])
    rows = world.rows(reference)
    return [replace(row, logprobs=numbers) for row, numbers in zip(rows, logps, strict=True)]


def changed(rows: Rows, change: Callable[[np.ndarray], np.ndarray]) -> Rows:
    """The rows with other log-probs."""
    return [replace(row, logprobs=change(row.logprobs).astype(np.float32)) for row in rows]
