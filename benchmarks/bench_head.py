"""From hidden states to completion log-probs and back: the logits of all positions at once, and in chunks.

    python benchmarks/bench_head.py [--vocabularies 32768 131072] [--repeats 5]

The output head alone, frozen as with LoRA, forward and backward pass, float32, one thread; each run in its own process.
“All positions” is the cost of `model(...).logits` and a log-softmax, as in most trainers; “completions” first selects the
positions that predict a completion's token; “chunks” is `mrpo_pipeline.models`, which computes the gradient in the forward pass.
"""

from __future__ import annotations

import argparse
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import measuring
from measuring import claim, in_own_process, peak_rss_mb

WAYS = ("all positions", "completions", "chunks")
FIGURES = ("cpu_s", "added_mb")


def run(way: str, vocabulary: int, shape: dict[str, int], rounds: int) -> dict[str, float]:
    """CPU seconds of a forward and backward pass (the fastest of several rounds), and the peak memory beyond that at the start."""
    import psutil
    import torch

    from mrpo_pipeline.models.head_logps import LogitForm, frozen_logps, linear_chunk, logps_of_logits

    torch.set_num_threads(1)
    torch.manual_seed(0)
    # In place, since the peak counts from the start of the process.
    weight = torch.randn(vocabulary, shape["hidden"]).div_(shape["hidden"] ** 0.5)
    hidden = torch.randn(shape["positions"], shape["hidden"], requires_grad=True)
    picked = torch.arange(0, shape["positions"], shape["positions"] // shape["completion_positions"])
    targets = torch.randint(0, vocabulary, (shape["positions"],))
    torch.zeros(8, 8).requires_grad_().mm(torch.zeros(8, 8)).sum().backward()  # what autograd loads on its first run
    resting = psutil.Process().memory_info().rss / 2**20

    def once() -> tuple[torch.Tensor, torch.Tensor]:
        hidden.grad = None
        if way == "all positions":
            logps = torch.log_softmax(hidden @ weight.t(), -1).gather(-1, targets[:, None]).squeeze(-1)[picked]
        elif way == "completions":
            logps = logps_of_logits(hidden[picked] @ weight.t(), targets[picked])
        else:
            chunk = linear_chunk(weight, None, LogitForm())
            logps = frozen_logps(hidden[picked], targets[picked], vocabulary, chunk)
        logps.sum().backward()
        assert hidden.grad is not None
        return logps.detach(), hidden.grad

    (logps, gradient), seconds = measuring.timed(once)
    cpu = seconds["cpu_s"]
    for _ in range(rounds - 1):
        cpu = min(cpu, measuring.timed(once)[1]["cpu_s"])
    return {
        "cpu_s": cpu,
        "added_mb": peak_rss_mb() - resting,
        "logps": float(logps.double().sum()),
        "gradient_norm": float(gradient.double().norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--positions", type=int, default=1024, help="positions of the batch")
    parser.add_argument(
        "--completion-positions", type=int, default=512, help="of them, those that predict a completion"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="passes in a run, the quickest of which counts")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    args = parser.parse_args()
    machine = measuring.machine()
    shape = {name: vars(args)[name] for name in ("hidden", "positions", "completion_positions")}
    with TemporaryDirectory() as folder, measuring.one_thread():
        runs = measuring.take_turns(
            {
                f"{vocabulary:,}, {way}": partial(_run_apart, way, vocabulary, shape, args.rounds)
                for vocabulary in args.vocabularies
                for way in WAYS
            },
            args.repeats, folder, jobs=args.jobs,
            line=lambda found: f"{found['cpu_s']:.3f} CPU s, {found['added_mb']:.0f} MB",
        )  # fmt: skip
    figures = {name: measuring.summarize(of, FIGURES) for name, of in runs.items()}
    body, claims = [], []
    for vocabulary in args.vocabularies:
        chunked = figures[f"{vocabulary:,}, {WAYS[-1]}"]
        for way in WAYS:
            name = f"{vocabulary:,}, {way}"
            found = [figures[name][figure]["median"] for figure in FIGURES]
            times = [value / chunked[figure]["median"] for value, figure in zip(found, FIGURES, strict=True)]
            first = runs[name][0]
            body.append(
                [
                    name,
                    f"{found[0]:.3f} ({times[0]:.2f}×)",
                    f"{found[1]:,.0f} ({times[1]:.2f}×)",
                    f"{first['logps']:.3f}",
                    f"{first['gradient_norm']:.5f}",
                ]
            )
            if way == WAYS[0]:
                claims += [
                    claim(f"head, vocabulary {vocabulary:,}: all positions ÷ chunks, {what}", value)
                    for what, value in zip(("CPU seconds", "peak memory"), times, strict=True)
                ]
    text = "\n\n".join(
        [
            "# Log-probs without logits",
            f"{args.positions} positions, {args.completion_positions} of them predict a completion's token; hidden size "
            f"{args.hidden}; float32, one thread; median of {args.repeats} runs.",
            measuring.describe_machine(machine),
            measuring.table(
                ["vocabulary, way", "CPU s", "peak MB", "sum of log-probs, nats", "norm of the gradient"], body
            ),
            "In brackets: times the chunks'. All three give the same log-probs of the completions and the same gradient.",
        ]
    )
    document = {"given": vars(args), "machine": machine, "figures": figures, "claims": claims, "runs": runs}
    measuring.write_results("head", document, text)


def _run_apart(way: str, vocabulary: int, shape: dict[str, int], rounds: int, _folder: str, _: int) -> dict[str, Any]:
    found: dict[str, Any] = in_own_process(run, way, vocabulary, shape, rounds)
    return found


if __name__ == "__main__":
    main()
