"""A really scored cache of a few tiny references, read as training reads it; damage to it is restored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tiny_references import hard_pairs, pair, plain_pairs, reference, write_pairs

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
from mrpo_pipeline.dataset.reference_logps import CachedPairs, join_references, open_caches
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.scoring import score_references

# name -> (architecture, tokenizer, settings), of three families; the last has a shorter context than the longest pair.
REFERENCES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "base": ("llama", "qwen", {}),
    "spm": ("mistral", "llama2", {}),
    "short": ("gpt_neox", "gpt2", {"max_position_embeddings": 160}),
}
NEAR = 1e-5
"""Nats that a log-prob may differ by when it is scored again."""


@dataclass
class RealCache:
    """Scored references, their recipe, and the results of an undamaged cache.

    Attributes:
        folder: contains models, pairs, the cache and a pristine copy of it.
        pairs: easy pairs beside the hard ones; shards follow from them.
    """

    folder: Path
    references: int = 3
    pairs: int = 60
    rows_per_shard: int = 40

    def __post_init__(self) -> None:
        self.names = list(REFERENCES)[: self.references]
        self.root = self.folder / "cache"
        self.pristine = self.folder / "pristine"
        models = {
            name: str(reference(self.folder / name, kind, tokenizer, **changes))
            for name, (kind, tokenizer, changes) in REFERENCES.items()
            if name in self.names
        }
        long = pair("A long one.", "word " * 180, "and " * 150, id="long")
        file = write_pairs(self.folder / "pairs.jsonl", [*hard_pairs(), *plain_pairs(self.pairs), long])
        self.document = {
            "pairs": {"train": str(file)},
            "policy": {"model": models["base"], "lora": {"target_modules": "all-linear"}},
            "references": {name: {"model": model} for name, model in models.items()},
            "cache": str(self.root),
            "limits": {"max_length": 400},
            "scoring": {"engine": "transformers", "rows_per_shard": self.rows_per_shard, "threads": 1},
            "training": {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "report_to": "none"},
            "output_dir": str(self.folder / "out"),
        }
        self.recipe: Recipe = parse_recipe(self.document)
        score_references(self.recipe)
        self.prepared = prepare_splits(self.recipe)["train"]
        self.wanted = wanted_completions([self.prepared]).select("completion_id", "cut")
        self.undamaged = self.train()
        shutil.copytree(self.root, self.pristine)
        self.rows = {name: self.cache(name).rows(self.wanted).sort("completion_id") for name in self.names}

    def cache(self, name: str) -> ReferenceCache:
        """The reference's cache, newly opened, so that nothing is remembered."""
        return ReferenceCache.open(self.root, name)

    def files(self, name: str, folder: str = "shards") -> list[Path]:
        """The reference's files of that folder, sorted."""
        return sorted((self.root / name / folder).glob("*.parquet"))

    def drop_sums(self) -> None:
        """Remove the derived sums, as before the first training run."""
        for name in self.names:
            shutil.rmtree(self.root / name / "sums", ignore_errors=True)

    def restore(self) -> None:
        """Restore the cache as it was scored, with its sums."""
        shutil.rmtree(self.root)
        shutil.copytree(self.pristine, self.root)

    def train(self) -> CachedPairs:
        """Everything that stage two reads from the caches, with its own functions; first the fingerprint of each is checked."""
        return join_references(open_caches(self.recipe), self.prepared)

    def read(self) -> CachedPairs:
        """The same if the references' files are known to be unchanged: their tokenizers are not loaded again."""
        caches = [self.cache(name) for name in self.names]
        for cache in caches:
            cache.manifest()
        return join_references(caches, self.prepared)

    def same(self, found: CachedPairs, near: float = 0.0) -> bool:
        """Whether these are the undamaged cache's pairs and sums, within ``near`` nats per token."""
        expected = self.undamaged
        return found.frame["pair_id"].equals(expected.frame["pair_id"]) and all(
            np.allclose(ours, theirs, rtol=0, atol=near * 400)
            for ours, theirs in (
                (found.logps_chosen, expected.logps_chosen),
                (found.logps_rejected, expected.logps_rejected),
            )
        )

    def differences(self) -> list[str]:
        """Differences between the cache's rows and those first scored: ids and ends exactly, log-probs by more than ``NEAR``."""
        wrong = []
        for name in self.names:
            found, expected = self.cache(name).rows(self.wanted).sort("completion_id"), self.rows[name]
            exact = pl.exclude("logprobs")
            if not found.select(exact).equals(expected.select(exact)):
                wrong.append(f"{name}: other rows are served")
                continue
            ours, theirs = (rows["logprobs"].explode().to_numpy() for rows in (found, expected))
            if not np.allclose(ours, theirs, rtol=0, atol=NEAR):
                wrong.append(f"{name}: log-probs differ by more than {NEAR:g}")
        return wrong
