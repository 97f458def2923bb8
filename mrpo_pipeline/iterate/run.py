"""`mrpo iterate`: rounds of training; the policy of each round is scored as the next round's anchor and trained further.

This is the hard update of TR-DPO (arXiv 2404.09656), offline: the policy replaces the reference at the end of a round instead of every
τ steps.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.models.files import adapter_content
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.policy.anchor_drift import DRIFT
from mrpo_pipeline.policy.output_dir import check_output_folder
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.terminal import text_table

log = logging.getLogger("mrpo")

_SHOWN = ("eval_accuracy/policy", "train_loss", "eval_loss")
_DRIFT = ("drift/chosen_per_token", "drift/rejected_per_token")


@dataclass(frozen=True)
class Round:
    """One round's results.

    Attributes:
        folder: output folder of ``mrpo train``. anchor: the anchor's name in the cache.
        metrics: of ``train_results.json`` and ``eval_results.json``. Their drift is from this round's anchor.
        drift: by name of ``DRIFT``, from the first round's anchor: the sum over rounds. Empty without held-out pairs.
    """

    folder: Path
    anchor: str
    metrics: dict[str, float]
    drift: dict[str, float]


def iterate_recipe(recipe: Recipe, rounds: int) -> list[Round]:
    """Score and train ``rounds`` rounds; every round except the first starts from the previous round's policy, which is its anchor.

    A round is ``mrpo score-refs`` and ``mrpo train --resume`` of a recipe that differs from the given one only in ``policy.adapter``,
    the anchor and ``output_dir``. So a killed call resumes where it stopped, and finished rounds are neither scored nor trained again.
    The new anchor is in the same cache, under a name with a hash of the adapter: ``round-1-5f0c9a3e``.

    Writes ``round-1``, ``round-2``, … to ``output_dir``, each an output folder of ``mrpo train``.

    Raises:
        UserError: as scoring and training do; for a method without references, and if a round was trained with other settings.
    """
    from mrpo_pipeline.policy.checkpoints import ChangedRunError
    from mrpo_pipeline.policy.distributed import require_one_process
    from mrpo_pipeline.policy.run import train_recipe
    from mrpo_pipeline.scoring import score_references

    require_one_process("mrpo iterate")
    if rounds < 1:
        raise UserError(f"The number of rounds is {rounds}: expected 1 or more. Correct it.")
    recipe.sources()
    check_output_folder(round_recipe(recipe, 1))
    done: list[Round] = []
    with held(recipe.output_dir, "mrpo iterate"):
        for number in range(1, rounds + 1):
            own = round_recipe(recipe, number)
            log.info("Round %d of %d, in %s", number, rounds, own.output_dir)
            score_references(own)
            try:
                metrics = train_recipe(own, resume=True)
            except ChangedRunError as error:
                raise UserError(
                    f"Round {number} in {own.output_dir} was trained with other settings: {error.differences}. The rounds after it "
                    "depend on it. Set them back, or give another --output-dir."
                ) from None
            _free_memory()
            before = done[-1].drift if done else {}
            drift = {
                name: before.get(name, 0.0) + metrics[f"eval_{name}"] for name in DRIFT if f"eval_{name}" in metrics
            }
            done.append(Round(Path(own.output_dir), next(iter(own.references)), metrics, drift))
    return done


def round_recipe(recipe: Recipe, number: int) -> Recipe:
    """The recipe of a round, counted from 1, after all earlier rounds have finished.

    Raises:
        UserError: a reward of the loss ``modpo`` reads the anchor, which would change it from round to round.
    """
    document = recipe.model_dump(mode="json")
    del document["compare"]  # its methods may name the anchor
    document["output_dir"] = str(Path(recipe.output_dir) / f"round-{number}")
    if number == 1:
        return parse_recipe(document)
    first, *others = recipe.references
    if any(first in (one.tuned, one.base) for one in recipe.method.modpo.values()):
        raise UserError(
            f"The setting method.modpo names the anchor {first}, which every round replaces: its reward would change with it. Expected "
            f"other references. Name {first}'s model a second time under `references:`, and set that name there."
        )
    policy = recipe.required_policy().model_copy(
        update={"adapter": str(Path(recipe.output_dir) / f"round-{number - 1}")}
    )
    anchor = policy.model_dump(mode="json", include=set(ModelSource.model_fields))
    anchor["scoring"] = recipe.references[first].scoring
    name = f"round-{number - 1}-{str(adapter_content('the policy', Path(str(policy.adapter))))[-8:]}"
    document["policy"] = policy.model_dump(mode="json")
    document["references"] = {name: anchor, **{other: document["references"][other] for other in others}}
    document["method"] = _renamed(document["method"], first, name)
    return parse_recipe(document, f"the recipe of round {number}")


def _renamed(method: dict[str, Any], anchor: str, name: str) -> dict[str, Any]:
    """The method with the old anchor's name replaced by the new one."""
    weights = method["weights"]
    if isinstance(weights, dict):
        weights = {key: name if key != "column" and value == anchor else value for key, value in weights.items()}
    single = method["aggregate"] == f"single:{anchor}"
    return {**method, "weights": weights, "aggregate": f"single:{name}" if single else method["aggregate"]}


def _free_memory() -> None:
    """Free the policy's GPU memory for the engine that scores it next."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def rounds_table(rounds: list[Round]) -> str:
    """Accuracy, losses and drift of every round, as plain text."""
    shown = [name for name in _SHOWN if all(name in one.metrics for one in rounds)]
    drift = [name for name in _DRIFT if all(name in one.drift for one in rounds)]
    header = ["round", *(name.removeprefix("eval_") for name in shown), *(f"{x} (first anchor)" for x in drift)]
    rows = [
        [str(number), *(f"{one.metrics[x]:.4f}" for x in shown), *_drift(one, drift)]
        for number, one in enumerate(rounds, 1)
    ]
    return text_table(header, rows)


def _drift(one: Round, names: list[str]) -> list[str]:
    return [f"{one.metrics[f'eval_{name}']:+.4f} ({one.drift[name]:+.4f})" for name in names]
