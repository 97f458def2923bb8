"""`mrpo evaluate`: the policy before and after training on the held-out pairs."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation.preferences import PolicyFigures, device_of_choice, evaluate_policy
from mrpo_pipeline.evaluation.samples import Sample, as_markdown, generate, readable
from mrpo_pipeline.recipe import Recipe

log = logging.getLogger("mrpo")

SHOWN = (
    ("accuracy/policy", "prefers the chosen side (sums)"),
    ("accuracy/policy_per_token", "prefers the chosen side (per token)"),
    ("accuracy/anchor", "moved towards the chosen side, against the anchor"),
    ("rewards/accuracies", "… against this method's own π̃"),
    ("rewards/margins", "reward margin"),
    ("loss", "loss"),
)


@dataclass
class Evaluation:
    """Held-out figures of a policy before and after training."""

    pairs: dict[str, Any]
    before: dict[str, float]
    after: dict[str, float]
    samples: list[Sample]
    folder: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "before": self.before,
            "after": self.after,
            "samples": [sample.as_dict() for sample in self.samples],
        }

    def table(self) -> str:
        """A plain table for the terminal, and the samples under it."""
        lines = [f"{self.pairs['pairs out']:,} held-out pairs", f"{'':28}{'before':>10}{'after':>10}"]
        lines += [f"{name:28}{self.before[name]:10.4f}{self.after[name]:10.4f}  {text}" for name, text in SHOWN]
        for sample in self.samples:
            lines += ["", f"prompt  {sample.prompt}", f"before  {sample.before}", f"after   {sample.after}"]
        lines += ["", f"Written to {self.folder}: evaluation.json, samples.md"]
        return "\n".join(lines)


def evaluate_recipe(recipe: Recipe, adapter: Path | None = None) -> Evaluation:
    """Measure the policy's start and the trained adapter on the recipe's held-out pairs, and write what was found.

    Args:
        adapter: the adapter's folder; the recipe's ``output_dir`` where None.

    Raises:
        UserError: where there is no adapter, no held-out pair, or a completion is not scored.
    """
    from mrpo_pipeline.cached_logps import open_caches
    from mrpo_pipeline.policy.model import load_policy
    from mrpo_pipeline.policy.processes import refuse_several
    from mrpo_pipeline.prepare import as_arrays
    from mrpo_pipeline.stage_two import check_method, examples_of, load_splits, loss_settings, policy_settings, trained

    refuse_several("mrpo evaluate")
    folder = Path(adapter if adapter is not None else recipe.output_dir)
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds no adapter: expected the output folder of `mrpo train`, with adapter_config.json. Train first, "
            "or give --adapter DIR."
        )
    check_method(recipe, recipe.method)
    caches = open_caches(recipe)
    # The training pairs are not looked at, unless the held-out ones are a part of them.
    if recipe.pairs.eval is not None:
        recipe = recipe.model_copy(update={"pairs": recipe.pairs.model_copy(update={"train": None})})
    split = load_splits(recipe, caches, "eval")["eval"]
    examples, _ = examples_of(split, recipe.method)
    settings = policy_settings(recipe, caches)
    frame = split.pairs.frame
    chosen = frame.head(recipe.evaluation.samples)
    samples = [
        Sample(readable(prompt), good, bad)
        for prompt, good, bad in chosen.select("prompt_read", "chosen", "rejected").iter_rows()
    ]
    figures: dict[str, PolicyFigures] = {}
    tokenizer = policy_tokenizer(recipe)
    for moment, start in (("before", settings), ("after", trained(settings, str(folder)))):
        model = load_policy(start).to(device_of_choice())
        figures[moment] = evaluate_policy(
            model, examples, loss_settings(recipe.method), what=f"evaluating {moment} training"
        )
        prompts = as_arrays(chosen["prompt_ids"])
        answers = generate(model, tokenizer, prompts, max_new_tokens=recipe.evaluation.max_new_tokens)
        for sample, answer in zip(samples, answers, strict=True):
            setattr(sample, moment, answer)
        del model
    result = Evaluation(split.counts(), figures["before"].metrics, figures["after"].metrics, samples, str(folder))
    (folder / "evaluation.json").write_text(
        json.dumps(result.as_dict(), indent=1, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "samples.md").write_text(as_markdown(samples), encoding="utf-8")
    return result


def policy_tokenizer(recipe: Recipe) -> Any:
    """The policy's tokenizer."""
    from transformers import AutoTokenizer

    policy = recipe.required_policy()
    return AutoTokenizer.from_pretrained(
        policy.tokenizer or policy.model, revision=policy.revision, trust_remote_code=policy.trust_remote_code
    )
