"""`mrpo targets --for trl`: TRL trains on the file with the same numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_references import HARD_TEXTS, pair, reference, write_pairs

from mrpo_pipeline.dataset.pair_targets import pair_targets
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports import export_targets
from mrpo_pipeline.exports.targets_file import cached_split
from mrpo_pipeline.exports.trl import settings as export_settings
from mrpo_pipeline.losses.functional import LOSSES
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.scoring import score_references

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

DOCS = Path(__file__).parents[2] / "docs"
BATCH = 8


def example(page: str) -> str:
    """The Python block of the page after the comment that names its test."""
    (block,) = re.findall(r"<!-- run by [^\n]+ -->\n```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return block


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """One batch of pairs: hard text, control strings, several turns, cut prompts and cut completions; two references."""
    folder = tmp_path_factory.mktemp("export")
    base = reference(folder / "my-model", "llama", "qwen")
    other = reference(folder / "other", "gpt_neox", "llama2", seed=1)
    turns = [{"role": "user", "content": "Hello " * 90}, {"role": "assistant", "content": "Hi!"}]
    rows = [pair(f"Say: {text}", f"{text} Yes.", f"No {i}. {text}") for i, text in enumerate(HARD_TEXTS[:6])]
    rows.append(pair([*turns, {"role": "user", "content": "And now?"}], "Now it is.", "Now it is not."))
    rows.append(pair("Tell me", "many words go on " * 30, "brief"))
    recipe = parse_recipe(
        {
            "pairs": {"train": str(write_pairs(folder / "pairs.jsonl", rows))},
            "policy": {"model": str(base), "dtype": "float32", "lora": {"target_modules": "all-linear"}},
            "references": {"base": {"model": str(base)}, "other": {"model": str(other)}},
            "cache": str(folder / "cache"),
            "limits": {"max_length": 160},
            "scoring": {"engine": "transformers"},
            "method": {"trust_region": {"kind": "off"}},
            "training": {
                "max_steps": 1, "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1,
                "logging_steps": 1, "save_strategy": "no", "bf16": False,
            },
            "output_dir": str(folder / "ours"),
        }
    )  # fmt: skip
    score_references(recipe)
    return recipe


def with_method(recipe: Recipe, **keys: Any) -> Recipe:
    document = recipe.model_dump(mode="json")
    document["method"] |= keys
    return parse_recipe(document)


def our_first_loss(recipe: Recipe) -> float:
    train_recipe(recipe)
    state = json.loads((Path(recipe.output_dir) / "trainer_state.json").read_text())
    return next(entry["loss"] for entry in state["log_history"] if "rewards/margins" in entry)


def test_the_docs_example_has_ten_lines() -> None:
    lines = [line for line in example("trl.md").splitlines() if line]
    assert len(lines) == 10 and max(map(len, lines)) <= 120


def test_the_docs_example_trains_and_its_first_loss_is_ours(
    scored: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_targets(scored, "trl", tmp_path / "targets.parquet")
    shutil.copytree(scored.required_policy().model, tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "read")
    exec(example("trl.md"), {"__name__": "__main__"})
    (state,) = (tmp_path / "out").glob("checkpoint-3/trainer_state.json")
    logged = [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "learning_rate" in entry]
    assert len(logged) == 3  # three epochs of one step
    assert logged[0] == pytest.approx(our_first_loss(scored), abs=1e-4)
    assert logged[-1] < logged[0]


def trl_trainer(recipe: Recipe, file: Path, folder: Path, **config: Any) -> Any:
    space: dict[str, Any] = {}
    exec(example("trl.md").split("config =")[0], space)
    arguments = trl.DPOConfig(
        str(folder), max_length=None, precompute_ref_log_probs=True, bf16=False, use_cpu=True, report_to="none", **config
    )  # fmt: skip
    return space["CachedDPOTrainer"](
        recipe.required_policy().model,
        args=arguments,
        train_dataset=datasets.Dataset.from_parquet(str(file), cache_dir=str(folder)),
    )


def test_with_only_the_anchor_the_columns_are_what_trl_itself_computes(scored: Recipe, tmp_path: Path) -> None:
    file = export_targets(with_method(scored, name="dpo"), "trl", tmp_path / "targets.parquet").file
    trainer = trl_trainer(scored, file, tmp_path)
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = [side.double().numpy() for side in trainer.compute_ref_log_probs(trainer.model, batch)]
    frame = pl.read_parquet(file)
    for column, sums in zip(("ref_chosen_logps", "ref_rejected_logps"), theirs, strict=True):
        assert np.std(sums) > 10  # nats
        np.testing.assert_allclose(frame[column].to_numpy(), sums, atol=2e-3, rtol=0)


def settings_in_trl(lines: list[str], folder: Path) -> Any:
    """The config of the printed lines."""
    code = ", ".join(line for line in lines if not line.startswith("#"))
    return eval(
        f"DPOConfig({str(folder)!r}, use_cpu=True, bf16=False, {re.sub('  # [^,]*', '', code)})",
        {"DPOConfig": trl.DPOConfig},
    )


def test_a_sum_of_losses_is_the_same_in_trl(scored: Recipe, tmp_path: Path) -> None:
    losses = {"hinge": 0.5, "ipo": 0.01, "nca": 0.3, "exo": 1.0, "apo-zero": 1.0}
    recipe = with_method(scored, loss=losses, label_smoothing=0.01, beta=0.05)
    export = export_targets(recipe, "trl", tmp_path / "targets.parquet")
    config = settings_in_trl(export.settings, tmp_path)
    assert config.loss_type == ["hinge", "ipo", "nca_pair", "exo_pair", "apo_zero"]
    keys = ("beta", "loss_type", "loss_weights", "label_smoothing")
    given = {key: getattr(config, key) for key in keys} | {"per_device_train_batch_size": BATCH}
    trainer = trl_trainer(recipe, export.file, tmp_path / "out", **given)
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(trainer.model, batch).item()
    assert theirs == pytest.approx(our_first_loss(recipe), abs=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_settings_are_valid_in_trl_or_the_loss_is_unknown_to_it(scored: Recipe, tmp_path: Path, loss: str) -> None:
    keys = {"label_smoothing": 0.1} if loss == "exo" else {}
    recipe = with_method(scored, loss=loss, discopop_tau=0.1, **keys)
    lines = export_settings(recipe)
    unknown = any("TRL has no loss_type" in line for line in lines)
    assert unknown == (loss in ("minor-dpo", "hypo", "hypo-each", "anchored", "modpo", "simpo"))
    config = settings_in_trl(lines, tmp_path)
    assert unknown or LossSettings(loss=config.loss_type[0]).loss == loss
    assert config.discopop_tau == (0.1 if loss == "discopop" else 0.05)


def test_with_normalize_token_the_file_has_sums_and_trl_divides(scored: Recipe, tmp_path: Path) -> None:
    recipe = with_method(scored, normalize="token", beta=2.0)
    export = export_targets(recipe, "trl", tmp_path / "targets.parquet")
    assert 'loss_type="sigmoid_norm"' in export.settings and "beta=2" in export.settings
    trainer = trl_trainer(
        recipe, export.file, tmp_path / "out", beta=2.0, loss_type="sigmoid_norm", per_device_train_batch_size=BATCH
    )  # fmt: skip
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(trainer.model, batch).item()
    assert theirs == pytest.approx(our_first_loss(recipe), abs=1e-4)


def test_the_file_has_every_pair_as_the_policy_reads_it(scored: Recipe, tmp_path: Path) -> None:
    export = export_targets(scored, "trl", tmp_path / "targets.parquet")
    frame, pairs = pl.read_parquet(export.file), cached_split(scored, "train")
    assert export.pairs == frame.height == BATCH and not export.left_out
    anchor = pairs.logps_chosen[:, 0] - pairs.logps_rejected[:, 0]
    written = frame["ref_chosen_logps"].to_numpy() - frame["ref_rejected_logps"].to_numpy()
    assert np.abs(written - anchor).mean() > 1  # nats: the losses that are compared here do depend on log π̃
    targets = pair_targets(pairs, scored.method)
    np.testing.assert_array_equal(frame["ref_chosen_logps"].to_numpy(), targets.target_chosen)
    np.testing.assert_array_equal(frame["ref_rejected_logps"].to_numpy(), targets.target_rejected)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids", "pair_id"):
        assert frame[column].to_list() == pairs.frame[column].to_list()
    assert frame["prompt"][6].to_list()[-1] == {"role": "user", "content": "And now?"}
    assert len(frame["prompt"][6].to_list()[0]["content"]) < 500  # the first turn was cut
    (cut,) = frame["chosen"][7].to_list()
    assert cut["content"] == ("many words go on " * 30)[: pairs.frame["chosen_cut"][7]]
    assert (tmp_path / "targets.recipe.yaml").is_file()


def test_trl_alone_refuses_or_ignores_the_columns(scored: Recipe, tmp_path: Path) -> None:
    """The warning of the docs: if TRL starts to accept the columns, the docs must change."""
    file = export_targets(scored, "trl", tmp_path / "targets.parquet").file
    data = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path))

    def stock(precompute: bool) -> Any:
        config = trl.DPOConfig(
            str(tmp_path), precompute_ref_log_probs=precompute, bf16=False, use_cpu=True, report_to="none"
        )  # fmt: skip
        return trl.DPOTrainer(scored.required_policy().model, args=config, train_dataset=data)

    with pytest.raises(ValueError, match="ref_chosen_logps"):
        stock(True)
    trainer = stock(False)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=1e-4)


def test_raw_text_stays_strings(tmp_path: Path) -> None:
    base = reference(tmp_path / "base", "llama", "qwen")
    rows = [{"prompt": f"Say {i}:", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(3)]
    recipe = one_reference(tmp_path, base, rows)
    score_references(recipe)
    frame = pl.read_parquet(export_targets(recipe, "trl", tmp_path / "targets.parquet").file)
    assert frame["prompt"].to_list() == [row["prompt"] for row in rows]
    assert frame["chosen"].to_list() == [row["chosen"] for row in rows]

    recipe = one_reference(tmp_path, base, [*rows, pair("Say four:", "yes", "no")])
    score_references(recipe)
    with pytest.raises(UserError, match="3 of 4 prompts are raw text"):
        export_targets(recipe, "trl", tmp_path / "targets.parquet")


def one_reference(folder: Path, base: Path, rows: list[dict[str, Any]]) -> Recipe:
    return parse_recipe(
        {
            "pairs": {"train": str(write_pairs(folder / "pairs.jsonl", rows))},
            "policy": {"model": str(base)},
            "references": {"base": {"model": str(base)}},
            "cache": str(folder / "cache"),
            "scoring": {"engine": "transformers"},
        }
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "multi-dpo"}, "no single log π̃"),
        ({"normalize": "byte"}, "no other trainer supports"),
        ({"weights": "sliding-window"}, "change with every training step"),
    ],
)
def test_a_method_without_one_target_per_pair_is_refused(
    scored: Recipe, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        export_targets(with_method(scored, **keys), "trl", tmp_path / "targets.parquet")
    assert not list(tmp_path.iterdir())


def test_another_format_or_trainer_is_refused(scored: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"targets\.parquet"):
        export_targets(scored, "trl", tmp_path / "targets.jsonl")
    with pytest.raises(UserError, match="expected one of trl"):
        export_targets(scored, "axolotl")
