"""The hooks of transformers that the trainer overrides exist, have the same parameters, and are called in a run.

If a release renamed a hook, ours would never be called: losses divided by the wrong count, checkpoints without a marker,
and no error.
"""

from __future__ import annotations

import inspect

import pytest
from tiny_policy import write_policy
from training_run import run
from transformers import Trainer

from mrpo_pipeline.policy.trainer import PreferenceTrainer

OWN = {
    name
    for name, value in vars(PreferenceTrainer).items()
    if callable(value) and not name.startswith("__") and not hasattr(Trainer, name)
}
HOOKS = sorted(
    name
    for name, value in vars(PreferenceTrainer).items()
    if callable(value) and not name.startswith("__") and name not in OWN
)
# Every hook of transformers that this trainer overrides. A hook that transformers removes must be removed here.
EXPECTED = {
    "_get_grad_norm",
    "_get_num_items_in_batch",
    "_save",
    "_save_checkpoint",
    "_track_num_input_tokens",
    "compute_loss",
    "create_accelerator_and_postprocess",
    "evaluation_loop",
    "floating_point_ops",
    "get_eval_dataloader",
    "get_total_train_batch_size",
    "get_train_dataloader",
    "log",
    "save_model",
    "training_step",
}


def test_transformers_has_every_hook():
    assert set(HOOKS) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_hook_takes_what_transformers_passes(name):
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    ours = inspect.signature(getattr(PreferenceTrainer, name)).parameters
    assert [*ours] == [*theirs]


def test_transformers_calls_every_hook(tmp_path, monkeypatch):
    called = set()

    def counted(name, original):
        def hook(self, *args, **kwargs):
            called.add(name)
            return original(self, *args, **kwargs)

        return hook

    for name in EXPECTED:
        monkeypatch.setattr(PreferenceTrainer, name, counted(name, getattr(PreferenceTrainer, name)))
    run(write_policy(tmp_path / "model"), tmp_path / "out", num_train_epochs=1)
    assert called == EXPECTED
