"""Step-scoped weights and the further losses in real training: weights of each step, packing, and resuming after a kill."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from step_scoped_run import KINDS, NAMES, STEPS, examples_of, method_of, run
from test_resume import losses
from tiny_policy import load_base, plain_sums, write_policy

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.method_state import AT_START, read_snapshot
from mrpo_pipeline.policy.metrics import evaluation_metrics
from mrpo_pipeline.policy.sampler import epoch_steps
from mrpo_pipeline.policy.trainer import PreferenceTrainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of every kind, undisturbed."""
    folder = tmp_path_factory.mktemp("step-scoped")
    model = write_policy(folder / "model")
    return model, {kind: (folder / kind, run(model, folder / kind, kind)) for kind in KINDS}


class BrokenOffError(Exception):
    """Ends a run in the middle of a step."""


def history(folder):
    return pl.read_parquet(folder / "weights.parquet")


def order(examples):
    """The pairs of every step, from the trainer's seed."""
    return [
        step for epoch in range(3) for step in epoch_steps(examples.lengths, 4, seed=0, epoch=epoch, order="random")
    ]


@pytest.mark.parametrize("kind", ["sliding-window", "thompson", "thompson-every-2", "mpo"])
def test_a_run_stopped_and_resumed_has_the_losses_and_weights_of_an_undisturbed_one(runs, tmp_path, monkeypatch, kind):
    """Stopped in the sixth step: the state after the fifth is restored."""
    model, done = runs
    folder, results = done[kind]
    with monkeypatch.context() as patch:
        original = PreferenceTrainer._micro_step

        def micro_step(self, *args, **kwargs):
            if self.state.global_step == 5 and self._watch._batches:
                raise BrokenOffError
            return original(self, *args, **kwargs)

        patch.setattr(PreferenceTrainer, "_micro_step", micro_step)
        with pytest.raises(BrokenOffError):
            run(model, tmp_path, kind)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    resumed = run(model, tmp_path, kind, resume=True)
    assert losses(tmp_path) == losses(folder)
    assert (tmp_path / "carried.json").read_text() == (folder / "carried.json").read_text()
    for name in ("train_loss", "eval_loss", "eval_rewards/margins"):
        assert resumed[name] == pytest.approx(results[name], rel=1e-6), name
    if kind != "mpo":
        assert history(tmp_path).equals(history(folder))


def test_every_step_of_the_sliding_window_had_the_mean_of_the_last_five_others(runs):
    """Computed independently from the order of training and each pair's |Δ|."""
    _, done = runs
    examples = examples_of("sliding-window")
    sizes = np.abs(examples.reference_chosen - examples.reference_rejected)
    own = sizes / sizes.sum(axis=1, keepdims=True)
    seen, expected = [], []
    for step in order(examples):
        weights = []
        for pair in step:
            others = [other for other in reversed(seen) if other != pair][:5]
            weights.append(own[others].mean(axis=0) if others else np.full(3, 1 / 3))
        expected.append(np.mean(weights, axis=0))
        seen += step.tolist()
    table = history(done["sliding-window"][0])
    assert table.schema == {"step": pl.Int32, "reference": pl.String, "weight": pl.Float64}
    assert table["step"].to_list() == [step for step in range(1, STEPS + 1) for _ in NAMES]
    assert table["reference"].to_list() == NAMES * STEPS
    found = table["weight"].to_numpy().reshape(STEPS, 3)
    np.testing.assert_array_equal(found[0], np.full(3, 1 / 3))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    logged = losses(done["sliding-window"][0])
    for step in range(1, STEPS + 1):
        assert [logged[step][f"refs/{name}/weight"] for name in NAMES] == pytest.approx(found[step - 1].tolist())


def test_a_steps_loss_is_that_of_its_own_weights(runs, tmp_path):
    """The first two steps by full logits: uniform weights, then those of the window, in the harmonic mean."""
    model, _ = runs
    run(model, tmp_path, "sliding-window", dropout=0.0, max_steps=2, learning_rate=1e-12)
    examples = examples_of("sliding-window")
    own = examples.weights
    sums = plain_sums(load_base(model), examples)
    first, second = order(examples)[:2]
    logged = losses(tmp_path)
    for number, (step, before) in enumerate(((first, []), (second, first[-5:])), 1):
        alpha = own[before].mean(axis=0) if len(before) else np.full(3, 1 / 3)
        total = 0.0
        for pair in step:
            assert pair not in before, "one epoch: no pair comes back"
            sides = []
            for side, references in ((sums[0], examples.reference_chosen), (sums[1], examples.reference_rejected)):
                logp = (
                    -np.log(np.sum(alpha * np.exp(-references[pair] + references[pair].min()))) + references[pair].min()
                )
                sides.append(side[pair] - logp)
            total += np.logaddexp(0, -0.3 * (sides[0] - sides[1]))
        assert logged[number]["loss"] == pytest.approx(total / len(step), rel=1e-5)


