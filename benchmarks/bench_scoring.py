"""Stage one side by side: the transformers engine with TRL's precomputed reference, the vLLM engine with a bare vLLM.

    python benchmarks/bench_scoring.py [--pairs FILE] [--count 200] [--repeats 3] [--skip-vllm]

The same tiny Llama in float32 and the same pairs for all, on one thread; the runs take turns, each in a process of its own.
Imports, loading and start-up are left out of the time: from token ids to log-probs is what is measured, and for the first
comparison also all that comes before and after (reading, tokenizing, loading, shards on disk).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import side_by_side
from side_by_side import Task, in_own_process

TRANSFORMERS, TRL = "mrpo, transformers engine", "TRL, precompute_ref_log_probs"
VLLM, BARE_VLLM = "mrpo, vLLM engine", "vLLM, LLM.generate"
RATIOS = {TRL: TRANSFORMERS, BARE_VLLM: VLLM}
FIGURES = ("cpu_s", "wall_s", "whole_cpu_s", "completions", "tokens", "tokens_per_cpu_s", "tokens_per_s")

NOTES = """\
In brackets: how many times this project's engine above it. TRL scores both sides of every pair, padded in the order of the
data, this project each distinct completion once, sorted by length. “In all” is a run from the pairs file to what lies on
disk: for TRL the making of its trainer, for this project `mrpo score-refs` with the loading of the model. A bare vLLM gives
a dictionary for each position, of which the completion's part is read."""


def requests_of(task: Task) -> list[Any]:
    """The distinct completions of the training pairs as stage one scores them."""
    from mrpo_pipeline.engines import ScoringRequest
    from mrpo_pipeline.prepare import prepare_splits, renderer_of, wanted_completions
    from mrpo_pipeline.rendering import tokens_to_score

    recipe = side_by_side.recipe(task, task.path("unused"), task.path("unused"))
    wanted = wanted_completions(list(prepare_splits(recipe).values()))
    rendered = renderer_of(recipe.sources()[0]).render(list(wanted.select("prompt", "completion").iter_rows()))
    return [
        ScoringRequest(one.prompt_ids, one.completion_ids[: tokens_to_score(one.byte_ends, cut)])
        for one, cut in zip(rendered, wanted["cut"], strict=True)
    ]


def timed(score: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call gave, and its CPU and wall seconds."""
    cpu, wall = time.process_time(), time.monotonic()
    result = score()
    return result, {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - wall}


def run_transformers(task: Task, folder: str) -> dict[str, float]:
    """The engine from ids to log-probs, and then the whole of stage one."""
    import torch

    from mrpo_pipeline.engines import open_engine
    from mrpo_pipeline.scoring import score_references

    torch.set_num_threads(1)
    requests = requests_of(task)
    recipe = side_by_side.recipe(task, folder, folder)
    engine = open_engine("transformers", recipe.sources()[0], {"threads": 1})
    _, seconds = timed(lambda: list(engine.score(requests)))
    engine.close()
    torch.set_num_threads(1)
    _, whole = timed(lambda: score_references(recipe))
    counts = {"completions": len(requests), "tokens": sum(len(request) for request in requests)}
    return seconds | counts | {"whole_cpu_s": whole["cpu_s"]}


def run_trl(task: Task, folder: str) -> dict[str, float]:
    """TRL's pass over the reference, measured from inside its trainer, and the whole of making that."""
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    torch.set_num_threads(1)
    spent: list[dict[str, float]] = []

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **options: Any) -> Any:
            result, seconds = timed(lambda: super(Timed, self)._precompute_ref_logps(*args, **options))
            spent.append(seconds)
            return result

    trainer, whole = timed(lambda: side_by_side.trl_trainer(task, folder, precompute=True, kind=Timed))
    rows = [
        min(len(row["prompt_ids"]) + len(row[side]), task.max_length)
        for row in trainer.train_dataset
        for side in ("chosen_ids", "rejected_ids")
    ]
    (seconds,) = spent
    return seconds | {"completions": len(rows), "tokens": sum(rows), "whole_cpu_s": whole["cpu_s"]}


def run_vllm(task: Task, folder: str) -> dict[str, Any]:
    """The vLLM engine, its process started before the clock is."""
    from mrpo_pipeline.engines import open_engine

    requests = requests_of(task)
    source = side_by_side.recipe(task, folder, folder).sources()[0]
    engine = open_engine("vllm", source, {"threads": 1})
    list(engine.score(requests[:1]))  # the first call sets things up: start-up as well
    scored, seconds = timed(lambda: dict(engine.score(requests)))
    engine.close()
    counts = {"completions": len(requests), "tokens": sum(len(request) for request in requests)}
    # The process that computes is another one: its CPU seconds are not in ours.
    return {"wall_s": seconds["wall_s"], **counts, "sums": [float(scored[i].sum()) for i in range(len(requests))]}


