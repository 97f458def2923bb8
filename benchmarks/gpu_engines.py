"""Stage one as the GPU benchmark runs it: this project's engines over a model in memory or in a folder, and plain transformers."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gpu_cells import LeftOut, release
from gpu_models import Place, architecture, random_model
from torch import Tensor


def transformers_engine(model: Any, dtype: torch.dtype) -> Any:
    """This project's engine over a model that is already in memory, so that no checkpoint of random weights has to be written."""
    from mrpo_pipeline.engines.transformers import TransformersEngine
    from mrpo_pipeline.models import loading
    from mrpo_pipeline.models.source import ModelSource

    load, name = loading.load_model, str(dtype).removeprefix("torch.")
    loading.load_model = lambda *_, **__: (model, name)
    try:
        device = str(next(model.parameters()).device)
        return TransformersEngine(ModelSource(model="in memory").named("base"), {"device": device})
    finally:
        loading.load_model = load


def in_order(found: Iterator[tuple[int, Any]]) -> list[Tensor]:
    """An engine's log-probs in the order of the requests."""
    by_index = dict(found)
    return [torch.from_numpy(by_index[index]).double() for index in range(len(by_index))]


def scored(model: Any, dtype: torch.dtype, requests: Sequence[Any]) -> list[Tensor]:
    """Log-probs of each request's completion from the transformers engine, moved to the CPU."""
    engine = transformers_engine(model, dtype)
    try:
        return in_order(engine.score(requests))
    finally:
        engine.close()


@torch.inference_mode()
def plain_scored(model: Any, requests: Sequence[Any], max_batch_tokens: int) -> list[Tensor]:
    """The same with plain transformers: rows of similar length padded on the right, a mask, logits of every position."""
    from mrpo_pipeline.engines.batching import pack

    device = next(model.parameters()).device
    found: dict[int, Tensor] = {}
    for batch in pack(requests, max_batch_tokens):
        rows = [torch.from_numpy(ids_of(requests[index])) for index in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device, torch.long)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1].float()
        logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1).cpu()
        for row, index in enumerate(batch):
            start = len(requests[index].prompt_ids) - 1
            found[index] = logps[row, start : start + len(requests[index].completion_ids)].double()
        del logits
    return [found[index] for index in range(len(requests))]


def ids_of(request: Any) -> Any:
    import numpy as np

    return np.concatenate([request.prompt_ids, request.completion_ids])


@contextmanager
def saved_model(place: Place, shape: str) -> Iterator[str]:
    """A temporary folder with the random model of this shape.

    Raises:
        LeftOut: if the disk has no room for it.
    """
    needed, free = 2.2 * architecture(place, shape).parameters, shutil.disk_usage(place.scratch).free
    if free < needed:
        raise LeftOut(
            f"the checkpoint takes {needed / 1e9:.0f} GB, and {place.scratch} has {free / 1e9:.0f} GB free (set TMPDIR)"
        )
    with tempfile.TemporaryDirectory(dir=place.scratch, prefix=f"{shape}-") as folder:
        model = random_model(place, shape)
        model.save_pretrained(folder)
        del model
        release()
        yield folder


def vllm_scored(place: Place, folder: str, requests: Sequence[Any]) -> tuple[list[Tensor], float]:
    """Log-probs from this project's vLLM engine, and the seconds of a second pass, without start and warm-up."""
    from mrpo_pipeline.engines import open_engine
    from mrpo_pipeline.models.source import ModelSource

    dtype = str(place.dtype).removeprefix("torch.")
    engine = open_engine(
        "vllm", ModelSource(model=folder, dtype=dtype).named("base"), {"max_model_len": longest(place)}
    )
    try:
        found = in_order(engine.score(requests))
        began = time.perf_counter()
        for _ in engine.score(requests):
            pass
        return found, time.perf_counter() - began
    finally:
        engine.close()


def longest(place: Place) -> int:
    return place.max_length + 8
