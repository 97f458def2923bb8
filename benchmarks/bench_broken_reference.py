"""One broken reference among sound ones: how much accuracy it costs each weighting and aggregate, and what `mrpo audit` reports.

    python benchmarks/bench_broken_reference.py [--fault padding|shuffled] [--seeds 0,1,2] [--epochs 1] [--beta 0.1]

The demo's pairs and models (base is the anchor). Three worlds are trained and measured by `mrpo compare` on one cache, with
the same starts and batches: **sound** (base, abacus, atlas); **broken**, where atlas was scored with its prompts padded on the
right and the completions after the pads (the model really runs on that), or has the log-probs of other texts; **dropped**
(base, abacus), what remains once the audit's findings are removed. Accuracy losses are paired by pair and seed, as in `mrpo compare`. The
trust region is off unless --trust-region is given: it also limits a broken reference.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measuring import ROOT, describe_machine, machine, one_thread, table, write_results

METHODS: dict[str, dict[str, Any]] = {
    "harmonic, uniform": {"aggregate": "harmonic", "weights": "uniform"},
    "geometric, uniform": {"aggregate": "geometric", "weights": "uniform"},
    "harmonic, ARWC": {"aggregate": "harmonic", "weights": "adaptive"},
    "geometric, ARWC": {"aggregate": "geometric", "weights": "adaptive"},
    "geometric, VDW": {"aggregate": "geometric", "weights": "validation-discrimination"},
    "geometric, VAW": {"aggregate": "geometric", "weights": "validation-accuracy"},
}
WORLDS = {"sound": ("base", "abacus", "atlas"), "broken": ("base", "abacus", "broken"), "dropped": ("base", "abacus")}


def recipe_of(world: str, models: Path, scratch: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The recipe of one world as plain data."""
    names = WORLDS[world]
    return {
        "pairs": {
            "train": str(ROOT / "data/demo_train.jsonl"),
            "eval": str(ROOT / "data/demo_eval.jsonl"),
            "weights_fraction": 0.2,
        },
        "policy": {"model": str(models / "base"), "lora": {"target_modules": "all-linear"}},
        "references": {name: {"model": str(models / ("atlas" if name == "broken" else name))} for name in names},
        "cache": str(scratch / "cache"),
        "limits": {"max_prompt_length": 128, "max_length": 192},
        "scoring": {"engine": "transformers"},
        "method": {"trust_region": {"kind": given.trust_region}, "beta": given.beta},
        "training": {
            "learning_rate": 2.0e-3,
            "num_train_epochs": given.epochs,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0.1,
            "save_strategy": "no",
        },
        "compare": {
            "methods": {name: {**keys, "name": "mrpo"} for name, keys in METHODS.items()},
            "seeds": given.seeds,
            "processes": given.processes,
        },
        "output_dir": str(scratch / world),
    }


def plant(recipe: Any, models: Path, fault: str) -> None:
    """Fill the cache of the reference ``broken``: atlas run on wrongly padded batches, or with log-probs of other texts."""
    from audit_faults import Model, padding, shuffled, sound

    from mrpo_pipeline.cache import ReferenceCache
    from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions

    manifest = ReferenceCache.open(recipe.cache, "atlas").manifest()
    assert manifest is not None
    cache = ReferenceCache.open(recipe.cache, "broken")
    cache.create_or_check(manifest.fingerprint, {"engine": "a fault made for this benchmark"})
    wanted = cache.missing(wanted_completions(list(prepare_splits(recipe).values())))
    if not wanted.height:
        return
    atlas = Model(models / "atlas")
    if fault == "padding":
        rows = padding(atlas, wanted, "between")
    else:
        rows = shuffled(sound(atlas, wanted), np.random.default_rng(0), "numbers")
    with cache.writer() as writer:
        for row in rows:
            writer.add(row)


@dataclass(frozen=True)
class World:
    """One comparison: its folder and its document."""

    folder: Path
    document: dict[str, Any]

    def method(self, name: str) -> dict[str, Any]:
        """The method of that name, or the one whose runs it shares if both train the same."""
        methods: list[dict[str, Any]] = self.document["methods"]
        return next(one for one in methods if name == one["name"] or name in one["also"])

    def share(self, name: str) -> str:
        return "{mean:.3f} ({low:.3f} to {high:.3f})".format(**self.method(name)["metrics"]["accuracy/policy"])

    def right(self, name: str, seeds: list[int]) -> pl.DataFrame:
        """``pair_id``, ``prompt``, and for each seed whether the method's policy prefers the chosen side (½ for a tie)."""
        found = pl.read_parquet(self.folder / "held_out.parquet", columns=["pair_id", "prompt"])
        for seed in seeds:
            pairs = pl.read_parquet(self.folder / self.method(name)["name"] / f"seed-{seed}" / "pairs.parquet")
            ahead = (pl.col("logps_chosen") - pl.col("logps_rejected")).sign() / 2 + 0.5
            found = found.join(pairs.select("pair_id", ahead.alias(str(seed))), on="pair_id", maintain_order="left")
        return found


