"""Progress lines of training, the same on a terminal and in a pipe."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from mrpo_pipeline.terminal import PLAIN_INTERVAL, progress_line

_SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "accuracy/policy")


class PlainProgress(TrainerCallback):  # type: ignore[misc]
    """A line about every half minute, one for every evaluation, and one at the end."""

    def __init__(self) -> None:
        self.started = self.last_line = time.monotonic()
        self.first_step = 0
        self.latest: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.last_line = time.monotonic()
        self.first_step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self.last_line >= PLAIN_INTERVAL:
            self._report(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.latest = logs

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        shown = {name: metrics[f"eval_{name}"] for name in _SHOWN if metrics and f"eval_{name}" in metrics}
        self._print(state, f"held-out pairs after step {state.global_step:,}: {_as_text(shown)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._report(state)

    def _report(self, state: Any) -> None:
        self.last_line = time.monotonic()
        done = state.global_step - self.first_step
        rate = done / max(self.last_line - self.started, 1e-9)
        left = f", {(state.max_steps - state.global_step) / rate:,.0f} s left" if rate else ""
        shown = {name: self.latest[name] for name in _SHOWN if name in self.latest}
        metrics = f"; {_as_text(shown)}" if shown else ""
        self._print(
            state, f"training: {state.global_step:,} of {state.max_steps:,} steps, {rate:,.2f}/s{left}{metrics}"
        )

    @staticmethod
    def _print(state: Any, text: str) -> None:
        if state.is_world_process_zero:
            progress_line(text)


def _as_text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
