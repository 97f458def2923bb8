"""The settings of a recipe. Keys under ``training`` are those of ``transformers.TrainingArguments``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.references import ModelSource

# The authors' settings [MRPO, code], where transformers' own defaults differ.
TRAINING_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1.0e-5,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "seed": 0,
}


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class Pairs(Settings):
    """Where the preference pairs lie and how to read them."""

    train: str | list[str] | None = None
    eval: str | list[str] | None = None
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    weights_fraction: float = Field(0.0, ge=0, lt=1)
    columns: dict[Literal["prompt", "chosen", "rejected", "id", "completions", "ranks", "scores"], str] = {}
    strings: Literal["text", "messages"] = "text"
    on_bad_row: Literal["error", "skip"] = "error"


class Lora(Settings):
    """Low-rank adapters, named as peft names them without the ``lora_`` prefix."""

    r: int = Field(8, ge=1)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | str = ["q_proj", "v_proj"]
    use_rslora: bool = False
    use_dora: bool = False


class Model(Settings):
    """A model and how it reads text."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    tokenizer: str | None = None
    template: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    trust_remote_code: bool = False

    def source(self, name: str) -> ModelSource:
        return ModelSource(name=name, **self.model_dump(include=set(Model.model_fields)))


class Reference(Model):
    """A reference. ``scoring`` holds keys of the recipe's ``scoring`` that are other ones for this reference."""

    scoring: dict[str, Any] = {}


class Policy(Model):
    """The policy: its start, its adapters, and whether its start is checked against the cached anchor."""

    lora: Lora = Lora()
    check_anchor: bool = True


class Limits(Settings):
    """Lengths in the policy's tokens; null for none. A prompt may take half of ``max_length`` where nothing is said."""

    max_prompt_length: int | None = Field(None, ge=1)
    max_length: int | None = Field(1024, ge=2)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _half_for_the_prompt(cls, values: Any) -> Any:
        if isinstance(values, dict) and "max_prompt_length" not in values:
            longest = values.get("max_length", 1024)
            if isinstance(longest, int):
                return {**values, "max_prompt_length": max(longest // 2, 1)}
        return values


class Scoring(BaseModel):
    """Stage one. Keys beyond these are options of the engine and reach it as they stand.

    ``runtime: local`` scores in this process, or in ``workers`` processes of this machine where more than one is asked;
    ``ray`` on the cluster that Ray is connected to (``workers``: null for as many as it has room for). ``check``
    completions of each reference are computed again by transformers once it is scored.
    """

    model_config = ConfigDict(extra="allow", validate_default=True)

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    runtime: Literal["local", "ray"] = "local"
    workers: int | None = Field(None, ge=1)
    unit: int = Field(4096, ge=1)
    check: int = Field(0, ge=0)
    rows_per_shard: int = Field(4096, ge=1)
    seconds_per_shard: float = Field(60.0, gt=0)

    @property
    def engine_options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrustRegion(Settings):
    kind: Literal["adaptive", "fixed", "off"] = "adaptive"
    epsilon: float = Field(0.1, ge=0)


class WeightsOptions(Settings):
    floor: float = Field(0.0, ge=0, lt=1)
    temperature: float = Field(1.0, gt=0)


class Method(Settings):
    """What stage two trains against, and its loss (METHOD: arXiv 2405.16388)."""

    name: Literal["mrpo", "multi-dpo", "dpo"] = "mrpo"
    aggregate: str = Field("harmonic", pattern=r"^(harmonic|geometric|arithmetic|single:.+)$")
    weights: str | list[float] = "adaptive"
    weights_options: WeightsOptions = WeightsOptions()
    trust_region: TrustRegion = TrustRegion()
    compatibility: Literal["none", "official-code"] = "none"
    normalize: Literal["sum", "token", "byte"] = "sum"
    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    sft_weight: float = Field(0.0, ge=0)


class Evaluation(Settings):
    """Held-out evaluation: how many prompts to answer before and after, for a person to read."""

    samples: int = Field(3, ge=0)
    max_new_tokens: int = Field(64, ge=1)


class Compare(Settings):
    """Methods by name, each with the keys of ``method`` that it changes, and the seeds."""

    methods: dict[str, dict[str, Any]] = {}
    seeds: list[int] = Field([0], min_length=1)


class Recipe(Settings):
    pairs: Pairs = Pairs()
    policy: Policy | None = None
    references: dict[str, Reference] = {}
    cache: str = "cache"
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    scoring: Scoring = Scoring()
    method: Method = Method()
    training: dict[str, Any] = {}
    evaluation: Evaluation = Evaluation()
    compare: Compare = Compare()
    output_dir: str = "output"

    def sources(self) -> list[ModelSource]:
        """The references in order, the anchor first."""
        if not self.references:
            raise UserError(
                "The recipe names no reference: expected at least one under `references:` (NAME: {model: DIR-OR-HUB-NAME}), "
                "the first being the anchor. Add one, or give --reference NAME=MODEL."
            )
        return [settings.source(name) for name, settings in self.references.items()]

    def scoring_of(self, reference: str) -> Scoring:
        """How this reference is scored: the recipe's ``scoring`` with the reference's own keys laid over it."""
        return Scoring.model_validate({**self.scoring.model_dump(), **self.references[reference].scoring})

    def required_policy(self) -> Policy:
        if self.policy is None:
            raise UserError(
                "The recipe names no policy: expected `policy: {model: DIR-OR-HUB-NAME}`. Add it, or give --model MODEL."
            )
        return self.policy

    def training_arguments(self) -> dict[str, Any]:
        return {**TRAINING_DEFAULTS, **self.training}

    def dump(self) -> str:
        """The resolved recipe as YAML that loads to the same recipe."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["training"] = self.training_arguments()
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    def write(self, folder: str | Path) -> None:
        """Write the resolved recipe as ``folder/recipe.yaml``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "recipe.yaml").write_text(self.dump(), encoding="utf-8")
