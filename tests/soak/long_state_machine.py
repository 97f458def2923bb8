"""The state machine of the cache (tests/cache/test_cache_state_machine.py) for long.

python tests/soak/long_state_machine.py                       # 200 runs of up to 60 steps
python tests/soak/long_state_machine.py --examples 30 --steps 40 --seed 3
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from driver import parser_of, spent, write_summary


def run(examples: int, steps: int, seed: int) -> str:
    """Run the machine; returns its failure with the steps that lead to it, or an empty text."""
    os.environ["MRPO_MACHINE_EXAMPLES"] = str(examples)
    os.environ["MRPO_MACHINE_STEPS"] = str(steps)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cache"))
    import test_cache_state_machine as machines
    from hypothesis import seed as seeded
    from hypothesis.stateful import run_state_machine_as_test

    try:
        run_state_machine_as_test(seeded(seed)(machines.CacheMachine), settings=machines.TestCacheMachine.settings)
    except Exception as error:
        return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    return ""


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60, help="of each, at most")
    given = parser.parse_args()
    logging.getLogger("mrpo").setLevel(logging.CRITICAL)  # rebuilt sums are logged each time
    print(f"cache state machine: seed {given.seed}, {given.examples} runs of up to {given.steps} steps", flush=True)
    began = time.monotonic()
    failed = run(given.examples, given.steps, given.seed)
    told = {
        "seed": given.seed,
        "examples": given.examples,
        "steps": given.steps,
        **spent(began),
        "wrong": [failed] if failed else [],
    }
    print(f"  {told['seconds']} s, {told['cpu_seconds']} s of processor; {len(told['wrong'])} wrong")
    if failed:
        print(failed)
    return write_summary(given.out, "long_state_machine", told, held=not failed)


if __name__ == "__main__":
    raise SystemExit(main())
