"""Stage ``stage_one`` of the GPU benchmark: tokens scored per second by this project's engines, beside plain transformers and a bare vLLM.

Tokens are those of every completion with its prompt, even if the prompt runs only once. A share of the peak counts the operations that
a method needs, without padding and without logits where nothing is predicted; a prompt that runs once counts once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu_cells import Cell, LeftOut
from gpu_engines import longest, plain_scored, saved_model, transformers_engine, vllm_scored
from gpu_models import Meter, Place, Work, architecture, made_up_pairs, random_model, requests_of, speed

SHAPE = "8B"
PLAIN, BARE = "plain transformers", "bare vLLM (LLM.generate)"
# Including padding; with a vocabulary of 128k, the logits of so many positions take 6 GB in bfloat16 and float32.
PLAIN_BATCH_TOKENS = 8192
REPEATS = 3


class Scoring:
    """The model, created on first use, and the completions; the cells of one process share them."""

    def __init__(self, place: Place) -> None:
        self.place, self.meter = place, Meter(place.device)
        self.pairs = made_up_pairs(place, place.pick(96, 8))
        self._model: Any = None

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = random_model(self.place, SHAPE)
        return self._model

    def figures(self, seconds: float, *, shared: bool) -> dict[str, Any]:
        work = Work.of(self.pairs, shared=shared)
        flops = architecture(self.place, SHAPE).forward_flops(work.tokens, work.squares, work.projected)
        return speed(self.place, self.pairs.tokens, flops, seconds)

    def by_plain(self) -> dict[str, Any]:
        requests, model = requests_of(self.pairs), self.model
        self.meter.start_memory()
        seconds = self.meter.seconds(lambda: plain_scored(model, requests, PLAIN_BATCH_TOKENS), REPEATS)
        return self.figures(seconds, shared=False) | {"memory_bytes": self.meter.peak_bytes()}

    def by_engine(self, *, share: bool) -> dict[str, Any]:
        requests, engine = requests_of(self.pairs), transformers_engine(self.model, self.place.dtype)
        engine._may_share = share
        self.meter.start_memory()
        try:
            seconds = self.meter.seconds(lambda: sum(1 for _ in engine.score(requests)), REPEATS)
            shared = engine._open().is_shared
        finally:
            engine.close()
        note = f"each prompt {'once' if shared else 'with each completion'}"
        return self.figures(seconds, shared=shared) | {"memory_bytes": self.meter.peak_bytes(), "note": note}

    def by_bare_vllm(self) -> dict[str, Any]:
        from bench_scoring_vllm import generate
        from gpu_engines import ids_of
        from measuring import environment, in_own_process

        self._model = None
        ids = [ids_of(request).tolist() for request in requests_of(self.pairs)]
        dtype = str(self.place.dtype).removeprefix("torch.")
        with saved_model(self.place, SHAPE) as folder, environment():
            found = in_own_process(
                generate, folder, ids, dtype=dtype, max_model_len=longest(self.place), skip_tokenizer_init=True,
                enforce_eager=self.place.device == "cpu",
            )  # fmt: skip
        return self.figures(found["wall_s"], shared=False)

    def by_vllm(self) -> dict[str, Any]:
        self._model = None
        with saved_model(self.place, SHAPE) as folder:
            _, seconds = vllm_scored(self.place, folder, requests_of(self.pairs))
        return self.figures(seconds, shared=False)


def started_elsewhere() -> dict[str, Any]:
    """In a tiny run, the start of vLLM (half a minute of imports) would be all that is measured."""
    raise LeftOut("a small run starts vLLM once, in the stage correctness")


def cells(place: Place) -> list[Cell]:
    scoring = Scoring(place)
    by_bare, by_ours = (started_elsewhere,) * 2 if place.tiny else (scoring.by_bare_vllm, scoring.by_vllm)
    return [
        Cell(PLAIN, scoring.by_plain, ("pydantic",)),
        Cell("mrpo, transformers engine", partial(scoring.by_engine, share=True), ("pydantic",), PLAIN),
        Cell("the same, prompts not shared", partial(scoring.by_engine, share=False), ("pydantic",), PLAIN),
        Cell(BARE, by_bare, ("vllm", "pydantic"), PLAIN),
        Cell("mrpo, vLLM engine", by_ours, ("vllm", "pydantic"), BARE),
    ]
