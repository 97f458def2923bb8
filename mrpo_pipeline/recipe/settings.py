"""The settings of a recipe. Keys under ``training`` are those of ``transformers.TrainingArguments``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import ConfigDict, Field

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import write_whole
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.models.engine_options import describe_altering
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.recipe.plain_yaml import write_yaml
from mrpo_pipeline.settings import Name, Settings
from mrpo_pipeline.targets.settings import TargetSettings

# The authors' settings [MRPO, code], where transformers' own defaults differ.
TRAINING_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1.0e-5,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "seed": 0,
}


class Source(NamedTuple):
    """Pairs of one kind: the files, folders, URLs or data sets, and the split and subset to take of them."""

    name: str
    place: str | list[str]
    split: str | None
    subset: str | None

    @property
    def chosen(self) -> dict[str, Any]:
        """What is taken of it: the options of ``pairs.sources.find_files``."""
        return {"split": self.split, "subset": self.subset, "held_out": self.name == "eval"}


class Pairs(Settings):
    """Where the preference pairs lie and how to read them."""

    train: Name | list[Name] | None = None
    """Training pairs: a file, folder, glob, URL or data set of the hub (`org/name`, `org/name@revision`), or a list of them."""
    eval: Name | list[Name] | None = None
    """Held-out pairs, likewise. Null: `eval_fraction` decides."""
    split: Name | None = None
    """The split that `train` takes of a data set with several; null: the one named train, or the only one."""
    eval_split: Name | None = None
    """The split that `eval` takes, likewise; null: the only one named test, validation or the like."""
    subset: Name | None = None
    """The subset (configuration) that `train` takes of a data set of the hub, or a copy of one; null: its default, or the only one."""
    eval_subset: Name | None = None
    """The subset that `eval` takes, likewise; null: `subset`, where both name the same data set."""
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """Hold this share of the training prompts out for evaluation; splits are by prompt, never by row."""
    weights_fraction: float = Field(0.0, ge=0, lt=1)
    """Hold this share out as a third split, for weights that look at held-out pairs and for sweeps."""
    columns: dict[
        Literal[
            "prompt", "system", "chosen", "rejected", "id", "completions", "ranks", "scores", "tools", "chat_template_kwargs"
        ],
        str | list[str],
    ] = {}  # fmt: skip
    """Our name: the file's name, for columns that have other names there; for `prompt` also a list, joined by a blank line."""
    layout: str = "auto"
    """The columns of a well-known set (`mrpo recipes layouts`): `auto` recognises them, `as-is` takes our names."""
    ignore_columns: list[str] = []
    """Columns that usually hold a part of the prompt (`system`, `input`, `context`, …) and are left out on purpose."""
    serialized: Literal["error", "parse", "text"] = "error"
    """Strings that hold a conversation as JSON or Python text: refuse them, read the messages, or take them as text. A prompt
    that a chat template has rendered is refused but for `text`."""
    strings: Literal["text", "messages"] = "text"
    """How string columns are read: raw text without a template (TRL's habit), or one user and one assistant turn."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that can't be used: stop before any model loads, or count it by its reason and go on."""

    def sources(self) -> list[Source]:
        """The sources that are named, for training first, each with what is taken of it."""
        same = self.eval == self.train
        eval_subset = self.subset if self.eval_subset is None and same else self.eval_subset
        return [
            Source(name, place, split, subset)
            for name, place, split, subset in (
                ("train", self.train, self.split, self.subset),
                ("eval", self.eval, self.eval_split, eval_subset),
            )
            if place is not None
        ]

    def required_sources(self) -> list[Source]:
        """``sources()`` of a recipe that has to name pairs. Raises UserError where it names none."""
        found = self.sources()
        if not found:
            raise UserError(
                "The recipe names no pairs: expected `pairs: {train: FILE-OR-GLOB}`. Add it, or give --train-file FILE."
            )
        return found

    def reading(self) -> dict[str, Any]:
        """How files are read: the options of ``pairs.read_pairs``."""
        return self.model_dump(
            include={"columns", "layout", "ignore_columns", "serialized", "strings", "on_bad_row"}, mode="json"
        )


