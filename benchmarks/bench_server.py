"""Stage one with a `vllm serve`, beside a bare client of the same server: wall seconds.

    python benchmarks/bench_server.py [--model FOLDER] [--pairs FILE …] [--completions 2000] [--concurrency 16]

One server on loopback, float32. The bare client sends the same token ids to the same route, with the same concurrency, and only parses the
JSON; the time of `mrpo score-refs` includes rendering and writing shards, but not the start of its engine. They take turns, one unit
of completions each. In a further run the server is killed and restarted; the cache of that run is then compared with the
in-process transformers engine, token by token.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import side_by_side

sys.path.insert(0, str(measuring.ROOT / "tests"))
from loopback_vllm import VllmServer

GOAL, SAME = 1.1, 1e-3
NOTES = """\
Seconds are of scoring, from the engine that stands (the probe answered) to the last shard, and of the bare client from its first
request to its last answer. Both ask the longest first. CPU seconds are of server and client together; mrpo's are of the whole
command, with reading the pairs and rendering."""


def recipe_of(args: argparse.Namespace, pairs: Path, cache: str, server: dict[str, Any] | None) -> Any:
    from mrpo_pipeline.recipe import parse_recipe

    reference = {"model": args.model} | ({"server": server} if server else {"dtype": "float32"})
    return parse_recipe(
        {
            "pairs": {"train": str(pairs)}, "policy": {"model": args.model}, "references": {"base": reference}, "cache": cache,
            "limits": {"max_length": args.max_length}, "scoring": {} if server else {"engine": "transformers"},
        }
    )  # fmt: skip


def ids_of(recipe: Any) -> list[list[int]]:
    """Prompt and completion ids of the distinct completions, as stage one requests them."""
    from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
    from mrpo_pipeline.rendering import Renderer, tokens_to_score

    wanted = wanted_completions(list(prepare_splits(recipe).values()))
    rendered = Renderer.of(recipe.sources()[0]).render(list(wanted.select("prompt", "completion").iter_rows()))
    return [
        [*one.prompt_ids.tolist(), *one.completion_ids[: tokens_to_score(one.scored_ends, cut)].tolist()]
        for one, cut in zip(rendered, wanted["cut"], strict=True)
    ]


def bare_client(url: str, ids: Sequence[list[int]], concurrency: int) -> float:
    """Wall seconds with this many threads, each with its own connection."""
    import httpx2

    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for one in sorted(ids, key=len, reverse=True):
        todo.put(one)

    def work() -> None:
        with httpx2.Client(timeout=600, trust_env=False) as client:
            while True:
                try:
                    one = todo.get_nowait()
                except queue.Empty:
                    return
                asked = {"max_tokens": 1, "temperature": 0.0, "detokenize": False, "prompt_logprobs": 0}
                body = {"model": "tiny", "token_ids": one, "sampling_params": asked, "return_token_ids": True}
                client.post(f"{url}/inference/v1/generate", json=body).raise_for_status().json()

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began


def ours(recipe: Any) -> float:
    from mrpo_pipeline.scoring import score_references

    (report,) = score_references(recipe)
    assert report.scored == report.wanted, report.summary()
    return report.seconds


def killed_and_started_again(args: argparse.Namespace, server: VllmServer, recipe: Any, folder: Path) -> dict[str, int]:
    """Score, kill the server after the first shard, restart it and resume; returns the completions of both runs."""
    from mrpo_pipeline.errors import RunError
    from mrpo_pipeline.scoring import score_references

    shards = folder / "killed" / "base" / "shards"

    def kill() -> None:
        while not list(shards.glob("[!.]*.parquet")):
            time.sleep(0.05)
        server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        score_references(recipe)
        raise SystemExit("The server was killed too late: give --completions a larger number.")
    except RunError as error:
        print(f"as it was killed: {error}", flush=True)
    killer.join()
    server.start(args.model, "--enable-scale-out", "--max-model-len", str(args.max_length + 64))
    (report,) = score_references(recipe)
    return {"before": report.cached, "after": report.scored}


def compare(folder: Path) -> dict[str, float]:
    """Largest and mean |difference| per token between two caches of the same completions."""
    import pyarrow.parquet as pq

    caches = []
    for name in ("killed", "here"):
        rows = [
            row
            for shard in (folder / name / "base" / "shards").glob("[!.]*.parquet")
            for row in pq.read_table(shard).to_pylist()
        ]
        caches.append({row["completion_id"]: row for row in rows})
        assert len(caches[-1]) == len(rows), "a completion was scored twice"
    served, here = caches
    assert served.keys() == here.keys()
    assert all(served[one]["token_ids"] == here[one]["token_ids"] for one in here)
    apart = np.concatenate([np.abs(np.subtract(served[one]["logprobs"], here[one]["logprobs"])) for one in here])
    return {"max": float(apart.max()), "mean": float(apart.mean()), "tokens": len(apart), "completions": len(here)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", help="a model's folder; a tiny one with random weights where not given")
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--completions", type=int, default=2000, help="distinct completions to take pairs for")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--concurrency", type=int, default=16)
    args = parser.parse_args()
    from mrpo_pipeline.engines import engine_available

    if (reason := engine_available("vllm")) is not None:
        print(f"vLLM cannot be measured here: {reason}.")
        return
    machine = measuring.machine()
    files = side_by_side.find_pairs(args.pairs, [side_by_side.SHARED_PAIRS, side_by_side.SHARED_LONG_PAIRS])
    with tempfile.TemporaryDirectory(prefix="mrpo-bench-") as name, measuring.environment():
        folder = Path(name)
        task = side_by_side.Task(name, max_length=args.max_length)
        count = side_by_side.pairs_with(args.completions, side_by_side.read_rows(*files), task.seed)
        side_by_side.set_up(task, files, count=count, held_out=0, vocabulary=8192)
        args.model, pairs = args.model or task.policy, Path(task.train)
        server = VllmServer(folder / "vllm.log")
        told = {"url": server.url, "concurrency": args.concurrency, "retries": 0}
        try:
            server.start(args.model, "--enable-scale-out", "--max-model-len", str(args.max_length + 64))
            ids = ids_of(recipe_of(args, pairs, str(folder / "unused"), told))
            bare_client(server.url, ids[: args.concurrency], args.concurrency)  # warm-up
            ratios, walls = [], []
            for repeat in range(args.repeats):
                spent = [server.cpu_seconds() + time.process_time()]
                bare = bare_client(server.url, ids, args.concurrency)
                spent.append(server.cpu_seconds() + time.process_time())
                own = ours(recipe_of(args, pairs, str(folder / f"cache-{repeat}"), told))
                spent.append(server.cpu_seconds() + time.process_time())
                walls.append((bare, own, spent[1] - spent[0], spent[2] - spent[1]))
                ratios.append(own / bare)
                print(
                    f"{repeat + 1} of {args.repeats}: bare client {bare:.1f} s, mrpo {own:.1f} s, {ratios[-1]:.2f}",
                    flush=True,
                )
            recipe = recipe_of(args, pairs, str(folder / "killed"), told)
            recipe = recipe.model_copy(
                update={"scoring": recipe.scoring.model_copy(update={"rows_per_shard": max(1, len(ids) // 8)})}
            )
            parts = killed_and_started_again(args, server, recipe, folder)
        finally:
            server.kill()
        ours(recipe_of(args, pairs, str(folder / "here"), None))
        apart = compare(folder)
    ratio = statistics.median(ratios)
    text = "\n\n".join(
        [
            "# Scoring by a vLLM server, side by side with a bare client of it",
            f"{len(ids):,} completions of {side_by_side.named(files)}, at most {args.max_length} tokens, {args.concurrency} at once; "
            f"{'a model of your own' if args.model != task.policy else side_by_side.POLICY}, float32.",
            measuring.describe_machine(machine),
            measuring.table(
                ["run", "bare client, s", "mrpo, s", "ratio", "bare client, CPU s", "mrpo, CPU s", "ratio"],
                [
                    [str(at + 1), f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}", f"{c:.1f}", f"{d:.1f}", f"{d / c:.2f}"]
                    for at, (a, b, c, d) in enumerate(walls)
                ],
            ),
            f"Killed with {parts['before']:,} completions in the cache and started again: {parts['after']:,} more were scored, none twice. "
            f"Against the transformers engine here, {apart['tokens']:,.0f} tokens: {apart['max']:.1e} nats a token at most, "
            f"{apart['mean']:.1e} on average.",
            NOTES,
        ]
    )
    claims = [
        measuring.claim("mrpo score-refs by a server ÷ bare client, seconds", ratio, at_most=GOAL),
        measuring.claim(
            "largest difference to the engine here, nats a token", apart["max"], at_most=SAME, form="{:.1e}"
        ),
    ]
    document = {"machine": machine, "claims": claims, "runs": walls, "parts": parts, "apart": apart}
    measuring.write_results("server", document, text)


if __name__ == "__main__":
    main()
