"""Scoring with the transformers engine with and without shared prompts: CPU seconds and tokens.

    python benchmarks/bench_shared_prompts.py [--model DIR] [--pairs FILE …] [--count 60] [--repeats 3]

One engine on one thread scores the same completions both ways, in turns, in one process. The data are each file's pairs, drawn
evenly over it, and conversations of the first file with seven short answers each, as in ranked data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import side_by_side
from measuring import claim

ANSWERS, PROMPT_CHARS, ANSWER_CHARS = 7, 2400, 200
RANKED = f"{ANSWERS} answers a prompt"
GOALS = {"llamafactory_dpo_en.jsonl": 1.3, "pandalm_llmbar.jsonl": 1.18, RANKED: 3.0}
MOST_REPEATED = 1.05


def ranked_rows(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Ranked answers, each the beginning of another completion of the file, to prompts joined from the file's rows."""
    said = [row["prompt"][-1]["content"] + "\n\n" + row["chosen"][0]["content"] for row in rows]
    answers = [row[side][0]["content"][:ANSWER_CHARS] for row in rows for side in ("chosen", "rejected")]
    ranked = []
    for number in range(count):
        text = "\n\n".join(said[(number * 5 + step) % len(said)] for step in range(5))[:PROMPT_CHARS]
        prompt = [{"role": "user", "content": "Sum this up.\n\n" + text}]
        own = [answers[(number * ANSWERS + step) % len(answers)] for step in range(ANSWERS)]
        completions = [[{"role": "assistant", "content": answer}] for answer in own]
        ranked.append({"prompt": prompt, "completions": completions, "ranks": list(range(ANSWERS))})
    return ranked


def requests_of(pairs: Path, model: str) -> list[Any]:
    """The distinct completions of the pairs, as stage one requests them from an engine."""
    from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
    from mrpo_pipeline.engines import ScoringRequest
    from mrpo_pipeline.recipe import parse_recipe
    from mrpo_pipeline.rendering import Renderer

    named = {"pairs": {"train": str(pairs)}, "policy": {"model": model}, "references": {"base": {"model": model}}}
    recipe = parse_recipe(named | {"cache": "unused", "output_dir": "unused"})
    wanted = wanted_completions(list(prepare_splits(recipe).values()))
    rendered = Renderer.of(recipe.sources()[0]).render(list(wanted.select("prompt", "completion").iter_rows()))
    return [ScoringRequest(one.prompt_ids, one.completion_ids, one.scored) for one in rendered]


def distinct_tokens(requests: Sequence[Any]) -> int:
    """The number of tokens with every prompt once, and every completion without its last token, which predicts nothing."""
    prompts = {one.prompt_ids.tobytes(): len(one.prompt_ids) for one in requests}
    return sum(prompts.values()) + sum(len(one.completion_ids) - 1 for one in requests)


def run(model: str, files: dict[str, str], repeats: int) -> dict[str, dict[str, Any]]:
    """For each data set: CPU seconds and tokens of both ways, and the largest difference of a log-prob in nats."""
    import torch

    from mrpo_pipeline.engines.transformers import TransformersEngine
    from mrpo_pipeline.models.source import ModelSource

    torch.set_num_threads(1)
    engine = TransformersEngine(ModelSource(model=model).named("base"))
    head = engine._open().head
    shapes: list[int] = []
    own = head.hidden_states

    def watched(input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        shapes.append(input_ids.numel())
        return own(input_ids, **given)

    head.hidden_states = watched  # type: ignore[method-assign, assignment]

    def score(requests: Sequence[Any], shared: bool) -> tuple[float, int, dict[int, Any]]:
        # The trial with the first requests is part of the time.
        engine._may_share, engine._compared, engine._open().attention = shared, {}, None
        shapes.clear()
        began = time.process_time()
        found = dict(engine.score(requests))
        return time.process_time() - began, sum(shapes), found

    found: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        requests = requests_of(Path(file), model)
        runs: dict[bool, list[tuple[float, int, dict[int, Any]]]] = {False: [], True: []}
        score(requests[:2], shared=False)  # warm-up
        for repeat in range(repeats):
            for shared in (False, True) if repeat % 2 == 0 else (True, False):
                runs[shared].append(score(requests, shared))
                print(
                    f"{name}, {repeat + 1} of {repeats}, shared={shared}: {runs[shared][-1][0]:.1f} CPU s", flush=True
                )
        before, after = runs[False][0], runs[True][0]
        seconds = {shared: statistics.median(one[0] for one in several) for shared, several in runs.items()}
        found[name] = {
            "completions": len(requests),
            "distinct_tokens": distinct_tokens(requests),
            "tokens_before": before[1],
            "tokens_after": after[1],
            "cpu_s_before": seconds[False],
            "cpu_s_after": seconds[True],
            "largest_difference": max(float(abs(after[2][i] - before[2][i]).max()) for i in before[2]),
        }
    return found


def report(figures: dict[str, dict[str, Any]]) -> str:
    header = ["data", "completions", "CPU s before", "after", "before ÷ after", "tokens run ÷ distinct, before", "after",
              "largest difference, nats"]  # fmt: skip
    body = []
    for name, found in figures.items():
        distinct, before, after = found["distinct_tokens"], found["cpu_s_before"], found["cpu_s_after"]
        repeated = [f"{found[f'tokens_{when}'] / distinct:.2f}" for when in ("before", "after")]
        seconds = [f"{before:.1f}", f"{after:.1f}", f"{before / after:.2f}"]
        body.append([name, str(found["completions"]), *seconds, *repeated, f"{found['largest_difference']:.0e}"])
    return measuring.table(header, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--model", help="a model folder with its tokenizer; a tiny Llama of random weights if not given"
    )
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--count", type=int, default=60, help="pairs of each file")
    parser.add_argument("--prompts", type=int, default=12, help=f"prompts with {ANSWERS} answers")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    machine = measuring.machine()
    pairs = side_by_side.find_pairs(args.pairs)
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as folder, measuring.one_thread():
        model, files = args.model, {}
        if model is None:
            task = side_by_side.Task(folder)
            side_by_side.set_up(task, pairs, count=args.count, held_out=0, vocabulary=8192)
            model = task.policy
        for path in pairs:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            files[path.name] = rows[:: max(1, len(rows) // args.count)][: args.count]
        files[RANKED] = ranked_rows(files[pairs[0].name], args.prompts)
        written = {}
        for number, (name, some) in enumerate(files.items()):
            path = Path(folder) / f"{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
            written[name] = str(path)
        figures = measuring.in_own_process(run, model, written, args.repeats)
    text = "\n\n".join(
        [
            "# Scoring with each prompt once",
            f"{Path(model).name}, {args.count} pairs of each file and {args.prompts} prompts with {ANSWERS} answers, one "
            f"thread; median of {args.repeats} runs, which took turns.",
            measuring.describe_machine(machine),
            report(figures),
        ]
    )
    claims = []
    for name, of in figures.items():
        ratio, repeated = of["cpu_s_before"] / of["cpu_s_after"], of["tokens_after"] / of["distinct_tokens"]
        claims.append(
            claim(f"Scoring with prompts shared, CPU s before ÷ after, {name}", ratio, at_least=GOALS.get(name))
        )
        claims.append(claim(f"Tokens run ÷ distinct tokens, {name}", repeated, at_most=MOST_REPEATED))
    document = {"model": Path(model).name, "machine": machine, "figures": figures, "claims": claims}
    measuring.write_results("shared_prompts", document, text)


if __name__ == "__main__":
    main()
