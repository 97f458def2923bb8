"""The settings of a recipe. Keys under ``training`` are those of ``transformers.TrainingArguments``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import write_whole
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.models.engine_options import NO_OPTIONS, describe_altering
from mrpo_pipeline.models.server import Server
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.recipe.pairs_settings import Pairs
from mrpo_pipeline.recipe.plain_yaml import write_yaml
from mrpo_pipeline.settings_base import Name, Settings
from mrpo_pipeline.targets.settings import TargetSettings

# The paper's settings [MRPO, code] that differ from transformers' defaults.
TRAINING_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1.0e-5,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "seed": 0,
}


class Lora(Settings):
    """The LoRA adapter, with peft's names without the ``lora_`` prefix."""

    r: int = Field(8, ge=1)
    """Rank."""
    alpha: float = Field(16, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input during training."""
    target_modules: list[str] | str = ["q_proj", "v_proj"]
    """Names of linear modules of the language model, or `all-linear` for all except the output head."""
    use_rslora: bool = False
    """Scale by alpha / √r (arXiv 2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed adapters (arXiv 2402.09353)."""


class Reference(ModelSource):
    """A reference. ``scoring`` overrides keys of the recipe's ``scoring`` for this reference."""

    server: Server | None = None
    """A running vLLM server that scores this reference: its URL, or the keys below. Only the tokenizer of `model` is loaded then, and
    nothing if `tokenizer` is set."""
    scoring: dict[str, Any] = {}
    """Overrides of `scoring` for this reference."""

    @property
    def served(self) -> Server | None:
        return self.server

    @pydantic.model_validator(mode="before")
    @classmethod
    def _model_of_server(cls, values: Any) -> Any:
        """The model of a served reference defaults to its tokenizer."""
        served = isinstance(values, dict) and values.get("server") is not None
        return {"model": values["tokenizer"], **values} if served and "tokenizer" in values else values


class Policy(ModelSource):
    """The policy: its base model, its adapter, and the check of its start against the cached anchor."""

    lora: Lora = Lora()
    """The adapter to train."""
    check_anchor: bool = True
    """Compare the policy's start with the cached anchor before the first step, and stop if they differ. Set `false` for a policy
    that is meant to start elsewhere: plan, score-refs, train and the model card then report it."""

    _name: str = pydantic.PrivateAttr("policy")


class Limits(Settings):
    """Maximum lengths in the policy's tokens; null for no limit."""

    max_prompt_length: int | None = Field(None, ge=1)
    """Longer prompts lose their oldest turns, then their beginning. By default half of `max_length`."""
    max_length: int | None = Field(1024, ge=2)
    """Length of prompt and completion together; longer completions are cut at the same byte for every model."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _half_for_the_prompt(cls, values: Any) -> Any:
        if isinstance(values, dict) and "max_prompt_length" not in values:
            longest = values.get("max_length", 1024)
            if type(longest) is int:
                return {**values, "max_prompt_length": max(longest // 2, 1)}
        return values


class Scoring(Settings):
    """Stage one. Other keys are passed to the engine as its options. Options that may change the log-probs (such as
    ``hf_overrides`` and ``kv_cache_dtype``; all except known ones of memory, batching and parallelism) are part of a cache's
    fingerprint.

    ``runtime: local`` scores in this process, or in several ``workers`` processes of this machine; ``ray`` scores on the
    cluster that Ray is connected to. ``check`` recomputes some completions of each reference by transformers after scoring.
    """

    model_config = ConfigDict(extra="allow")

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto`: on a GPU vLLM if it is installed and supports the model, else transformers; on a CPU transformers, unless an option
    of vLLM is set."""
    runtime: Literal["local", "ray"] = "local"
    """Score on this machine, or on the cluster that Ray is connected to."""
    workers: int | None = Field(None, ge=1)
    """Number of scoring processes. Null: one, or with Ray as many as the cluster has room for."""
    unit: int = Field(4096, ge=1)
    """Completions assigned to a worker at a time."""
    check: int = Field(0, ge=0)
    """Number of completions of each reference to recompute by transformers after scoring."""
    rows_per_shard: int = Field(4096, ge=1)
    """Most completions in a shard."""
    seconds_per_shard: float = Field(60.0, gt=0)
    """Seconds after which a shard is written; a killed run loses at most this."""

    @property
    def engine_options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Method(LossSettings, TargetSettings):
    """The objective of stage two: target and loss (arXiv 2405.16388)."""


class Evaluation(Settings):
    """Held-out evaluation: sample generations before and after training, and downstream tasks."""

    samples: int = Field(3, ge=0)
    """Held-out prompts to generate from before and after training."""
    max_new_tokens: int = Field(64, ge=1)
    """Maximum tokens of such a generation."""
    tasks: list[str] = []
    """Downstream tasks: names of lm-evaluation-harness, or YAML files."""
    include_path: str | list[str] | None = None
    """Folders with YAML files of additional tasks."""
    num_fewshot: int | None = Field(None, ge=0)
    """Few-shot examples of each question; null for each task's own number."""
    tasks_limit: float | None = Field(None, gt=0)
    """Documents of each task, or a share below 1; null for all."""
    tasks_batch_size: int | str = 8
    """Requests in a batch; `auto` finds the largest that fits a GPU."""
    chat_template: bool = False
    """Apply the tokenizer's chat template to the tasks."""

    @pydantic.field_validator("tasks_batch_size")
    @classmethod
    def _requests(cls, value: int | str) -> int | str:
        if value < 1 if isinstance(value, int) else not re.fullmatch("auto(:[1-9][0-9]*)?", value):
            raise ValueError("a whole number of 1 or more, or auto")
        return value

    @pydantic.field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        # A comma may belong to the name of a task's file.
        return [value] if Path(value).is_file() else [name.strip() for name in value.split(",") if name.strip()]


class Sweep(Settings):
    """Values of ``method.beta``, ``method.trust_region.epsilon`` and ``method.weights_options.temperature`` to select from.

    Each method is compared with the setting that is best on the weights split (``pairs.weights_fraction``) with the first
    seed. The selection does not use the held-out pairs.
    """

    beta: list[Annotated[float, Field(gt=0)]] = []
    """Values of `method.beta`."""
    epsilon: list[Annotated[float, Field(ge=0, le=1)]] = []
    """Values of `method.trust_region.epsilon`."""
    temperature: list[Annotated[float, Field(gt=0)]] = []
    """Values of `method.weights_options.temperature`."""


class Compare(Settings):
    """What `mrpo compare` trains: methods by name, each with the keys of ``method`` that it changes, and the seeds.

    It always includes DPO against each single reference, and training without a reference: SimPO with β 2 and γ 1 unless a
    method has ``reference: none``. ``metric`` decides the verdict. ``leave_one_out`` shows which reference to drop, ``selection``
    whether a part of the pairs does as well as all.
    """

    methods: dict[str, dict[str, Any]] = {}
    """The keys of `method` that each method changes, by the method's name."""
    seeds: list[Annotated[int, Field(ge=0, le=2**32 - 1)]] = Field([0], min_length=1)
    """Seeds of adapter initialization and batch order; three or more show how much a result depends on them."""
    metric: Literal["accuracy/policy", "accuracy/policy_per_token", "accuracy/anchor"] = "accuracy/policy"
    """The metric that decides the verdict."""
    processes: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Number of parallel runs; `auto` for as many as fit the machine."""
    leave_one_out: bool = False
    """Also train the recipe's method without each reference except the anchor, with three references or more."""
    selection: Name | None = None
    """A file with the `pair_id` of training pairs, as `mrpo select` writes it: also train the recipe's method on these pairs alone,
    and compare it with the method trained on all pairs."""
    selection_as_many: Literal["steps", "epochs"] = "steps"
    """Train on the selection for as many optimizer steps as on all pairs (the same work, fewer pairs), or for as many epochs (each
    pair as often, less work)."""
    sweep: Sweep = Sweep()
    """Settings to select from on the third split."""

    @pydantic.field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds that differ from each other")
        return seeds


class Recipe(Settings):
    pairs: Pairs = Pairs()
    """The preference pairs and how to read them."""
    policy: Policy | None = None
    """The model to train."""
    references: dict[str, Reference] = {}
    """References by name, in order; the first is the anchor, the policy's starting point."""
    cache: Name = "cache"
    """The reference cache: a folder, or an object store's URL."""
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    """Maximum lengths in the policy's tokens."""
    scoring: Scoring = Scoring()
    """Stage one."""
    method: Method = Method()
    """The objective of stage two: target and loss."""
    training: dict[str, Any] = Field({}, validate_default=True)
    """Keys of `transformers.TrainingArguments`, and the optimizations below."""
    evaluation: Evaluation = Evaluation()
    """What `mrpo evaluate` measures."""
    compare: Compare = Compare()
    """What `mrpo compare` trains and how it compares."""
    output_dir: Name = "output"
    """The folder for results."""

    def sources(self) -> list[Reference]:
        """The references in order, the anchor first; raises UserError if there is none or the method has none."""
        if not self.method.has_reference:
            raise UserError(
                "The setting method.reference is none: the recipe trains without references, so there is nothing to score, audit, write "
                "as targets or compare with. Expected cached for this command. Set it (a comparison has methods without a reference "
                "under compare.methods), or run `mrpo train` and `mrpo evaluate`, which then read no cache."
            )
        if not self.references:
            raise UserError(
                "The recipe names no reference: expected at least one under `references:` (NAME: {model: DIR-OR-HUB-NAME}), "
                "the first being the anchor. Add one, or give --reference NAME=MODEL."
            )
        return [
            reference.named(
                name,
                NO_OPTIONS if reference.server else describe_altering(self.scoring_of(name).engine_options),
            )
            for name, reference in self.references.items()
        ]

    def scoring_of(self, reference: str) -> Scoring:
        """The recipe's ``scoring`` with the reference's own overrides."""
        return Scoring.model_validate({**self.scoring.model_dump(), **self.references[reference].scoring})

    def required_policy(self) -> Policy:
        if self.policy is None:
            raise UserError(
                "The recipe names no policy: expected `policy: {model: DIR-OR-HUB-NAME}`. Add it, or give --model MODEL."
            )
        return self.policy

    @pydantic.field_validator("training")
    @classmethod
    def _resolved(cls, training: dict[str, Any]) -> dict[str, Any]:
        # YAML 1.1 reads an unquoted `no` as false.
        off = {key: "no" for key, value in training.items() if value is False and key.endswith("_strategy")}
        return {**TRAINING_DEFAULTS, **training, **off}

    def dump(self) -> str:
        """The resolved recipe as YAML that loads to the same recipe: every key, including nulls."""
        return write_yaml(self.model_dump(mode="json"))

    def write(self, folder: str | Path) -> None:
        """Write the resolved recipe as ``folder/recipe.yaml``."""
        write_whole(Path(folder) / "recipe.yaml", self.dump())
