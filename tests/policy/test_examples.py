import numpy as np
import pytest
from tiny_policy import make_examples


def test_a_batch_predicts_exactly_the_completion_tokens():
    examples = make_examples(7, references=2)
    batch = examples.__getitems__([3, 0, 6])
    rows = [(examples.prompt_ids[i], examples.chosen_ids[i]) for i in (3, 0, 6)]
    rows += [(examples.prompt_ids[i], examples.rejected_ids[i]) for i in (3, 0, 6)]
    for row, (prompt, completion) in enumerate(rows):
        own = batch["rows"].numpy() == row
        whole = np.concatenate([prompt, completion])
        assert batch["input_ids"][row, : len(whole) - 1].tolist() == whole[:-1].tolist()
        assert batch["targets"].numpy()[own].tolist() == completion.tolist()
        # The token after the predicting position is the target.
        assert [whole[p + 1] for p in batch["positions"].numpy()[own]] == completion.tolist()
        assert batch["positions"].numpy()[own][0] == len(prompt) - 1
    assert batch["lengths"].tolist() == [len(completion) for _, completion in rows]
    assert batch["tokens"] == sum(len(prompt) + len(completion) for prompt, completion in rows)
    assert batch["reference_chosen"].shape == (3, 2)
    np.testing.assert_array_equal(batch["anchor_rejected"].numpy(), examples.anchor_rejected[[3, 0, 6]])


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
