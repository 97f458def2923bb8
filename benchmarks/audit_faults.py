"""Faults for `mrpo audit` to find, each made as it happens in practice: the model really runs on the wrong input.

Only rounding, permuting and copying change the numbers directly, since there that is the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.cache import CompletionRow
from mrpo_pipeline.demo.vocabularies import CHATML_TEMPLATE, INST_TEMPLATE, TURN_TEMPLATE
from mrpo_pipeline.engines import ScoringRequest, open_engine
from mrpo_pipeline.engines.base import Engine
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.rendering import Rendered, Renderer

TEMPLATES = {"chatml": CHATML_TEMPLATE, "inst": INST_TEMPLATE, "turns": TURN_TEMPLATE}
BATCH = 8  # completions per batch with the faulty padding


@dataclass
class Model:
    """A tiny reference, opened once and scored many times."""

    path: Path
    dtype: str = "float32"

    @cached_property
    def source(self) -> ModelSource:
        return ModelSource(model=str(self.path), dtype=self.dtype).named(self.path.name)

    @cached_property
    def engine(self) -> Engine:
        return open_engine("transformers", self.source)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer.from_pretrained(str(self.path), name=self.path.name)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.path))

    @cached_property
    def network(self) -> Any:
        import torch

        from mrpo_pipeline.models.loading import load_model

        return load_model(self.source, device=torch.device("cpu"))[0]

    @property
    def bos(self) -> int | None:
        """The BOS id of its prompts, if it has one."""
        prepended = self.renderer.render([('"x"', "y")])[0].prompt_ids[0]
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None and bos == prepended else None

    def score(self, requests: Sequence[ScoringRequest]) -> list[np.ndarray]:
        found = dict(self.engine.score(requests))
        return [found[index] for index in range(len(requests))]


def texts(wanted: pl.DataFrame) -> list[tuple[str, str]]:
    return list(wanted.select("prompt", "completion").iter_rows())


def rows(wanted: pl.DataFrame, rendered: Sequence[Rendered], logps: Sequence[np.ndarray]) -> list[CompletionRow]:
    """The rows that stage one would cache."""
    return [
        CompletionRow(identifier, len(one.prompt_ids), one.completion_ids, numbers, one.byte_ends, True)
        for identifier, one, numbers in zip(wanted["completion_id"], rendered, logps, strict=True)
    ]


def sound(model: Model, wanted: pl.DataFrame) -> list[CompletionRow]:
    rendered = model.renderer.render(texts(wanted))
    return rows(wanted, rendered, model.score(_requests(rendered)))


def _requests(rendered: Sequence[Rendered]) -> list[ScoringRequest]:
    return [ScoringRequest(one.prompt_ids, one.completion_ids) for one in rendered]


# Faults. Each takes the model, the requested completions and a random generator; ``told``: whether the rows' own counts show the fault.


def padding(model: Model, wanted: pl.DataFrame, kind: str) -> list[CompletionRow]:
    """Batches in the data's order, padded on the wrong side.

    ``left``: pads before the prompt, and no mask hides them. ``between``: prompts padded on the right, completions put after
    the pads. ``slice``: padded on the right, but logits taken from the end as if padded on the left.
    """
    import torch

    rendered = model.renderer.render(texts(wanted))
    pad = model.tokenizer.pad_token_id
    pad = 0 if pad is None else pad
    logps: list[np.ndarray] = []
    for start in range(0, len(rendered), BATCH):
        batch = rendered[start : start + BATCH]
        widest = max(len(one.prompt_ids) for one in batch)
        longest = max(len(one.prompt_ids) + len(one.completion_ids) for one in batch)
        width = widest + max(len(one.completion_ids) for one in batch) if kind == "between" else longest
        ids = np.full((len(batch), width), pad, dtype=np.int64)
        begins = []
        for at, one in enumerate(batch):
            prompt, count = len(one.prompt_ids), len(one.completion_ids)
            shift = {"left": width - prompt - count, "between": 0, "slice": 0}[kind]
            ids[at, shift : shift + prompt] = one.prompt_ids
            begin = widest if kind == "between" else shift + prompt
            ids[at, begin : begin + count] = one.completion_ids
            begins.append(width - count if kind == "slice" else begin)
        with torch.inference_mode():
            every = model.network(input_ids=torch.from_numpy(ids)).logits.float().log_softmax(-1).numpy()
        for at, (one, begin) in enumerate(zip(batch, begins, strict=True)):
            places = np.arange(begin - 1, begin - 1 + len(one.completion_ids))
            logps.append(every[at, places, one.completion_ids].astype(np.float32))
    return rows(wanted, rendered, logps)


def other_template(model: Model, wanted: pl.DataFrame, template: Renderer, *, told: bool) -> list[CompletionRow]:
    """Prompts and completions rendered by another model's template."""
    rendered = template.render(texts(wanted))
    found = rows(wanted, rendered, model.score(_requests(rendered)))
    return found if told else _with_counts(found, model.renderer.render(texts(wanted)))


