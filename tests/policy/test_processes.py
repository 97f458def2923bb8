"""Two processes (gloo on the CPU) against one: the same losses, one set of results, and a run that can be resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import step_scoped_run
from many_processes import CARRYING
from peft import PeftModel
from safetensors.torch import load_file
from test_resume import losses
from tiny_policy import load_base, make_examples, plain_sums, write_policy
from training_run import STEPS, run

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.policy.distributed import explain_lost_processes
from mrpo_pipeline.policy.method_state import read_snapshot

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def launch(model: Path, folder: Path, mode: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [*command, str(HERE / "many_processes.py"), str(model), str(folder), mode],
        capture_output=True, text=True, check=False, env=environment, timeout=150,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs in one process, then in two: undisturbed (DDP, DDP with dropout, FSDP), killed, and resumed."""
    folder = tmp_path_factory.mktemp("processes")
    model = write_policy(folder / "model")
    run(model, folder / "one", dropout=0.0)
    for kind in CARRYING:
        step_scoped_run.run(model, folder / f"{kind}-one", kind, dropout=0.0, max_steps=4)
    done = {"whole": launch(model, folder, "whole")}
    assert done["whole"].returncode == 0, done["whole"].stderr[-3000:]
    shutil.copytree(folder / "fsdp", folder / "fsdp-left-alone")
    for step in (6, 8, 9):
        shutil.rmtree(folder / "fsdp" / f"checkpoint-{step}")
    (folder / "fsdp" / "complete.json").unlink()
    done["killed"] = launch(model, folder, "killed")
    done["left"] = sorted(path.name for path in (folder / "killed").glob("checkpoint-*"))
    done["resumed"] = launch(model, folder, "resumed")
    assert done["resumed"].returncode == 0, done["resumed"].stderr[-3000:]
    return folder, model, done


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_and_metrics_of_one(runs, kind):
    folder, _, _ = runs
    one, two = (losses(folder / name) for name in ("one", kind))
    assert sorted(two) == list(range(1, STEPS + 1))
    for step, expected in one.items():
        for name in ("loss", "rewards/margins", "logps/chosen", "accuracy/anchor", "num_tokens"):
            assert two[step][name] == pytest.approx(expected[name], abs=1e-5, rel=1e-6), (step, name)
        assert two[step]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    held_out = [[e for e in history(folder / name) if "eval_loss" in e] for name in ("one", kind)]
    assert [entry["step"] for entry in held_out[1]] == [3, 6, 9]
    for expected, found in zip(*held_out, strict=True):
        for name in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen", "eval_accuracy/policy"):
            assert found[name] == pytest.approx(expected[name], abs=1e-5, rel=1e-6), name


@pytest.mark.parametrize("kind", CARRYING)
def test_two_processes_carry_what_one_carries_from_step_to_step(runs, kind):
    folder, _, _ = runs
    one, two = (losses(folder / name) for name in (f"{kind}-one", kind))
    for step, expected in one.items():
        for name, value in expected.items():
            if name.startswith(("loss", "rewards", "refs")):
                assert two[step][name] == pytest.approx(value, abs=1e-5, rel=1e-5), (step, name)
    snapshots = [read_snapshot(folder / name) for name in (f"{kind}-one", kind)]
    assert snapshots[1].reward_mean == pytest.approx(snapshots[0].reward_mean, rel=1e-6)
    if kind != "mpo":
        assert snapshots[1].weights.tolist() == snapshots[0].weights.tolist()
        histories = [(folder / name / "weights.parquet").read_bytes() for name in (f"{kind}-one", kind)]
        assert histories[0] == histories[1]


def test_under_fsdp_each_process_holds_half_of_the_weights_and_the_adapter_is_complete(runs):
    folder, model, _ = runs
    shares = [json.loads((folder / f"share-{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(shares) == pytest.approx(1) and max(shares) < 0.6
    one, sharded = (load_file(folder / name / "adapter_model.safetensors") for name in ("one", "fsdp-left-alone"))
    assert {name: tensor.shape for name, tensor in one.items()} == {n: t.shape for n, t in sharded.items()}
    for name, tensor in one.items():
        assert (tensor - sharded[name]).abs().max() < 1e-3, name
    policy = PeftModel.from_pretrained(load_base(model), str(folder / "fsdp-left-alone")).eval()
    chosen, _ = plain_sums(policy, make_examples(5, seed=3, references=2))
    results = json.loads((folder / "fsdp-left-alone" / "eval_results.json").read_text())
    assert results["eval_logps/chosen"] == pytest.approx(chosen.mean(), rel=1e-5)


def test_messages_for_the_user_are_logged_once(runs):
    folder, _, done = runs
    said = done["whole"].stderr.splitlines()
    runs_made = ("ddp", "dropout", "fsdp", *CARRYING)
    for kind in runs_made:
        assert (folder / kind / "README.md").is_file()
    assert sum("held-out pairs after step 3" in line for line in said) == len(runs_made)
    assert sum("of 9 steps" in line for line in said) == 3


def test_when_a_process_is_killed_the_others_end_with_a_remedy(runs):
    folder, _, done = runs
    assert done["killed"].returncode != 0
    told = (folder / "told.txt").read_text()
    assert "Process 0 of 2 stops" in told and "--resume" in told
    assert done["left"] == ["checkpoint-4"]


def test_a_killed_run_resumes_exactly(runs):
    folder, _, _ = runs
    assert losses(folder / "killed") == losses(folder / "dropout")
    one, other = (load_file(folder / name / "adapter_model.safetensors") for name in ("killed", "dropout"))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_run_under_fsdp_resumes_from_its_checkpoint(runs):
    folder, _, _ = runs
    resumed, alone = losses(folder / "fsdp"), losses(folder / "fsdp-left-alone")
    assert (folder / "fsdp" / "checkpoint-9").is_dir()
    for step, expected in alone.items():
        assert resumed[step]["loss"] == pytest.approx(expected["loss"], abs=1e-6), step


def test_the_launchers_signal_is_explained_as_a_lost_process(monkeypatch):
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RunError, match=r"Process 1 of 2 stops.*--resume"), explain_lost_processes():
            signal.raise_signal(signal.SIGTERM)
        # A second signal during the message must not cut it off.
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    with explain_lost_processes():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