def change(before: World, after: World, name: str, seeds: list[int]) -> str:
    """Accuracy in the second world minus the first, in points, with its 95% interval."""
    from mrpo_pipeline.evaluation.intervals import mean_known

    columns = [str(seed) for seed in seeds]
    both = before.right(name, seeds).join(after.right(name, seeds), on="pair_id", suffix=" after")
    values = both.select(f"{seed} after" for seed in columns).to_numpy() - both.select(columns).to_numpy()
    known = mean_known(values, both["prompt"].rank("dense").to_numpy().astype(np.int64) - 1)
    return f"{100 * known.mean:+.1f} ({100 * known.low:+.1f} to {100 * known.high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="the demo's models; made where not given")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--fault", default="padding", choices=("padding", "shuffled"))
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--processes", default="auto")
    parser.add_argument("--trust-region", default="off", choices=("off", "fixed", "adaptive"))
    parser.add_argument("--scratch", type=Path, help="where caches and runs lie; kept if given")
    given = parser.parse_args()
    given.processes = given.processes if given.processes == "auto" else int(given.processes)
    found = machine()
    with tempfile.TemporaryDirectory() as temporary, one_thread():
        from mrpo_pipeline.audit import audit_recipe
        from mrpo_pipeline.compare import compare_recipe
        from mrpo_pipeline.demo.models import make_models
        from mrpo_pipeline.recipe import parse_recipe
        from mrpo_pipeline.scoring import score_references
        from mrpo_pipeline.terminal import show_messages

        show_messages()
        scratch = given.scratch or Path(temporary)
        models = given.models or scratch / "models"
        make_models(models)
        recipes = {world: parse_recipe(recipe_of(world, models, scratch, given)) for world in WORLDS}
        score_references(recipes["sound"])
        plant(recipes["broken"], models, given.fault)
        audits = {world: audit_recipe(recipe) for world, recipe in recipes.items()}
        worlds = {world: World(scratch / world, compare_recipe(recipe).as_dict()) for world, recipe in recipes.items()}
        changes = {
            name: [
                change(worlds["sound"], worlds["broken"], name, given.seeds),
                change(worlds["broken"], worlds["dropped"], name, given.seeds),
            ]
            for name in METHODS
        }

    def weight(name: str) -> str:
        return f"{worlds['broken'].method(name)['diagnostics'].get('refs/broken/weight', float('nan')):.2f}"

    body = [[name, *(world.share(name) for world in worlds.values()), *changes[name], weight(name)] for name in METHODS]
    singles = [
        [
            f"DPO against {name}",
            *(worlds[world].share(f"dpo-{name}") if name in WORLDS[world] else "–" for world in WORLDS),
            *("–", "–", "–"),
        ]
        for name in ("base", "abacus", "atlas", "broken")
    ]
    findings = {world: [f"{one.reference}: {one.fault}" for one in audit.findings] for world, audit in audits.items()}
    text = (
        f"{describe_machine(found)}\n\n"
        f"accuracy/policy on {worlds['sound'].document['held_out']:,} held-out pairs, mean over seeds {given.seeds} and its 95% interval; "
        f"before training {worlds['sound'].document['start']['accuracy/policy']:.3f}; trust region {given.trust_region}, β {given.beta}, "
        f"{given.epochs:g} epochs, fault: {given.fault}\n\n"
        + table(
            ["method", *WORLDS, "sound → broken", "broken → dropped", "weight of the broken one"], [*body, *singles]
        )
        + "\n\n"
        + "\n".join(f"mrpo audit, {world}: {'; '.join(told) or 'no finding'}" for world, told in findings.items())
    )
    document = {
        "machine": found,
        "given": {**vars(given), "models": None, "scratch": None},
        "worlds": {name: one.document for name, one in worlds.items()},
    }
    write_results(f"broken-reference-{given.fault}", {**document, "changes": changes, "findings": findings}, text)


if __name__ == "__main__":
    main()