def run_bare_vllm(task: Task, folder: str) -> dict[str, Any]:
    """vLLM as one would call it by hand, on the same ids: prompt log-probs of everything, the completion's part read."""
    import os

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    requests = requests_of(task)
    from vllm import LLM, SamplingParams

    model = LLM(
        model=task.policy,
        dtype="float32",
        max_model_len=2048,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    ids = [[*request.prompt_ids.tolist(), *request.completion_ids.tolist()] for request in requests]

    def score() -> list[float]:
        outputs = model.generate([{"prompt_token_ids": one} for one in ids], asked, use_tqdm=False)
        sums = []
        for request, output in zip(requests, outputs, strict=True):
            tokens = request.completion_ids.tolist()
            rows = output.prompt_logprobs[-len(tokens) :]
            sums.append(sum(row[token].logprob for row, token in zip(rows, tokens, strict=True)))
        return sums

    model.generate([{"prompt_token_ids": ids[0]}], asked, use_tqdm=False)
    sums, seconds = timed(score)
    # Its processes are children of this one, which would wait for them at its end.
    model.llm_engine.engine_core.shutdown()
    counts = {"completions": len(requests), "tokens": sum(len(request) for request in requests)}
    return {"wall_s": seconds["wall_s"], **counts, "sums": sums}


def has_vllm() -> bool:
    from mrpo_pipeline.engines import engine_available

    reason = engine_available("vllm")
    if reason is not None:
        print(f"vLLM is left out: {reason}.")
    return reason is None


def report(figures: dict[str, dict[str, dict[str, float]]]) -> str:
    def cell(name: str, figure: str, digits: int) -> str:
        found = figures[name].get(figure)
        if found is None:
            return "–"
        ours = figures.get(RATIOS.get(name, ""), {}).get(figure)
        times = f" ({found['median'] / ours['median']:.2f}×)" if ours and "tokens" not in figure else ""
        return f"{found['median']:,.{digits}f}{times}"

    header = ["median", "CPU s", "wall s", "in all, CPU s", "completions", "tokens", "tokens/CPU s", "tokens/s"]
    digits = {"cpu_s": 2, "wall_s": 2, "whole_cpu_s": 2}
    columns = ("cpu_s", "wall_s", "whole_cpu_s", "completions", "tokens", "tokens_per_cpu_s", "tokens_per_s")
    return side_by_side.table(
        header, [[name, *(cell(name, column, digits.get(column, 0)) for column in columns)] for name in figures]
    )


def agreement(runs: dict[str, list[dict[str, Any]]]) -> str:
    """How far the two ways through vLLM are apart; the sums themselves are not kept."""
    sums = {name: [run.pop("sums") for run in of] for name, of in runs.items() if of and "sums" in of[0]}
    if len(sums) < 2:
        return ""
    apart = max(abs(a - b) for a, b in zip(sums[VLLM][0], sums[BARE_VLLM][0], strict=True))
    return f"Sums of the two ways through vLLM differ by at most {apart:.1e} nats.\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--count", type=int, default=200, help="pairs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--skip-vllm", action="store_true")
    args = parser.parse_args()
    machine = side_by_side.machine()
    pairs = side_by_side.find_pairs(args.pairs)
    contestants: dict[str, Callable[[Task, str], dict[str, Any]]] = {TRANSFORMERS: run_transformers}
    if side_by_side.has_trl():
        contestants[TRL] = run_trl
    if not args.skip_vllm and has_vllm():
        contestants |= {VLLM: run_vllm, BARE_VLLM: run_bare_vllm}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, side_by_side.one_thread():
        task = Task(folder, max_length=args.max_length)
        side_by_side.set_up(task, pairs, count=args.count, held_out=0, vocabulary=args.vocabulary)
        for repeat in range(args.repeats):
            for number, (name, contestant) in enumerate(contestants.items()):
                run = in_own_process(contestant, task, str(Path(folder) / f"run-{repeat}-{number}"))
                if "cpu_s" in run:
                    run["tokens_per_cpu_s"] = run["tokens"] / run["cpu_s"]
                run["tokens_per_s"] = run["tokens"] / run["wall_s"]
                runs[name].append(run)
                print(f"{repeat + 1} of {args.repeats}, {name}: {run['tokens_per_s']:,.0f} tokens/s", flush=True)
    same = agreement(runs)
    figures = {name: side_by_side.summarize(of, FIGURES) for name, of in runs.items()}
    text = "\n\n".join(
        [
            "# Scoring, side by side",
            f"{args.count} pairs of {pairs.name}, at most {args.max_length} tokens; Llama of hidden size 256 and 4 layers, "
            f"vocabulary {args.vocabulary}, random weights, float32, one thread; median of {args.repeats} runs, which took "
            "turns.",
            side_by_side.describe_machine(machine),
            report(figures),
            same + NOTES,
        ]
    )
    document = {
        "task": asdict(task)
        | {"folder": None, "vocabulary": args.vocabulary, "pairs": pairs.name, "count": args.count},
        "machine": machine,
        "figures": figures,
        "runs": runs,
    }
    side_by_side.write_results("scoring", document, text)


if __name__ == "__main__":
    main()
