"""Run all drivers, one after another, and print one line for each at the end.

python tests/soak/run_all.py [--quick] [--only NAME …] [--minutes 30] [--out runs/soak]

Each writes its own summary as OUT/NAME.json and exits with 1 for violations; so does this. `--quick` runs each for a few
minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Options of the short forms.
DRIVERS: dict[str, tuple[str, list[str]]] = {
    "kills": ("kills.py", ["--count", "12"]),
    "byte_flips": ("byte_flips.py", ["--count", "5", "--repairs", "2"]),
    "failing_calls": ("failing_calls.py", []),
    "disk_faults": ("disk_faults.py", ["--count", "2"]),
    "state_machine": ("long_state_machine.py", ["--examples", "30"]),
    "stale": ("stale.py", ["--count", "4"]),
    "malformed": ("malformed/run.py", ["--count", "60", "--fuzz", "60"]),
    "mutate_targets": ("mutate_targets.py", ["--count", "30"]),
    "soak": ("soak.py", ["--minutes", "3"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="the short form of each")
    parser.add_argument("--only", nargs="+", choices=list(DRIVERS), metavar="NAME", help=", ".join(DRIVERS))
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak, unless --quick")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    args = parser.parse_args()
    lines = []
    for name in args.only or DRIVERS:
        file, short = DRIVERS[name]
        options = short if args.quick else ["--minutes", str(args.minutes)] if name == "soak" else []
        print(f"== {file} {' '.join(options)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, str(HERE / file), *options, "--out", str(args.out)], check=False)
        minutes = (time.monotonic() - began) / 60
        lines.append((name, "held" if done.returncode == 0 else f"did not hold (exit {done.returncode})", minutes))
    print("\n" + "\n".join(f"{name:<16} {what:<24} {minutes:6.1f} minutes" for name, what, minutes in lines))
    print(f"Their summaries are in {args.out}.")
    raise SystemExit(any(what != "held" for _, what, _ in lines))


if __name__ == "__main__":
    main()