class Lora(Settings):
    """Low-rank adapters, named as peft names them without the ``lora_`` prefix."""

    r: int = Field(8, ge=1)
    """Rank."""
    alpha: float = Field(16, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input, in training only."""
    target_modules: list[str] | str = ["q_proj", "v_proj"]
    """Names of linear modules of the language model, or `all-linear`: all of them but the output head."""
    use_rslora: bool = False
    """Scale by alpha / √r (arXiv 2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed adapters (arXiv 2402.09353)."""


class Reference(ModelSource):
    """A reference. ``scoring`` holds keys of the recipe's ``scoring`` that are other ones for this reference."""

    scoring: dict[str, Any] = {}
    """Keys of `scoring` that are other ones for this reference."""


class Policy(ModelSource):
    """The policy: its start, its adapters, and whether its start is checked against the cached anchor."""

    lora: Lora = Lora()
    """The adapter that is trained."""
    check_anchor: bool = True
    """Compare the policy's start with the cached anchor before the first step, and stop where they differ. `false` where the
    policy starts elsewhere by intent: plan, score-refs, train and the model card then report it."""

    _name: str = pydantic.PrivateAttr("policy")


class Limits(Settings):
    """Lengths in the policy's tokens; null for none. A prompt may take half of ``max_length`` where nothing is said."""

    max_prompt_length: int | None = Field(None, ge=1)
    """Longer prompts lose their oldest turns, then their beginning. Half of `max_length` where not given."""
    max_length: int | None = Field(1024, ge=2)
    """Prompt and completion together; longer completions are cut at one byte for every model."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _half_for_the_prompt(cls, values: Any) -> Any:
        if isinstance(values, dict) and "max_prompt_length" not in values:
            longest = values.get("max_length", 1024)
            if type(longest) is int:
                return {**values, "max_prompt_length": max(longest // 2, 1)}
        return values


class Scoring(Settings):
    """Stage one. Keys beyond these are options of the engine and reach it as they stand. Those that may change the numbers
    (``hf_overrides``, ``kv_cache_dtype``: all but what is known to be of memory, batches, parallelism and the like) are part of
    what a cache is compared by.

    ``runtime: local`` scores in this process, or in ``workers`` processes of this machine where more than one is asked;
    ``ray`` on the cluster that Ray is connected to (``workers``: null for as many as it has room for). ``check``
    completions of each reference are computed again by transformers once it is scored.
    """

    model_config = ConfigDict(extra="allow")

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto` is vLLM where it is installed and knows the model, else transformers."""
    runtime: Literal["local", "ray"] = "local"
    """Score on this machine, or on the cluster that Ray is connected to."""
    workers: int | None = Field(None, ge=1)
    """Processes that score. Null: one, or with Ray as many as the cluster has room for."""
    unit: int = Field(4096, ge=1)
    """Completions handed to a worker at once."""
    check: int = Field(0, ge=0)
    """Completions of each reference to compute again by transformers once it is scored."""
    rows_per_shard: int = Field(4096, ge=1)
    """Completions in a shard at most."""
    seconds_per_shard: float = Field(60.0, gt=0)
    """A shard is written after so long at most: what a killed run can lose."""

    @property
    def engine_options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Method(LossSettings, TargetSettings):
    """What stage two trains against, and its loss (METHOD: arXiv 2405.16388)."""


class Evaluation(Settings):
    """Held-out evaluation: prompts to answer before and after, for a person to read; and downstream tasks."""

    samples: int = Field(3, ge=0)
    """Held-out prompts to answer before and after training, for a person to read."""
    max_new_tokens: int = Field(64, ge=1)
    """Tokens of such an answer at most."""
    tasks: list[str] = []
    """Downstream tasks: names of lm-evaluation-harness, or YAML files."""
    include_path: str | list[str] | None = None
    """Folders with the YAML files of further tasks."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question; each task's own number where null."""
    tasks_limit: float | None = Field(None, gt=0)
    """Documents of each task, or a share below 1; all where null."""
    tasks_batch_size: int | str = 8
    """Requests at a time; `auto` finds out what a GPU holds."""
    chat_template: bool = False
    """Ask through the tokenizer's chat template."""

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
    """Values of ``method.beta``, ``method.trust_region.epsilon`` and ``method.weights_options.temperature`` to choose among.

    Each method gets the setting that does best on the weights split (``pairs.weights_fraction``), tried with the first seed;
    with that one it is then compared. The held-out pairs take no part in the choice.
    """

    beta: list[Annotated[float, Field(gt=0)]] = []
    """Values of `method.beta`."""
    epsilon: list[Annotated[float, Field(ge=0, le=1)]] = []
    """Values of `method.trust_region.epsilon`."""
    temperature: list[Annotated[float, Field(gt=0)]] = []
    """Values of `method.weights_options.temperature`."""


class Compare(Settings):
    """What `mrpo compare` trains: methods by name, each with the keys of ``method`` that it changes, and the seeds.

    DPO against each single reference is always among them. ``metric`` is what the verdict is about. ``processes`` are how
    many runs go on at a time: ``auto`` for as many as the machine has room for. ``leave_one_out`` adds the recipe's method
    without each reference but the anchor, where there are three or more, to tell which one to drop.
    """

    methods: dict[str, dict[str, Any]] = {}
    """By name, the keys of `method` that each method changes."""
    seeds: list[Annotated[int, Field(ge=0, le=2**32 - 1)]] = Field([0], min_length=1)
    """Of adapters' starts and batch order; three or more tell how far a result depends on them."""
    metric: Literal["accuracy/policy", "accuracy/policy_per_token", "accuracy/anchor"] = "accuracy/policy"
    """What the verdict is about."""
    processes: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Runs at a time; `auto` for as many as the machine has room for."""
    leave_one_out: bool = False
    """Also the recipe's method without each reference but the anchor, where there are three or more."""
    sweep: Sweep = Sweep()
    """Settings to choose among, on the third split."""

    @pydantic.field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds that differ from each other")
        return seeds


class Recipe(Settings):
    pairs: Pairs = Pairs()
    """Where the preference pairs lie and how to read them."""
    policy: Policy | None = None
    """The model that is trained."""
    references: dict[str, Reference] = {}
    """By name, in order; the first is the anchor, the policy's own starting point."""
    cache: Name = "cache"
    """The reference cache: a folder, or an object store's URL."""
    limits: Limits = Field(default_factory=lambda: Limits.model_validate({}))
    """Lengths, in the policy's tokens."""
    scoring: Scoring = Scoring()
    """Stage one."""
    method: Method = Method()
    """What stage two trains against, and its loss."""
    training: dict[str, Any] = {}
    """Keys of `transformers.TrainingArguments`, and those that make a step cheap."""
    evaluation: Evaluation = Evaluation()
    """What `mrpo evaluate` measures."""
    compare: Compare = Compare()
    """What `mrpo compare` trains and how it judges."""
    output_dir: Name = "output"
    """Where results go."""

    def sources(self) -> list[Reference]:
        """The references in order, the anchor first."""
        if not self.references:
            raise UserError(
                "The recipe names no reference: expected at least one under `references:` (NAME: {model: DIR-OR-HUB-NAME}), "
                "the first being the anchor. Add one, or give --reference NAME=MODEL."
            )
        return [
            reference.named(name, describe_altering(self.scoring_of(name).engine_options))
            for name, reference in self.references.items()
        ]

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

    @pydantic.field_validator("training")
    @classmethod
    def _resolved(cls, training: dict[str, Any]) -> dict[str, Any]:
        # YAML 1.1 reads an unquoted `no` as false.
        off = {key: "no" for key, value in training.items() if value is False and key.endswith("_strategy")}
        return {**TRAINING_DEFAULTS, **training, **off}

    def dump(self) -> str:
        """The resolved recipe as YAML that loads to the same recipe: every key, those that are null included."""
        return write_yaml({**self.model_dump(mode="json"), "training": self.training_arguments()})

    def write(self, folder: str | Path) -> None:
        """Write the resolved recipe as ``folder/recipe.yaml``."""
        write_whole(Path(folder) / "recipe.yaml", self.dump())
