"""A synthetic comparison folder like that of `mrpo compare`, from a seed; no model is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

REFERENCES = ("base", "abacus", "atlas")
METHODS = (
    "dpo-base",
    "dpo-abacus",
    "dpo-atlas",
    "multi-dpo",
    "mrpo",
    "mrpo-geometric",
    "mrpo-sliding",
    "mrpo-thompson",
)


def make_comparison(
    folder: Path,
    *,
    methods: tuple[str, ...] = METHODS,
    references: tuple[str, ...] = REFERENCES,
    seeds: tuple[int, ...] = (0, 1, 2),
    pairs: int = 60,
    texts: list[tuple[str, str, str]] | None = None,
    stepwise: tuple[str, ...] = ("mrpo-sliding", "mrpo-thompson"),
    sentence: str = "",
    steps: int = 120,
    audited: bool = False,
) -> Path:
    """Write the complete folder, optionally with the audit. The first methods, one for each reference, are the single-
    reference ones. ``texts``: prompt, chosen, rejected of the first held-out pairs; the others are generated."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    ids = [f"{number:032x}" for number in chance.integers(0, 1 << 62, pairs)]
    own = texts or []
    shown = [own[row] if row < len(own) else _made_text(row) for row in range(pairs)]
    start = chance.normal(1.0, 6.0, pairs)
    _write_held_out(folder, ids, shown)
    _write_pairs(folder / "start", ids, start)
    (folder / "start" / "result.json").write_text(
        json.dumps({"metrics": {"accuracy/policy": float((start > 0).mean())}})
    )
    entries = []
    for place, method in enumerate(methods):
        baseline = place < len(references)
        accuracies: dict[str, list[float]] = {
            "accuracy/policy": [],
            "accuracy/policy_per_token": [],
            "accuracy/anchor": [],
        }
        for seed in seeds:
            margin = start + chance.normal(2.0 + 0.3 * place, 4.0, pairs)
            run = folder / method / f"seed-{seed}"
            _write_pairs(run, ids, margin)
            _write_log(run, chance, steps, place)
            if method in stepwise:
                _write_weights(run, chance, steps, references, drawn=method.endswith("thompson"))
            accuracies["accuracy/policy"].append(float((margin > 0).mean()))
            accuracies["accuracy/policy_per_token"].append(float((margin > 0.5).mean()))
            accuracies["accuracy/anchor"].append(float((margin > start).mean()))
        entries.append(_entry(method, baseline, accuracies, seeds, references, place))
    document = {
        "version": 1,
        "mrpo": "0.1.0",
        "versions": {"mrpo": "0.1.0", "python": "3.11.9", "torch": "2.9.0"},
        "finished": "2026-11-22T14:00:00+00:00",
        "pairs": {
            "train": {
                "read": 1000,
                "used": 997,
                "dropped": {"identical after the cut": 3},
                "cut_completions": 12,
            },
            "eval": {"read": pairs, "used": pairs},
        },
        "held_out": pairs,
        "seeds": list(seeds),
        "metrics": {
            "accuracy/policy": "prefers chosen",
            "accuracy/policy_per_token": "… per token",
            "accuracy/anchor": "moved to chosen",
            "rewards/accuracies": "… against own π̃ (not comparable)",
            "loss": "loss (not comparable)",
        },
        "verdict_metric": "accuracy/policy",
        "start": {
            "accuracy/policy": float((start > 0).mean()),
            "accuracy/policy_per_token": 0.6,
            "accuracy/anchor": 0.5,
        },
        "methods": entries,
        "comparisons": _comparisons(entries, len(references)),
        "verdict": {
            "sentence": sentence or f"No difference shown between {methods[-1]} and DPO with {references[-1]} alone.",
            "kind": "none" if len(seeds) > 1 else "one seed",
            "method": methods[-1],
            "against": methods[min(len(references), len(methods)) - 1],
            "drop": [],
            "sentences": [
                "About 4,100 more held-out pairs would be needed to see one point.",
                "No reference is shown to be worth more than the anchor alone.",
            ],
        },
        "costs": {"train_seconds_total": 512.4, "wall_seconds": 291.0, "processes": 2, "machine": "2 cores, 8 GiB"},
    }
    (folder / "comparison.json").write_text(json.dumps(document), encoding="utf-8")
    if audited:
        (folder / "audit.json").write_text(json.dumps(_audit(references)), encoding="utf-8")
    recipe = {
        "policy": {"model": "models/base"},
        "references": {name: {"model": f"models/{name}", "template": "auto"} for name in references},
        "method": {"beta": 0.1},
        "output_dir": "runs/made/output",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder


def _made_text(row: int) -> tuple[str, str, str]:
    return (f"What is {row} plus one?", f"It is {row + 1}.", f"It is {row}, I think.\n  * or not")


def _write_held_out(folder: Path, ids: list[str], texts: list[tuple[str, str, str]]) -> None:
    prompts, chosen, rejected = zip(*texts, strict=True)
    frame = pl.DataFrame({"pair_id": ids, "prompt": prompts, "chosen": chosen, "rejected": rejected})
    frame.with_columns(anchor_logps_chosen=pl.lit(-30.0), anchor_logps_rejected=pl.lit(-31.0)).write_parquet(
        folder / "held_out.parquet"
    )


def _write_pairs(folder: Path, ids: list[str], margin: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame({"pair_id": ids, "logps_chosen": -40 + margin / 2, "logps_rejected": -40 - margin / 2})
    frame.write_parquet(folder / "pairs.parquet")


def _write_log(folder: Path, chance: np.random.Generator, steps: int, place: int) -> None:
    history = []
    for step in range(10, steps + 1, 10):
        done = step / steps
        history.append(
            {
                "step": step,
                "loss": 0.69 - 0.05 * place * done**0.5 + float(chance.normal(0, 0.02)),
                "rewards/margins": 0.4 * place * done + float(chance.normal(0, 0.1)),
                "accuracy/policy": 0.6 + 0.2 * done + float(chance.normal(0, 0.04)),
            }
        )
    state = {"log_history": [*history, {"step": steps, "train_runtime": 3.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")


def _write_weights(
    folder: Path, chance: np.random.Generator, steps: int, references: tuple[str, ...], *, drawn: bool
) -> None:
    rows = []
    for step in range(1, steps + 1):
        shares = chance.dirichlet(np.linspace(1, 4 + step / 20, len(references)))
        if drawn:
            shares = np.eye(len(references))[chance.choice(len(references), p=shares)]
        rows += [(step, name, float(share)) for name, share in zip(references, shares, strict=True)]
    schema = {"step": pl.Int32, "reference": pl.String, "weight": pl.Float64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "weights.parquet")


def _entry(
    name: str,
    baseline: bool,
    accuracies: dict[str, list[float]],
    seeds: tuple[int, ...],
    references: tuple[str, ...],
    place: int,
) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for metric, values in accuracies.items():
        mean = float(np.mean(values))
        metrics[metric] = {"mean": mean, "low": mean - 0.05, "high": min(mean + 0.05, 1.0), "per_seed": values}
    for at, unit in enumerate(("chosen_per_token", "rejected_per_token", "chosen_per_byte", "rejected_per_byte")):
        drift = [0.02 * place, -0.05 * place, 0.005 * place, -0.0125 * place][at]
        metrics[f"drift/{unit}"] = {
            "mean": drift,
            "low": drift - 0.002,
            "high": drift + 0.002,
            "per_seed": [drift] * len(seeds),
        }
    metrics["loss"] = {"mean": 0.5, "low": 0.45, "high": 0.55, "per_seed": [0.5] * len(seeds)}
    shares = np.linspace(1, 2 + place, len(references))
    diagnostics = {"refs/effective_k": 1.7}
    for reference, share in zip(references, shares / shares.sum(), strict=True):
        diagnostics |= {f"refs/{reference}/weight": float(share), f"refs/{reference}/argmin_share": 1 / len(references)}
    return {
        "name": name,
        "describes": "DPO against one reference alone; sigmoid loss, β 0.1."
        if baseline
        else "MRPO; sigmoid loss, β 0.1.",
        "method": {"name": "mrpo", "beta": 0.1},
        "baseline": baseline,
        "metrics": metrics,
        "train_seconds": [8.0 + seed for seed in seeds],
        "diagnostics": diagnostics,
    }


def _comparisons(entries: list[dict[str, Any]], singles: int) -> list[dict[str, Any]]:
    found = []
    for metric in ("accuracy/policy", "accuracy/anchor"):
        for entry in entries[singles:]:
            for other in entries[:singles]:
                difference = entry["metrics"][metric]["mean"] - other["metrics"][metric]["mean"]
                found.append(
                    {
                        "metric": metric,
                        "method": entry["name"],
                        "against": other["name"],
                        "difference": difference,
                        "low": difference - 0.04,
                        "high": difference + 0.04,
                        "p": 0.03,
                        "p_corrected": 0.2 if abs(difference) < 0.08 else 0.0004,
                        "sd_pairs": 0.4,
                        "sd_seeds": 0.01,
                        "pairs_needed": 4100,
                        "question": "do several references do better than one",
                    }
                )
    return found


def _audit(references: tuple[str, ...]) -> dict[str, Any]:
    figures = {}
    for place, name in enumerate(references):
        share = {"share": 0.6 + 0.02 * place, "low": 0.55, "high": 0.7}
        figures[name] = {
            "nats_per_byte": {"chosen": 0.5 + 0.1 * place, "rejected": 0.62 + 0.1 * place},
            "nats_per_token": {"chosen": 2.1, "rejected": 2.2},
            "accuracy": share,
            "delta": {"mean": 3.1 - place, "median_abs": 7.5},
            "by_length": [
                {"bytes_from": 40 * part + 1, "bytes_to": 40 * part + 40, "pairs": 15, "delta_mean": 2.0 * part - place}
                for part in range(4)
            ],
        }
    two = [(a, b) for place, a in enumerate(references) for b in references[place + 1 :]]
    return {
        "version": 2,
        "references": figures,
        "findings": [
            {"reference": references[-1], "fault": "copy", "sentence": "It is a copy of another.", "severity": "broken"}
        ],
        "agreement": [{"references": [a, b], "same_ranking": 0.81, "delta": 0.5} for a, b in two],
        "weightings": {
            "weights": {"uniform": dict.fromkeys(references, 1 / len(references))},
            "validation_on": "these pairs",
        },
        "mrpo": {"effective_k": 1.34},
        "warnings": [{"reference": references[0], "sentence": "It spends few nats."}],
    }
