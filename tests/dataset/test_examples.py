import numpy as np
import pytest
from tiny_policy import make_examples


def test_a_batch_holds_the_pairs_ids_and_cached_numbers():
    examples = make_examples(7, references=2)
    picked = [3, 0, 6]
    batch = examples.__getitems__(picked)
    for name, side in (("prompts", "prompt_ids"), ("chosen", "chosen_ids"), ("rejected", "rejected_ids")):
        assert [ids.tolist() for ids in batch[name]] == [getattr(examples, side)[i].tolist() for i in picked]
    completions = batch["chosen"] + batch["rejected"]
    assert batch["lengths"].tolist() == [len(ids) for ids in completions]
    assert batch["tokens"] == sum(len(p) + len(c) for p, c in zip(batch["prompts"] * 2, completions, strict=True))
    assert batch["reference_chosen"].shape == (3, 2)
    np.testing.assert_array_equal(batch["anchor_rejected"].numpy(), examples.anchor_rejected[picked])


def test_a_batch_has_no_labels_key_which_would_make_trainer_scale_the_loss_by_tokens():
    assert "labels" not in make_examples(2)[0]


def test_a_pair_of_weight_zero_counts_for_nothing():
    examples = make_examples(4)
    batch = examples.__getitems__([2, ~1])
    assert batch["pair_weights"].tolist() == [1.0, 0.0]
    assert batch["pairs"] == 1
    assert batch["tokens"] == examples[2]["tokens"]


@pytest.mark.parametrize("fault", ["reference_chosen", "anchor_chosen", "prompt_ids", "empty"])
def test_columns_that_do_not_fit_are_refused(fault):
    good = make_examples(3)
    values = {name: getattr(good, name) for name in good.__dataclass_fields__}
    if fault == "empty":
        values["chosen_ids"] = [*good.chosen_ids[:2], np.empty(0, np.int32)]
    else:
        values[fault] = values[fault][:2]
    with pytest.raises(ValueError, match="chosen_ids" if fault == "empty" else fault):
        type(good)(**values)