def test_thompson_counts_a_success_where_the_policy_ranks_more_of_the_judging_pairs_rightly(runs):
    """The outcome of each step, against accuracies from full logits with the adapters of its checkpoints."""
    from peft import PeftModel

    model, done = runs
    folder, _ = done["thompson"]
    judges = examples_of("thompson").judges
    accuracy = {}
    for step in (2, 4, 6, 8, 9):
        policy = PeftModel.from_pretrained(load_base(model), str(folder / f"checkpoint-{step}")).eval()
        chosen, rejected = plain_sums(policy, judges)
        accuracy[step] = np.mean(chosen > rejected)
    table = history(folder)
    assert table.schema == {
        "step": pl.Int32, "reference": pl.String, "weight": pl.Float64, "successes": pl.Int32, "failures": pl.Int32,
    }  # fmt: skip
    counts = table.group_by("step", maintain_order=True).agg(pl.sum("weight"), pl.sum("successes"), pl.sum("failures"))
    assert (counts["successes"] + counts["failures"]).to_list() == list(range(1, STEPS + 1))
    assert counts["weight"].to_list() == [1.0] * STEPS
    assert counts["successes"][-1] >= 1
    risen = counts["successes"][8] - counts["successes"][7]
    assert risen == int(accuracy[9] > accuracy[8])
    for step in (2, 4, 6, 8, 9):
        state = json.loads((folder / f"checkpoint-{step}" / "carried.json").read_text())
        assert state["thompson"]["accuracy"] == pytest.approx(accuracy[step])
    # The reference whose count rose is the one that was drawn.
    before = np.zeros(3)
    for step in range(1, STEPS + 1):
        here = table.filter(pl.col("step") == step)
        after = (here["successes"] + here["failures"]).to_numpy()
        assert (after - before).tolist() == (here["weight"].to_numpy() == 1).astype(float).tolist()
        before = after


def test_a_reference_is_drawn_for_two_steps_and_judged_then(runs):
    table = history(runs[1]["thompson-every-2"][0])
    drawn = table.filter(pl.col("weight") == pl.col("weight").max().over("step"))["reference"].to_list()
    assert [drawn[at] == drawn[at + 1] for at in range(0, 8, 2)] == [True] * 4
    counts = table.group_by("step", maintain_order=True).agg(pl.sum("successes") + pl.sum("failures"))
    assert counts["successes"].to_list() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert table["weight"].min() == pytest.approx(0.1), "the floor"


