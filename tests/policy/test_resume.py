import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_policy import write_policy
from training_run import STEPS, run

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.checkpoints import MARKER

HERE = Path(__file__).parent


def losses(output_dir):
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return {
        entry["step"]: {key: value for key, value in entry.items() if key != "step"}
        for entry in history
        if "learning_rate" in entry
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    model = write_policy(folder / "model")
    results = run(model, folder / "out")
    return model, losses(folder / "out"), results


@pytest.mark.parametrize(
    ("mode", "step", "left_whole", "left_half"),
    [("kill-in-step", 4, "checkpoint-4", None), ("kill-in-save", 6, "checkpoint-4", "checkpoint-6")],
)
def test_a_run_killed_and_resumed_has_the_losses_of_an_undisturbed_one(
    undisturbed, tmp_path, mode, step, left_whole, left_half
):
    model, expected, results = undisturbed
    assert sorted(expected) == list(range(1, STEPS + 1))
    (tmp_path / MARKER).write_text("{}")  # of an earlier run, whose results this one replaces
    command = [sys.executable, str(HERE / "training_run.py"), str(model), str(tmp_path), mode, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / MARKER).exists()
    assert [path.parent.name for path in tmp_path.glob(f"checkpoint-*/{MARKER}")] == [left_whole]
    assert left_half is None or (tmp_path / left_half / "adapter_model.safetensors").exists()

    resumed = run(model, tmp_path, resume=True)
    assert losses(tmp_path) == expected
    for name in ("train_loss", "eval_loss", "eval_accuracy/policy", "num_tokens", "eval_num_tokens"):
        assert resumed[name] == pytest.approx(results[name], rel=1e-6), name
    # save_total_limit leaves one complete checkpoint, and no partial one.
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-9"]


def test_resume_without_a_checkpoint_trains_from_the_start(undisturbed, tmp_path):
    model, expected, _ = undisturbed
    run(model, tmp_path, resume=True, max_steps=-1, save_strategy="no")
    assert losses(tmp_path) == expected


def test_resuming_with_another_learning_rate_is_refused_and_a_new_run_is_not(undisturbed, tmp_path):
    model, _, _ = undisturbed
    run(model, tmp_path, max_steps=2)
    with pytest.raises(UserError, match=r"training\.learning_rate \(was 0\.01, now 0\.001\)"):
        run(model, tmp_path, max_steps=2, resume=True, learning_rate=1e-3)
    run(model, tmp_path, max_steps=2, learning_rate=1e-3)


def test_a_finished_run_without_checkpoints_is_neither_trained_again_nor_taken_for_another(undisturbed, tmp_path):
    model, _, _ = undisturbed
    settings = {"max_steps": 2, "save_strategy": "no"}
    first = run(model, tmp_path, **settings)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(model, tmp_path, **settings, resume=True) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    with pytest.raises(UserError, match=r"training\.learning_rate \(was 0\.01, now 0\.001\)"):
        run(model, tmp_path, **settings, resume=True, learning_rate=1e-3)
    damaged = tmp_path / "adapter_model.safetensors"
    weights = damaged.read_bytes()
    damaged.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    run(model, tmp_path, **settings, resume=True)
    assert damaged.read_bytes() == weights


def test_resuming_a_finished_run_trains_no_more(undisturbed, tmp_path):
    model, _, _ = undisturbed
    first = run(model, tmp_path, max_steps=4, logging_steps=1)
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    # A checkpoint of an earlier version that was killed while writing it.
    results = tmp_path / "train_results.json"
    results.write_bytes(results.read_bytes()[:40])
    again = run(model, tmp_path, max_steps=4, logging_steps=2, resume=True)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == weights
    assert again["train_loss"] == pytest.approx(first["train_loss"])
    assert again["eval_loss"] == pytest.approx(first["eval_loss"])