def other_tokenizer(model: Model, wanted: pl.DataFrame, other: Renderer) -> list[CompletionRow]:
    """The ids of another model's tokenizer and template; ids beyond the vocabulary wrap around."""
    size = int(model.network.get_input_embeddings().weight.shape[0])
    rendered = other.render(texts(wanted))
    fed = [replace(one, prompt_ids=one.prompt_ids % size, completion_ids=one.completion_ids % size) for one in rendered]
    return rows(wanted, rendered, model.score(_requests(fed)))


def doubled_bos(model: Model, wanted: pl.DataFrame, *, told: bool) -> list[CompletionRow]:
    rendered = model.renderer.render(texts(wanted))
    if model.bos is None:
        raise ValueError(f"{model.path} has no BOS to double")
    bos = np.array([model.bos], dtype=np.int32)
    doubled = [replace(one, prompt_ids=np.concatenate([bos, one.prompt_ids])) for one in rendered]
    return rows(wanted, doubled if told else rendered, model.score(_requests(doubled)))


def shuffled(found: list[CompletionRow], rng: np.random.Generator, kind: str) -> list[CompletionRow]:
    """``rows``: complete rows have other completions' ids. ``numbers``: only the log-probs come from other texts."""
    order = rng.permutation(len(found))
    if kind == "rows":
        return [replace(found[other], completion_id=row.completion_id) for row, other in zip(found, order, strict=True)]
    moved = []
    for row, other in zip(found, order, strict=True):
        taken = found[other].logprobs
        moved.append(replace(row, logprobs=np.resize(taken, len(row.logprobs))))
    return moved


def shuffled_alike(found: list[CompletionRow], rng: np.random.Generator) -> list[CompletionRow]:
    """The log-probs of another text with as many tokens, if there is one: only the numbers show it."""
    groups: dict[int, list[int]] = {}
    for at, row in enumerate(found):
        groups.setdefault(len(row.logprobs), []).append(at)
    taken = list(range(len(found)))
    for members in groups.values():
        for at, other in zip(members, rng.permutation(members), strict=True):
            taken[at] = int(other)
    return [replace(row, logprobs=found[other].logprobs) for row, other in zip(found, taken, strict=True)]


def rounded(found: list[CompletionRow], kind: str) -> list[CompletionRow]:
    """``e4m3``, ``e5m2``: rounded to that format. ``scaled``: to e4m3 after scaling to its range, and back. ``even``: to 1/16."""
    import torch

    top = max(float(np.abs(row.logprobs).max()) for row in found)

    def steps(values: np.ndarray) -> np.ndarray:
        if kind == "even":
            return (np.round(values * 16) / 16).astype(np.float32)
        scale = np.float32(448 / top) if kind == "scaled" else np.float32(1)
        kind_of = torch.float8_e5m2 if kind == "e5m2" else torch.float8_e4m3fn
        result: np.ndarray = (torch.from_numpy(values * scale).to(kind_of).float() / float(scale)).numpy()
        return result

    return [replace(row, logprobs=steps(row.logprobs)) for row in found]


def copied(other: list[CompletionRow]) -> list[CompletionRow]:
    """Another reference's rows, bit for bit."""
    return [replace(row) for row in other]


def _with_counts(found: list[CompletionRow], rendered: Sequence[Rendered]) -> list[CompletionRow]:
    """The rows with the correct rendering's count of prompt tokens; the ids that were fed if their number differs."""
    told = []
    for row, one in zip(found, rendered, strict=True):
        same = len(row.token_ids) == len(one.completion_ids)
        ids, ends = (one.completion_ids, one.byte_ends) if same else (row.token_ids, row.byte_ends)
        told.append(replace(row, prompt_tokens=len(one.prompt_ids), token_ids=ids, byte_ends=ends))
    return told


def template_file(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jinja"
    path.write_text(TEMPLATES[name], encoding="utf-8")
    return path


Fault = Callable[[], list[CompletionRow]]
