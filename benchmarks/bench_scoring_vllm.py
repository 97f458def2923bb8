"""Stage one with the vLLM engine beside a bare vLLM on the same token ids: wall seconds.

    python benchmarks/bench_scoring_vllm.py [--pairs FILE …] [--completions 2000] [--repeats 5]

The same tiny model in float32 for both; the runs take turns, each in its own process. Scoring is everything that
`mrpo score-refs` does after its engine has started: rendering, scoring, writing shards. The bare vLLM is one call of
`LLM.generate` that requests prompt log-probs and ignores the answer. Imports and start-up are reported separately.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring
import side_by_side
from measuring import in_own_process
from side_by_side import Task

OURS, BARE, BARE_TUNED = "mrpo score-refs, vLLM engine", "LLM.generate", "LLM.generate, this project's settings"
FIGURES = ("wall_s", "startup_s", "prepare_s", "completions", "tokens")

LARGE_BLOCKS_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}

NOTES = """\
In brackets: this project's as a share of it. “Scoring” goes from the started engine to the last shard on disk here, and is
the one call of `generate` there. “This project's settings” are its sizes, one process for engine and worker, and a malloc
that keeps large blocks; without them vLLM is called as its documentation shows. “Start” is the import of vLLM and the loading
of the model; “before” is, for this project, reading the pairs, the policy's cuts and a look into the cache."""


def ids_of(task: Task) -> list[list[int]]:
    """The distinct completions of the pairs as stage one scores them, prompt and completion in one list."""
    from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
    from mrpo_pipeline.rendering import Renderer, tokens_to_score

    recipe = side_by_side.recipe(task, task.path("unused"), task.path("unused"))
    wanted = wanted_completions(list(prepare_splits(recipe).values()))
    rendered = Renderer.of(recipe.sources()[0]).render(list(wanted.select("prompt", "completion").iter_rows()))
    return [
        [*one.prompt_ids.tolist(), *one.completion_ids[: tokens_to_score(one.byte_ends, cut)].tolist()]
        for one, cut in zip(rendered, wanted["cut"], strict=True)
    ]


def run_ours(task: Task, folder: str) -> dict[str, float]:
    """Stage one, as the command runs it."""
    import transformers.models.llama.modeling_llama  # noqa: F401 - imports are no part of the time

    from mrpo_pipeline.scoring import score_references

    began = time.monotonic()
    (report,) = score_references(side_by_side.recipe(task, folder, folder, engine="vllm"))
    whole = time.monotonic() - began
    return {
        "wall_s": report.seconds,
        "startup_s": report.startup_seconds,
        "prepare_s": whole - report.seconds - report.startup_seconds,
        "completions": report.scored,
        "tokens": report.tokens,
    }


def run_bare(task: Task, folder: str, *, tuned: bool = False) -> dict[str, float]:
    """vLLM called directly on the same ids: prompt log-probs of everything."""
    sizes: dict[str, Any] = {"enforce_eager": True}
    if tuned:
        from mrpo_pipeline.engines.vllm.sizes import MOST_BATCHED_TOKENS

        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        sizes["max_num_batched_tokens"] = MOST_BATCHED_TOKENS["cpu"]
    return generate(task.policy, ids_of(task), **sizes)


def generate(
    model: str, ids: list[list[int]], *, dtype: str = "float32", max_model_len: int = 2048, **more: Any
) -> dict[str, float]:
    """Prompt log-probs of these ids by one call of ``LLM.generate``.

    Args:
        more: further arguments of ``LLM``.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    began = time.monotonic()
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=model,
        dtype=dtype,
        max_model_len=max_model_len,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **more,
    )
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    engine.generate([{"prompt_token_ids": ids[0]}], asked, use_tqdm=False)  # warm-up: the first call initializes vLLM
    started = time.monotonic() - began
    began = time.monotonic()
    engine.generate([{"prompt_token_ids": one} for one in ids], asked, use_tqdm=False)
    wall = time.monotonic() - began
    # Its processes are children of this one, which would wait for them on exit.
    engine.llm_engine.engine_core.shutdown()
    return {"wall_s": wall, "startup_s": started, "completions": len(ids), "tokens": sum(map(len, ids))}


def run_tuned(task: Task, folder: str) -> dict[str, float]:
    return run_bare(task, folder, tuned=True)


def report(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    def cell(name: str, figure: str, digits: int) -> str:
        found = figures[name].get(figure)
        if found is None:
            return "–"
        share = figures[OURS]["wall_s"]["median"] / found["median"] if name != OURS and figure == "wall_s" else None
        return f"{found['median']:,.{digits}f}" + (f" ({share:.2f})" if share is not None else "")

    header = ["median", "scoring, s", "start, s", "before, s", "completions", "tokens"]
    body = [[name, *(cell(name, figure, 2 if figure.endswith("_s") else 0) for figure in FIGURES)] for name in figures]
    return measuring.table(header, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--completions", type=int, default=2100, help="distinct completions to take pairs for")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--tuned", action="store_true", help="also a bare vLLM with this project's settings")
    args = parser.parse_args()
    from mrpo_pipeline.engines import engine_available

    reason = engine_available("vllm")
    if reason is not None:
        print(f"vLLM cannot be measured here: {reason}.")
        return
    machine = measuring.machine()
    pairs = side_by_side.find_pairs(args.pairs, [side_by_side.SHARED_PAIRS, side_by_side.SHARED_LONG_PAIRS])
    contestants: dict[str, Callable[[Task, str], dict[str, Any]]] = {OURS: run_ours, BARE: run_bare}
    if args.tuned:
        contestants[BARE_TUNED] = run_tuned
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.environment():
        task = Task(folder, max_length=args.max_length)
        count = side_by_side.pairs_with(args.completions, side_by_side.read_rows(*pairs), task.seed)
        side_by_side.set_up(task, pairs, count=count, held_out=0, vocabulary=args.vocabulary)
        for repeat in range(args.repeats):
            for number, (name, contestant) in enumerate(contestants.items()):
                with measuring.environment(**(LARGE_BLOCKS_KEPT if name == BARE_TUNED else {})):
                    run = in_own_process(contestant, task, str(Path(folder) / f"run-{repeat}-{number}"))
                runs[name].append(run)
                print(f"{repeat + 1} of {args.repeats}, {name}: {run['wall_s']:.2f} s", flush=True)
    figures = {name: measuring.summarize(of, FIGURES) for name, of in runs.items()}
    each = [a["wall_s"] / b["wall_s"] for a, b in zip(runs[OURS], runs[BARE], strict=True)]
    text = "\n\n".join(
        [
            "# Scoring by vLLM, side by side with a bare vLLM",
            f"{count} pairs of {side_by_side.named(pairs)}, at most {args.max_length} tokens; {side_by_side.POLICY}, vocabulary "
            f"{args.vocabulary}, random weights, float32; median of {args.repeats} runs, which took turns.",
            measuring.describe_machine(machine),
            report(figures),
            f"Scoring ÷ {BARE}, run by run: {', '.join(f'{ratio:.2f}' for ratio in each)}.",
            NOTES,
        ]
    )
    document = {
        "task": asdict(task)
        | {"folder": None, "vocabulary": args.vocabulary, "pairs": side_by_side.named(pairs), "count": count},
        "machine": machine,
        "figures": figures,
        "claims": [measuring.claim("mrpo score-refs by vLLM ÷ LLM.generate, seconds", statistics.median(each))],
        "runs": runs,
    }
    measuring.write_results("scoring_vllm", document, text)


if __name__ == "__main__":
    main()
