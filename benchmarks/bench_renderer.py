"""CPU seconds and memory of loading a model's renderer: the first process on a machine, a later one, and transformers' tokenizer alone.

    python benchmarks/bench_renderer.py MODEL [MODEL …]

MODEL is a folder with a tokenizer. Each measurement is a new process in which the libraries are imported; the first has an empty
`MRPO_HOME`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from measuring import (
    claim,
    describe_machine,
    in_own_process,
    machine,
    one_thread,
    peak_rss_mb,
    table,
    timed,
    write_results,
)


def load(model: str, home: str | None) -> dict[str, float]:
    """The renderer with mrpo's caches in ``home``; None for transformers' tokenizer alone."""
    from transformers import AutoTokenizer

    from mrpo_pipeline.rendering import Renderer

    os.environ["MRPO_HOME"] = home or ""
    resting = peak_rss_mb()
    _, took = timed(lambda: Renderer.from_pretrained(model) if home else AutoTokenizer.from_pretrained(model))
    return {"cpu_s": took["cpu_s"], "added_mb": peak_rss_mb() - resting}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    given = parser.parse_args()
    about = machine()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model in given.models:
        with tempfile.TemporaryDirectory() as home, one_thread():
            turns = {"transformers alone": None, "first": home, "later": home}
            found[Path(model).name] = {what: in_own_process(load, model, where) for what, where in turns.items()}
    body = [
        [name, what, f"{run['cpu_s']:.2f}", f"{run['added_mb']:.0f}"]
        for name, runs in found.items()
        for what, run in runs.items()
    ]
    claims = [
        claim(f"{name}: renderer in a later process, CPU seconds", runs["later"]["cpu_s"], at_most=1.0, form="{:.2f}")
        for name, runs in found.items()
    ]
    text = f"{describe_machine(about)}\n\n{table(['tokenizer', 'process', 'CPU s', 'peak MB added'], body)}"
    write_results("renderer", {"machine": about, "claims": claims, "tokenizers": found}, text)


if __name__ == "__main__":
    main()
