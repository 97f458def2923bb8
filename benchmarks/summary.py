"""One table and one plot of all benchmarks, from their results: ``results.md`` and ``results.png``.

    python benchmarks/summary.py [--publish]

`--publish` also writes the documentation page `docs/results.md` and its source `docs/results.json`: results of earlier runs
stay there until their benchmark runs again. The page of the real models is written beside it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import RESULTS, ROOT, table

# The order in the table; others follow by name.
ORDER = ("training", "same_training", "learning", "fast_paths", "references", "scaling", "head")

Documents = dict[str, dict[str, Any]]

OURS, THEIRS, THIRD = "#1b6ca8", "#d1495b", "#8d99ae"


def read_documents() -> Documents:
    """Every benchmark's document that has a ``machine``, by file name."""
    found: Documents = {}
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and "machine" in document:
            found[path.stem] = document
    names = [name for name in ORDER if name in found] + [name for name in found if name not in ORDER]
    return {name: found[name] for name in names}


def claims_table(documents: Documents, name_header: str = "more in") -> str:
    said = {True: "yes", False: "no", None: ""}
    body = [
        [one["what"], one["value"], one["goal"], said[one["met"]], name]
        for name, document in documents.items()
        for one in document.get("claims", [])
    ]
    return table(["what", "measured", "goal", "met", name_header], body)


def runs_table(documents: Documents) -> str:
    """How each benchmark was run: a figure means little without its machine's load."""
    body = []
    for name, document in documents.items():
        machine, run = document["machine"], document.get("run", {})
        load = (
            f"{machine['load_before']} to {run['load_after']}" if "load_after" in run else str(machine["load_before"])
        )
        minutes = f"{run['wall_s'] / 60:.1f}" if "wall_s" in run else ""
        body.append([name, machine.get("date", ""), load, minutes, f"`{run['command']}`" if "command" in run else ""])
    return table(["benchmark", "when", "load", "minutes", "command"], body)


def machines(documents: Documents) -> str:
    """The machine and versions of the runs, in several lines if they differ."""
    return "\n\n".join(dict.fromkeys(machine_line(document["machine"]) for document in documents.values()))


