import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from tiny_policy import load_base, make_examples, plain_sums, write_policy
from training_run import run
from transformers import AutoTokenizer

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.train import read_results, train_policy
from mrpo_pipeline.recipe import Method, Policy
from mrpo_pipeline.rendering.template_source import PLAIN_TEMPLATE

HERE = Path(__file__).parent
METRICS = {
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "accuracy/policy",
    "accuracy/anchor",
    "num_tokens",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """A run in its own process, which reports the modules it loaded."""
    output_dir = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(HERE / "training_run.py"), str(model), str(output_dir), "count"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output_dir, json.loads(done.stdout.splitlines()[-1]), done


def test_only_the_policy_is_loaded_no_reference_and_no_engine(model, trained):
    _, told, _ = trained
    assert told["loaded"] == [str(model)]
    assert told["modules"] == []


def test_the_output_folder_holds_what_the_contract_promises(trained):
    output_dir, told, _ = trained
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "trainer_state.json",
        "train_results.json",
        "eval_results.json",
        "checkpoint-9/adapter_model.safetensors",
    ):
        assert (output_dir / name).is_file(), name
    assert not list(output_dir.glob("training_args.bin"))
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "learning_rate" in entry]
    assert steps
    assert all(entry.keys() >= METRICS for entry in steps)
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [3, 6, 9]
    assert all(entry.keys() >= {f"eval_{name}" for name in METRICS} for entry in evaluations)
    assert json.loads((output_dir / "eval_results.json").read_text()).keys() >= {f"eval_{name}" for name in METRICS}
    assert read_results(output_dir) == pytest.approx(told["results"])


def test_the_loss_falls(trained):
    history = json.loads((trained[0] / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "learning_rate" in entry]
    assert losses[-1] < losses[0]


def test_the_adapter_loads_with_peft_only_and_scores_as_the_trainer_did(model, trained):
    output_dir, told, _ = trained
    policy = PeftModel.from_pretrained(load_base(model), str(output_dir)).eval()
    chosen, rejected = plain_sums(policy, make_examples(5, seed=3, references=2))
    assert told["results"]["eval_logps/chosen"] == pytest.approx(chosen.mean(), rel=1e-5)
    assert told["results"]["eval_accuracy/policy"] == (chosen > rejected).mean()


def test_no_message_is_logged_that_a_user_cannot_act_on(trained):
    _, _, done = trained
    said = [line for line in (done.stderr + done.stdout).splitlines()[:-1] if line.strip()]
    assert all(line.startswith(("training: ", "held-out pairs after step ")) for line in said), said
    assert any("of 9 steps" in line for line in said)


def test_the_card_and_the_saved_template(model, tmp_path):
    card = {
        "title": "Demo",
        "method": "MRPO, harmonic.",
        "recipe": "method:\n  name: mrpo\n",
        "references": [{"name": "base", "model": "a/b"}, {"name": "other", "model": "c|d", "revision": "e"}],
        "data": {"training pairs": 4},
        "notes": ["A note."],
    }
    results = train_policy(
        Policy(model=str(model)),
        make_examples(4),
        None,
        Method(),
        {"max_steps": 1},
        tmp_path,
        card=card,
        diagnostics={"refs/effective_k": 1.5},
    )
    text = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["library_name"] == "peft"
    assert "base_model" not in header and f"`{model}`" in text, "the hub refuses a folder as base_model"
    for part in (
        "# Demo",
        "MRPO, harmonic.",
        "| other | c\\|d | e |",
        "| training pairs | 4 |",
        "A note.",
        "name: mrpo",
    ):
        assert part in text
    assert f"| train_loss | {results['train_loss']:.6g} |" in text
    assert json.loads((tmp_path / "train_results.json").read_text())["refs/effective_k"] == 1.5
    assert not (tmp_path / "eval_results.json").exists()
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == PLAIN_TEMPLATE


def test_reports_reach_tensorboard(model, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run(model, tmp_path / "out", max_steps=2, report_to="tensorboard", save_strategy="no")
    accumulator = events.EventAccumulator(str(tmp_path / "board"))
    accumulator.Reload()
    assert "train/rewards/margins" in accumulator.Tags()["scalars"]
    assert "eval/accuracy/anchor" in accumulator.Tags()["scalars"]


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"learning_rate_": 1}, "learning_rate_"),
        ({"train_sampling_strategy": "batch_rebalance"}, "group_by_length, random, sequential"),
        ({"label_smoothing_factor": 0.1}, "method.label_smoothing"),
        ({"auto_find_batch_size": True}, "gradient_accumulation_steps"),
        ({"torch_compile": True}, "torch_compile"),
        ({"torch_compile_mode": "reduce-overhead"}, "torch_compile_mode"),
        ({"eval_strategy": "steps"}, "held-out pairs"),
        ({"report_to": "wandb"}, "mrpo\\[wandb\\]"),
        ({"optim": "no-such"}, "no-such"),
    ],
)
def test_training_keys_that_cannot_be_are_refused_by_name(model, tmp_path, training, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(UserError, match=words):
        train_policy(Policy(model=str(model)), make_examples(2), None, Method(), training, tmp_path)


def test_bfloat16_is_left_out_on_a_machine_without_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr("mrpo_pipeline.policy.model.has_bfloat16", lambda: False)
    monkeypatch.setattr("mrpo_pipeline.policy.arguments.has_bfloat16", lambda: False)
    results = train_policy(
        Policy(model=str(model)), make_examples(2), None, Method(), {"max_steps": 1, "bf16": True}, tmp_path
    )
    assert results["train_loss"] > 0


def test_no_pairs_is_an_error_of_the_user(model, tmp_path):
    with pytest.raises(UserError, match="no training pairs"):
        train_policy(Policy(model=str(model)), make_examples(0), None, Method(), {}, tmp_path)