@pytest.mark.parametrize("kind", ["sliding-window-multi", "mpo", "thompson"])
def test_a_run_is_the_same_however_its_steps_are_packed(runs, tmp_path, kind):
    """Four pairs at a time, one at a time, or two processes' worth of accumulation; without dropout, whose draws differ."""
    model, _ = runs
    results = []
    for number, changes in enumerate(
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "micro_batch_tokens": "off"},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "micro_batch_tokens": "off"},
        )
    ):
        run(model, tmp_path / str(number), kind, dropout=0.0, max_steps=5, **changes)
        results.append((losses(tmp_path / str(number)), read_snapshot(tmp_path / str(number))))
    (one, snapshot), (other, other_snapshot) = results
    for step, expected in one.items():
        for name, value in expected.items():
            if name.startswith(("loss", "rewards", "refs")):
                assert other[step][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (step, name)
    assert snapshot.reward_mean == pytest.approx(other_snapshot.reward_mean, rel=1e-5)
    if kind != "mpo":
        np.testing.assert_allclose(snapshot.weights, other_snapshot.weights, rtol=1e-12)


def test_the_running_mean_of_mpo_is_that_of_all_rewards_of_earlier_steps(runs):
    """From the log: mean rewards of steps of 4, 4 and 2 pairs; δ after step n is logged with it."""
    folder, results = runs[1]["mpo"]
    logged = losses(folder)
    sizes = [4, 4, 2] * 3
    total, count = 0.0, 0
    for step, size in enumerate(sizes, 1):
        total += size * (logged[step]["rewards/chosen"] + logged[step]["rewards/rejected"])
        count += 2 * size
        assert logged[step]["rewards/running_mean"] == pytest.approx(total / count, rel=1e-9)
        parts = [logged[step][f"loss/{name}"] for name in ("sigmoid", "bco", "sft")]
        assert logged[step]["loss"] == pytest.approx(np.dot([0.8, 0.2, 1.0], parts), rel=1e-5)
    assert (
        results["rewards/running_mean"] == read_snapshot(folder).reward_mean == pytest.approx(total / count, rel=1e-9)
    )


@pytest.mark.parametrize("kind", ["sliding-window", "thompson", "mpo"])
def test_held_out_pairs_are_measured_with_what_training_has_come_to(runs, kind):
    """The last evaluation, from the adapter and ``carried.json`` only."""
    import torch
    from peft import PeftModel

    model, done = runs
    folder, results = done[kind]
    policy = PeftModel.from_pretrained(load_base(model), str(folder)).eval()
    examples = examples_of(kind, 5, seed=3)
    sums = [torch.from_numpy(side) for side in plain_sums(policy, examples)]
    snapshot = read_snapshot(folder)
    metrics = evaluation_metrics(*sums, examples, method_of(kind), snapshot)
    for name in ("loss", "rewards/chosen", "rewards/margins"):
        assert metrics[name] == pytest.approx(results[f"eval_{name}"], rel=1e-5), name
    assert evaluation_metrics(*sums, examples, method_of(kind), AT_START)["loss"] != pytest.approx(metrics["loss"])
    if kind == "sliding-window":
        seen = np.concatenate(order(examples_of(kind)))[-5:]
        np.testing.assert_allclose(snapshot.weights, examples_of(kind).weights[seen].mean(axis=0), rtol=1e-12)
    elif kind == "thompson":
        last = history(folder).tail(3)
        means = (1 + last["successes"]) / (2 + last["successes"] + last["failures"])
        np.testing.assert_allclose(snapshot.weights, (means / means.sum()).to_numpy(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["minor-dpo", "mpo", "modpo", "sliding-window-multi"])
def test_every_loss_trains(runs, kind):
    folder, _ = runs[1][kind]
    logged = losses(folder)
    assert logged[STEPS]["loss"] < logged[1]["loss"]


@pytest.mark.parametrize("kind", ["minor-dpo", "modpo"])
def test_a_method_that_carries_nothing_leaves_nothing(runs, kind):
    folder, _ = runs[1][kind]
    assert not list(folder.rglob("carried.json")) + list(folder.rglob("weights.parquet"))


def test_where_the_best_checkpoint_is_loaded_held_out_pairs_are_measured_with_what_it_had_come_to(runs, tmp_path):
    model, _ = runs
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "save_steps": 3}
    # The checkpoint with the worst metric, so that it is not the last one.
    results = run(model, tmp_path, "mpo", greater_is_better=True, **best)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    name = state["best_model_checkpoint"].rsplit("/", 1)[-1]
    assert name != "checkpoint-9"
    snapshot = read_snapshot(tmp_path / name)
    assert read_snapshot(tmp_path) == snapshot != read_snapshot(tmp_path / "checkpoint-9")
    there = next(e for e in state["log_history"] if "eval_loss" in e and e["step"] == int(name.split("-")[1]))
    assert results["eval_loss"] == pytest.approx(there["eval_loss"], rel=1e-6)


def test_a_resumed_run_that_would_restart_its_epoch_is_refused(runs, tmp_path):
    model, _ = runs
    run(model, tmp_path, "sliding-window", max_steps=2)
    (tmp_path / "complete.json").unlink()  # like a run that was killed after its last checkpoint
    with pytest.raises(UserError, match=r"training\.ignore_data_skip"):
        run(model, tmp_path, "sliding-window", max_steps=2, resume=True, ignore_data_skip=True)


def test_another_window_is_another_run(runs, tmp_path, monkeypatch):
    model, _ = runs
    run(model, tmp_path, "sliding-window", max_steps=2)
    monkeypatch.setitem(KINDS, "sliding-window", KINDS["sliding-window"] | {"window": 6})
    with pytest.raises(UserError, match=r"method\.weights_options\.window \(was 5, now 6\)"):
        run(model, tmp_path, "sliding-window", max_steps=2, resume=True)


@pytest.mark.parametrize("kind", ["thompson", "modpo"])
def test_examples_written_for_other_processes_read_back_completely(tmp_path, kind):
    examples = examples_of(kind)
    examples.write(tmp_path)
    opened = PreferenceExamples.open(tmp_path)
    assert opened.step_references == examples.step_references
    if kind == "modpo":
        np.testing.assert_array_equal(opened.margins, examples.margins)
        assert opened.judges is None
    else:
        assert opened.judges.pair_ids == examples.judges.pair_ids
