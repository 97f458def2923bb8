"""`mrpo compare`: methods × seeds trained and evaluated on one cache, side by side."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.evaluation.preferences import PolicyFigures, device_of_choice, evaluate_policy
from mrpo_pipeline.policy.examples import PreferenceExamples
from mrpo_pipeline.policy.settings import PolicySettings
from mrpo_pipeline.recipe import Method, Recipe, method_for, parse_recipe

log = logging.getLogger("mrpo")

RESULT = "result.json"
START = "start"
COLUMNS = {
    "accuracy/policy": "prefers chosen",
    "accuracy/policy_per_token": "… per token",
    "accuracy/anchor": "moved to chosen",
    "rewards/accuracies": "… against own π̃",
    "loss": "loss",
}


@dataclass
class Run:
    """One method and seed: its held-out averages and what its training cost."""

    method: str
    seed: int
    metrics: dict[str, float]
    train_seconds: float


@dataclass
class Comparison:
    """Everything that was compared, and where it lies."""

    folder: Path
    pairs: int
    start: dict[str, float]
    runs: list[Run]

    def rows(self) -> list[dict[str, Any]]:
        """One row a method, in the order they ran: the mean over seeds of each figure, and its range over seeds."""
        rows: list[dict[str, Any]] = [{"method": START, "seeds": 0, **{name: self.start.get(name) for name in COLUMNS}}]
        for method in dict.fromkeys(run.method for run in self.runs):
            own = [run for run in self.runs if run.method == method]
            row: dict[str, Any] = {"method": method, "seeds": len(own)}
            for name in COLUMNS:
                values = [run.metrics[name] for run in own]
                row[name] = float(np.mean(values))
                row[f"{name} range"] = [min(values), max(values)]
            row["train_seconds"] = float(np.mean([run.train_seconds for run in own]))
            rows.append(row)
        # Before training there is nothing to move from and no reward yet: half of all pairs tie, by definition.
        for name in ("accuracy/anchor", "rewards/accuracies", "loss"):
            rows[0][name] = None
        return rows

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        header = ["method", "seeds", *COLUMNS.values(), "s to train"]
        body = []
        for row in self.rows():
            cells = [row["method"], str(row["seeds"])]
            for name in COLUMNS:
                value = row[name]
                spread = row.get(f"{name} range")
                text = "–" if value is None else f"{value:.3f}"
                if spread and row["seeds"] > 1:
                    text += f" ±{(spread[1] - spread[0]) / 2:.3f}"
                cells.append(text)
            body.append([*cells, f"{row['train_seconds']:.0f}" if "train_seconds" in row else "–"])
        return header, body

    def table(self) -> str:
        """A plain table for the terminal."""
        header, body = self._cells()
        widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in [header, *body]
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", self._legend()])

    def markdown(self) -> str:
        """The same table for a document."""
        header, body = self._cells()
        lines = [header, ["---"] * len(header), *body]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"# Methods side by side\n\n{table}\n\n{self._legend()}\n"

    def _legend(self) -> str:
        return (
            f"{self.pairs:,} held-out pairs; shares of pairs, a tie counting one half; ± is half the range over seeds. "
            "“prefers chosen”: the policy's own log-prob is higher on the chosen side (needs no reference). “moved to "
            "chosen”: more so than the anchor's. “against own π̃” differs in meaning from method to method. With so many "
            f"pairs a share is known to about ±{1.96 * 0.5 / max(self.pairs, 1) ** 0.5:.3f}."
        )


def methods_of(recipe: Recipe) -> dict[str, Method]:
    """The recipe's methods by name; where it lists none, DPO against each reference, Multi-DPO and the recipe's own."""
    if recipe.compare.methods:
        return {name: method_for(recipe, name) for name in recipe.compare.methods}
    document = recipe.model_dump(mode="json")
    listed: dict[str, Mapping[str, Any]] = {
        f"dpo-{name}": {"name": "mrpo", "aggregate": f"single:{name}"} for name in recipe.references
    }
    if len(recipe.references) > 1:
        listed |= {"multi-dpo": {"name": "multi-dpo", "aggregate": "harmonic"}, "mrpo": {}}
    document["compare"]["methods"] = listed
    listing = parse_recipe(document)
    return {name: method_for(listing, name) for name in listed}


def compare_recipe(recipe: Recipe) -> Comparison:
    """Train and evaluate every method with every seed; what an earlier call finished is taken as it is.

    Leaves in ``output_dir``: ``METHOD/seed-N/`` (what ``mrpo train`` leaves, ``result.json`` and ``pairs.parquet``),
    ``comparison.json``, ``comparison.md`` and ``comparison.png``.
    """
    from mrpo_pipeline.cached_logps import open_caches
    from mrpo_pipeline.policy.model import load_policy
    from mrpo_pipeline.policy.processes import refuse_several
    from mrpo_pipeline.stage_two import (
        card_of,
        check_method,
        examples_of,
        load_splits,
        loss_settings,
        policy_settings,
        with_seed,
    )  # fmt: skip

    refuse_several("mrpo compare")
    methods = methods_of(recipe)
    for method in methods.values():
        check_method(recipe, method)
    caches = open_caches(recipe)
    splits = load_splits(recipe, caches, "train", "eval")
    settings = policy_settings(recipe, caches)
    folder = Path(recipe.output_dir)
    recipe.write(folder)
    pair_ids = splits["eval"].pairs.frame["pair_id"]

    runs = []
    for number, (name, method) in enumerate(methods.items(), 1):
        own = recipe.model_copy(update={"method": method})
        train, targets = examples_of(splits["train"], method)
        held_out, _ = examples_of(splits["eval"], method)
        for seed in recipe.compare.seeds:
            place = folder / name / f"seed-{seed}"
            seeded = with_seed(own, seed).model_copy(update={"output_dir": str(place)})
            key = _key(train, held_out, settings, seeded)
            finished = _finished(place, key)
            what = f"{name}, seed {seed} ({number} of {len(methods)})"
            if finished is not None:
                log.info("%s: done before", what)
                runs.append(Run(name, seed, finished["metrics"], finished["train_seconds"]))
                continue
            log.info("%s: %s", what, "training")
            began = time.monotonic()
            figures = _train_one(seeded, settings, train, held_out, card_of(seeded, splits), dict(targets.diagnostics))
            run = Run(name, seed, figures.metrics, time.monotonic() - began)
            _write_pairs(place / "pairs.parquet", pair_ids, figures)
            _write_json(place / RESULT, {"key": key, "metrics": run.metrics, "train_seconds": run.train_seconds})
            runs.append(run)

    start_key = _key(held_out, held_out, settings, recipe)
    done = _finished(folder / START, start_key)
    if done is None:
        model = load_policy(settings).to(device_of_choice())
        figures = evaluate_policy(model, held_out, loss_settings(recipe.method), what="evaluating the start")
        del model
        _write_pairs(folder / START / "pairs.parquet", pair_ids, figures)
        done = {"key": start_key, "metrics": figures.metrics}
        _write_json(folder / START / RESULT, done)
    comparison = Comparison(folder, len(held_out), done["metrics"], runs)
    _write_json(folder / "comparison.json", {"pairs": len(held_out), "methods": comparison.rows()})
    (folder / "comparison.md").write_text(comparison.markdown(), encoding="utf-8")
    _plot(comparison, folder / "comparison.png")
    return comparison


def _train_one(
    recipe: Recipe,
    settings: PolicySettings,
    train: PreferenceExamples,
    held_out: PreferenceExamples,
    card: dict[str, Any],
    diagnostics: dict[str, float],
) -> PolicyFigures:
    """Train one method with one seed, then measure the adapter that lies on disk, as a user would load it."""
    from mrpo_pipeline.policy.model import load_policy
    from mrpo_pipeline.policy.train import train_policy
    from mrpo_pipeline.stage_two import loss_settings, trained

    loss = loss_settings(recipe.method)
    recipe.write(recipe.output_dir)
    training = recipe.training_arguments()
    # Held-out pairs are looked at during training where the recipe says so; at the end, below, in any case.
    along = held_out if training.get("eval_strategy", "no") != "no" else None
    train_policy(settings, train, along, loss, training, recipe.output_dir, card=card, diagnostics=diagnostics)
    model = load_policy(trained(settings, recipe.output_dir)).to(device_of_choice())
    return evaluate_policy(model, held_out, loss, what="evaluating")


def _key(train: PreferenceExamples, held_out: PreferenceExamples, settings: PolicySettings, recipe: Recipe) -> str:
    """Everything that decides a run's result: pairs, targets, policy, loss, training."""
    from mrpo_pipeline.policy.checkpoints import examples_digest

    parts = [
        examples_digest(train),
        examples_digest(held_out),
        repr(settings),
        recipe.method.model_dump_json(),
        json.dumps(recipe.training_arguments(), sort_keys=True, default=str),
    ]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _finished(place: Path, key: str) -> dict[str, Any] | None:
    """The result of an earlier call, where it is of the same run."""
    try:
        result = json.loads((place / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("key") == key else None


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def _write_pairs(path: Path, pair_ids: pl.Series, figures: PolicyFigures) -> None:
    """The policy's sums of every held-out pair, nats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {"pair_id": pair_ids, "logps_chosen": figures.chosen, "logps_rejected": figures.rejected}
    ).write_parquet(path)


def _plot(comparison: Comparison, path: Path) -> None:
    """One dot a seed and a bar for the mean, for the two shares that need no method of their own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = list(dict.fromkeys(run.method for run in comparison.runs))
    shown = {
        "accuracy/policy": "prefers the chosen side\n(no reference needed)",
        "accuracy/anchor": "moved towards the chosen side\n(against the anchor)",
    }
    figure, axes = pyplot.subplots(1, len(shown), figsize=(10, 0.45 * len(methods) + 1.9), sharey=True)
    for axis, (name, title) in zip(axes, shown.items(), strict=True):
        for at, method in enumerate(methods):
            values = [run.metrics[name] for run in comparison.runs if run.method == method]
            axis.barh(at, np.mean(values), color="#8fb3d9", height=0.62)
            axis.plot(values, [at] * len(values), "o", color="#1f3b5c", markersize=4)
            axis.text(0.02, at, f"{np.mean(values):.3f}", va="center", ha="left", fontsize=9, color="#1f3b5c")
        level = comparison.start["accuracy/policy"] if name == "accuracy/policy" else 0.5
        label = "before training" if name == "accuracy/policy" else "chance"
        axis.axvline(level, color="#b5483a", linewidth=1.2, linestyle="--", label=f"{label}: {level:.3f}")
        axis.set(xlim=(0, 1), title=title, xlabel=f"share of {comparison.pairs:,} held-out pairs")
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.55 / (0.45 * len(methods) + 0.1)), fontsize=8, frameon=False
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
