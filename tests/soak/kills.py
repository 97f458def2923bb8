"""Kill `mrpo score-refs` and `mrpo train` at random instants, and report what was lost.

python tests/soak/kills.py [--count 200] [--training 50] [--seed 0] [--out FOLDER]

Three in ten kills of score-refs are of runs with two writers on one cache. Nothing is simulated: the commands run in
processes of their own (of a fork server with the imports done), on files of a temporary folder, and are killed by SIGKILL,
SIGTERM and SIGINT at random instants and at chosen places. Exit code 1 for any violation.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from driver import parser_of, write_summary

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def tally(kills: list[Any]) -> dict[str, dict[str, int]]:
    """The kills by signal, by how they were drawn, and by the number of writers."""
    return {name: dict(Counter(str(getattr(kill, name)) for kill in kills)) for name in ("signal", "how", "writers")}


def report(scoring: Any, training: Any) -> dict[str, Any]:
    """The summary."""
    from campaigns import CLEAN
    from kill_scoring import ROWS_PER_SHARD

    hard = [kill for kill in scoring.kills if kill.signal not in CLEAN]
    places = {kill.place for kill in [*scoring.kills, *scoring.sums_kills, *training.kills] if kill.place}
    return {
        "score-refs": {
            "kills": len(scoring.kills),
            **tally(scoring.kills),
            "kills in building sums": len(scoring.sums_kills),
            "caches": scoring.campaigns,
            "completions in each": len(scoring.wanted),
            "runs that got through before the kill": scoring.ended + scoring.late,
            "rows scored": scoring.rows_scored,
            "rows scored by two writers left alone": " and ".join(map(str, scoring.shared)),
            "rows a shard": ROWS_PER_SHARD,
            "rows lost by SIGKILL, at most": max((kill.lost for kill in hard), default=0),
            "rows lost by SIGKILL, in all": sum(kill.lost for kill in hard),
            "rows lost by SIGTERM and SIGINT": sum(kill.lost for kill in scoring.kills if kill.signal in CLEAN),
            "largest difference of a log-prob, nats": scoring.largest,
        },
        "train": {
            "kills": len(training.kills),
            **{name: counts for name, counts in tally(training.kills).items() if name != "writers"},
            "output folders": training.turns,
            "methods": list(training.methods),
            "runs that got through before the kill": training.ended,
            "steps compared": training.steps_compared,
            "steps with other figures": training.steps_apart,
            "adapters compared": training.adapters_compared,
        },
        "places aimed at": sorted(places),
        "wrong": [*scoring.wrong, *training.wrong],
    }


def show(summary: dict[str, Any]) -> None:
    """The summary as a table."""
    for part in ("score-refs", "train"):
        print(f"\n{part}")
        for name, value in summary[part].items():
            text = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
            print(f"  {name:42} {text}")
    print(f"\n{len(summary['places aimed at'])} different places were aimed at.")
    if summary["stopped before the end"]:
        print("Stopped before the end.")
    print(f"{len(summary['wrong'])} things did not hold." if summary["wrong"] else "Everything held.")


def main() -> int:
    parser = parser_of(__doc__, seed="of what is drawn (default: a random one, which is printed)")
    parser.set_defaults(seed=None)
    parser.add_argument("--count", type=int, default=200, help="kills of score-refs")
    parser.add_argument("--training", type=int, help="kills of train (default: a quarter of --count)")
    given = parser.parse_args()
    from kill_scoring import Scoring
    from kill_training import Training
    from victims import Victims

    # If it is interrupted, it reports the results so far.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    two = given.count * 3 // 10
    for_training = given.count // 4 if given.training is None else given.training
    print(f"kills: {given.count - two} and {two} of score-refs, {for_training} of train, seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mrpo-kills-") as folder:
        places = [Path(folder) / name for name in ("scoring", "training")]
        training = Training(places[1], Victims(places[1]), random.Random(seed))
        scoring = Scoring(places[0], Victims(places[0]), random.Random(seed))
        stopped = False
        try:
            if for_training:
                training.spend(for_training)
            if given.count:
                scoring.spend(given.count - two, two)
        except KeyboardInterrupt:
            stopped = True
        cpu = Victims.cpu_seconds()
    summary = {
        "seed": seed,
        "stopped before the end": stopped,
        "seconds": round(time.monotonic() - began),
        "CPU seconds": round(cpu),
        **report(scoring, training),
    }
    show(summary)
    print(f"{summary['seconds']} s, {summary['CPU seconds']} s of CPU, seed {seed}")
    return write_summary(given.out, "kills", summary, held=not (summary["wrong"] or stopped))


if __name__ == "__main__":
    raise SystemExit(main())