def machine_line(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return f"{machine['processor']}, {machine['cores']} cores, {machine['system']}. {versions}."


def publish(documents: Documents, folder: Path) -> None:
    """Write ``results.json`` and ``results.md`` to that folder, with earlier results of benchmarks that are not among the documents."""
    source = folder / "results.json"
    earlier = json.loads(source.read_text(encoding="utf-8"))["results"] if source.is_file() else {}
    results = earlier | {name: public(document) for name, document in documents.items() if "run" in document}
    if "real_models" in documents:
        text = (RESULTS / "real_models.md").read_text(encoding="utf-8").rstrip()
        command = f"Made by `{results['real_models']['command']}`."
        (folder / "real_models.md").write_text(f"{text}\n\n{command}\n", encoding="utf-8")
    ran = {one["command"].split()[1].rpartition("/")[2] for one in results.values()}
    known = sorted(path.name for path in Path(__file__).parent.glob("bench_*.py"))
    found = {
        "results": dict(sorted(results.items())),
        "not_run": [name for name in known if name not in ran],
        "real_models": (folder / "real_models.md").is_file(),
    }
    source.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(page(found), encoding="utf-8")


def public(document: dict[str, Any]) -> dict[str, Any]:
    """The published part of a benchmark's document: figures, machine, versions, date and command, without folders."""
    machine, run = document["machine"], document["run"]
    kept = {key: machine[key] for key in ("processor", "cores", "system", "versions", "date")}
    loads = [machine["load_before"], run["load_after"]]
    command = public_command(run["command"])
    return kept | {"load": loads, "wall_s": run["wall_s"], "command": command, "claims": document.get("claims", [])}


def public_command(command: str) -> str:
    """The command without ``--scratch``, and with only the last part of other paths."""
    script, *words = re.sub(r" --scratch[ =]\S+", "", command).split()[1:]
    return " ".join(["python", script, *(re.sub(r"[^\s=]*/", "", word) for word in words)])


def page(found: dict[str, Any]) -> str:
    """The text of ``docs/results.md``."""
    results = found["results"].values()
    lines = list(dict.fromkeys(machine_line(one) for one in results))
    runs = []
    for name, one in found["results"].items():
        load = " to ".join(str(part) for part in one["load"])
        number = str(lines.index(machine_line(one)) + 1)
        runs.append([name, one["date"], number, load, f"{one['wall_s'] / 60:.1f}", f"`{one['command']}`"])
    runs += [[f"`{name}`", "not run", "", "", "", ""] for name in found["not_run"]]
    parts = [
        "# Results of the benchmarks",
        "Written by `make bench` (`benchmarks/summary.py --publish`) from what the benchmarks left; nothing is typed by hand. What each "
        "measures is in [benchmarks/README.md](../benchmarks/README.md). “Met” compares a figure with its goal, noise and all.",
        *(["Results on real models are in [real_models.md](real_models.md)."] if found["real_models"] else []),
        claims_table(found["results"], "result")
        if any(one["claims"] for one in results)
        else "No benchmark has a claim yet.",
        "## Runs",
        table(["result", "date", "machine", "load", "minutes", "command"], runs),
        "\n".join(f"{number}. {machine}" for number, machine in enumerate(lines, 1)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bars(axes: Any, names: list[str], values: list[float], colors: list[str], digits: int) -> None:
    drawn = axes.bar(names, values, color=colors)
    axes.bar_label(drawn, [f"{value:.{digits}f}" for value in values], fontsize=8)
    axes.margins(y=0.15)
    axes.tick_params(axis="x", labelsize=8)


def _training(figure: str, digits: int) -> Callable[[Any, dict[str, Any]], None]:
    def draw(axes: Any, document: dict[str, Any]) -> None:
        figures = document["figures"]
        colors = [OURS if name == "mrpo" else THEIRS for name in figures]
        _bars(
            axes,
            [n.replace(", ", ",\n") for n in figures],
            [of[figure]["median"] for of in figures.values()],
            colors,
            digits,
        )

    return draw


def _learning(axes: Any, document: dict[str, Any]) -> None:
    for place, (name, runs) in enumerate(document["runs"].items()):
        losses = [run["loss"] for run in runs]
        axes.plot([place] * len(losses), losses, "o", color=THEIRS if name == "TRL" else OURS, alpha=0.7)
        axes.plot(place, sum(losses) / len(losses), "_", color="black", markersize=18)
    axes.set_xticks(range(len(document["runs"])), [name.replace(", ", ",\n") for name in document["runs"]], fontsize=8)
    axes.margins(x=0.3)


def _fast_paths(axes: Any, document: dict[str, Any]) -> None:
    sets = list(document["figures"])
    names = [name for name in document["figures"][sets[0]] if name != "all on"]
    width = 0.8 / len(sets)
    for number, what in enumerate(sets):
        of = document["figures"][what]
        times = [of[name]["step_cpu_s"]["median"] / of["all on"]["step_cpu_s"]["median"] for name in names]
        places = [place + (number - (len(sets) - 1) / 2) * width for place in range(len(names))]
        axes.barh(places, times, width, label=what, color=(OURS, THIRD)[number % 2])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.legend(fontsize=8, loc="lower right")


def _references(axes: Any, document: dict[str, Any]) -> None:
    for kind, color in (("cached", OURS), ("in memory", THEIRS)):
        points = sorted(
            (int(name.rpartition("= ")[2]), of["step_cpu_s"]["median"])
            for name, of in document["figures"].items()
            if name.startswith(kind)
        )
        axes.plot(*zip(*points, strict=True), "o-", color=color, label=kind)
    axes.set_xlabel("references K")
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _scaling(by: str) -> Callable[[Any, dict[str, Any]], None]:
    def draw(axes: Any, document: dict[str, Any]) -> None:
        fixed, value = ("batch", 4) if by == "length" else ("length", 256)
        ticks: list[int] = []
        for name, color in (("mrpo", OURS), ("TRL, precomputed", THEIRS)):
            points = sorted(
                (one[by], one["step_cpu_s"]) for one in document["figures"].get(name, []) if one[fixed] == value
            )
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=color, label=name)
                ticks = [place for place, _ in points]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_yscale("log")
        axes.set_xlabel(f"{by} ({fixed} {value})")
        axes.legend(fontsize=8)

    return draw


def _head(axes: Any, document: dict[str, Any]) -> None:
    figures = document["figures"]
    colors = [OURS if name.endswith("chunks") else THIRD for name in figures]
    names = [name.replace(", ", "\n").replace(" ", "\n") for name in figures]
    _bars(axes, names, [of["added_mb"]["median"] for of in figures.values()], colors, 0)
    axes.tick_params(axis="x", labelsize=6)


PANELS: tuple[tuple[str, str, Callable[[Any, dict[str, Any]], None]], ...] = (
    ("training", "CPU seconds per step", _training("step_cpu_s", 2)),
    ("training", "peak memory over resting, MB", _training("added_rss_mb", 0)),
    ("learning", "held-out loss of each seed", _learning),
    ("fast_paths", "CPU seconds per step, times all on", _fast_paths),
    ("references", "CPU seconds per step", _references),
    ("scaling", "CPU seconds per step", _scaling("length")),
    ("scaling", "CPU seconds per step", _scaling("batch")),
    ("head", "output head, peak MB by vocabulary", _head),
)


def draw(documents: Documents) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [panel for panel in PANELS if panel[0] in documents]
    if not panels:
        return
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    for axes, panel in zip(grid.flat, panels, strict=False):
        name, title, plot = panel
        plot(axes, documents[name])
        axes.set_title(f"{name}: {title}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    first = documents[panels[0][0]]["machine"]
    figure.suptitle(f"{first['processor']}, {first['cores']} cores, {first.get('date', '')}", fontsize=9)
    figure.savefig(RESULTS / "results.png", dpi=110)
    plt.close(figure)


def summarize() -> None:
    """Write both and print the table; with ``--publish`` also write the documentation page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--publish", action="store_true", help="write docs/results.md as well")
    given = parser.parse_args()
    documents = read_documents()
    if not documents:
        raise SystemExit(f"There are no results in {RESULTS}: run a benchmark first.")
    draw(documents)
    text = "\n\n".join(
        [
            "# Benchmarks",
            machines(documents),
            claims_table(documents),
            "![the figures as a plot](results.png)",
            "“Met” compares the figure with its goal, noise and all. Every benchmark's own page tells what its figures are.",
            runs_table(documents),
        ]
    )
    (RESULTS / "results.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nWritten to {RESULTS}/results.md and results.png.")
    if given.publish:
        publish(documents, ROOT / "docs")
        print(f"Written to {ROOT}/docs/results.md and results.json.")


if __name__ == "__main__":
    summarize()
