"""Run every benchmark, one after another, then write the summary table and plot.

    python benchmarks/run_all.py [--quick] [--only NAME …] [--jobs 2]

`--quick` runs the short form of each, a few minutes in all, and writes the results to a separate folder: enough to see how
things are measured and to show large differences, but not small ones. Without it, the summary also writes `docs/results.md`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import measuring

FOLDER = Path(__file__).resolve().parent

# Those that compare stage two with its peers come first. Values: options of the short form, or None without one. Benchmarks not
# listed run as well, with `--quick` if they have that option.
BENCHMARKS: dict[str, str | None] = {
    "training": "--steps 8 --repeats 1 --held-out 0",
    "same_training": "--steps 8 --held-out 16",
    "references": "--steps 8 --repeats 1",
    "fast_paths": "--steps 5 --long-steps 2 --repeats 1",
    "learning": None,
    "scaling": "--steps 1 --lengths 128 256 512 --batches 2 4 8",
    "head": "--vocabularies 32768 --repeats 1",
    "cache": "--pairs 5000 --tokens 60 --repeats 1",
    "large": "--rows 20000",
    "scoring_trl": "--count 40 --repeats 1",
    "group_by_prompt": "--prompts 3 --steps 6",
    "shared_prompts": "--count 20 --prompts 4 --repeats 1",
    "scoring_vllm": None,
    "server": None,
}
TAKE_JOBS = ("training", "references", "fast_paths", "learning", "scaling", "head")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    others = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    names = [*BENCHMARKS, *(name for name in others if name not in BENCHMARKS)]
    parser.add_argument("--quick", action="store_true", help="the short form of those that have one")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once, where a benchmark can: as many as cores, at most"
    )
    args = parser.parse_args()
    results = measuring.RESULTS / "quick" if args.quick else measuring.RESULTS
    environment = {**os.environ, "MRPO_BENCH_RESULTS": str(results)}
    failed = []
    for name in args.only or names:
        file = FOLDER / f"bench_{name}.py"
        short = BENCHMARKS.get(name, "--quick" if "--quick" in file.read_text(encoding="utf-8") else None)
        if args.quick and short is None:
            print(f"== {name}: no short form, left out", flush=True)
            continue
        options = (short or "").split() if args.quick else []
        if name in TAKE_JOBS:
            options += ["--jobs", str(args.jobs)]
        print(f"== bench_{name}.py {' '.join(options)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, str(file), *options], env=environment, check=False)
        if done.returncode:
            failed.append(name)
        print(f"== {name}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    publish = [] if args.quick else ["--publish"]
    subprocess.run([sys.executable, str(FOLDER / "summary.py"), *publish], env=environment, check=True)
    if failed:
        raise SystemExit(f"These failed, for the reasons printed above: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
