import pytest
import torch
from tiny_policy import load_base, make_examples, write_policy

from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.anchor_check import TOLERANCE, check_start
from mrpo_pipeline.policy.arguments import training_arguments
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.policy.trainer import PreferenceTrainer
from mrpo_pipeline.recipe import Lora, Method, Policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("anchor"))


@pytest.fixture
def build(folder, tmp_path):
    def make(examples, dtype="float32"):
        model = load_policy(Policy(model=str(folder), dtype=dtype, lora=Lora(dropout=0.5)))
        arguments = training_arguments(
            {"per_device_train_batch_size": 4, "disable_tqdm": True}, tmp_path, dtype=dtype, evaluates=False
        )
        return PreferenceTrainer(model, arguments, Method(), examples)

    return make


def test_a_start_that_is_the_anchor_passes(folder, build):
    examples = make_examples(12, base=load_base(folder))
    assert check_start(build(examples), AnchorStart(), "float32") < 1e-5


def test_the_check_leaves_the_random_numbers_of_training_alone(folder, build):
    trainer = build(make_examples(12, base=load_base(folder)))
    before = torch.random.get_rng_state()
    check_start(trainer, AnchorStart(), "float32")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_process_without_a_pair_of_the_step_compares_none(folder, build, monkeypatch):
    """A negative index means no pair, not one from the end."""
    examples = make_examples(12, base=load_base(folder))
    trainer = build(examples)
    monkeypatch.setattr(type(trainer.train_sampler()), "__iter__", lambda _: iter([[[0, 1, ~3]]]))
    assert check_start(trainer, AnchorStart(), "float32") < 1e-5


def test_bfloat16_passes_within_its_own_tolerance(folder, build):
    examples = make_examples(12, base=load_base(folder))
    difference = check_start(build(examples, "bfloat16"), AnchorStart("float32"), "bfloat16")
    assert TOLERANCE["float32"] < difference < TOLERANCE["bfloat16"]


def test_one_completion_of_the_batch_that_is_off_stops_the_run_with_the_likely_faults(folder, build):
    examples = make_examples(4, base=load_base(folder))
    examples.anchor_rejected[2] += 0.01 * len(examples.rejected_ids[2])
    with pytest.raises(UserError, match="pair-2, rejected side") as caught:
        check_start(build(examples), AnchorStart(), "float32")
    for word in ("template", "revision", "tokenizer", "dtype", "check_anchor: false"):
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_prompt_before_the_same_completion_is_found(folder, build, dtype):
    # The effect of a wrong template: the same completion after another prompt.
    base = load_base(folder)
    examples = make_examples(12, base=base)
    for prompt in examples.prompt_ids:
        prompt[-1] = 3 + (prompt[-1] + 1) % 90
    with pytest.raises(UserError, match="does not agree with the cached anchor"):
        check_start(build(examples, dtype), AnchorStart(), dtype)
