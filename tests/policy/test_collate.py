"""Both layouts of a batch give, for every completion token, the position that predicts it and the tokens before it."""

import numpy as np
import pytest
from tiny_policy import make_examples

from mrpo_pipeline.models.input_layouts import plain_rows, shared_row
from mrpo_pipeline.policy.collate import lay_out_pairs

PICKED = [3, 0, 6]


@pytest.fixture
def batch():
    return make_examples(7).__getitems__(PICKED)


def whole_rows(batch):
    pairs = zip(batch["prompts"] * 2, batch["chosen"] + batch["rejected"], strict=True)
    return [(prompt.tolist(), completion.tolist()) for prompt, completion in pairs]


def test_two_rows_predict_exactly_the_completion_tokens(batch):
    laid = lay_out_pairs(batch, plain_rows)
    width = laid["input_ids"].shape[1]
    for number, (prompt, completion) in enumerate(whole_rows(batch)):
        own = laid["completions"].numpy() == int(laid["sides"][number])
        row = int(laid["sides"][number])
        assert laid["input_ids"][row, : len(prompt + completion) - 1].tolist() == (prompt + completion)[:-1]
        assert laid["targets"].numpy()[own].tolist() == completion
        places = laid["sources"].numpy()[own] - row * width
        assert places.tolist() == list(range(len(prompt) - 1, len(prompt + completion) - 1))


def test_a_shared_row_is_walked_back_to_each_completions_own_context(batch):
    """From every predicting position, the visible tokens in order are the prompt and the completion so far."""
    laid = lay_out_pairs(batch, shared_row)
    ids, positions = laid["input_ids"][0].tolist(), laid["position_ids"][0].tolist()
    parts = []  # for every position of the row: its pair, and 0 for prompt, 1 for chosen, 2 for rejected
    for pair, sizes in enumerate(laid["segments"]):
        parts += [(pair, kind) for kind, size in enumerate(sizes) for _ in range(size)]
    assert len(parts) == len(ids) == len(positions)
    pairs = len(PICKED)
    for number, (prompt, completion) in enumerate(whole_rows(batch)):
        own = laid["completions"].numpy() == int(laid["sides"][number])
        assert laid["targets"].numpy()[own].tolist() == completion
        for said, source in enumerate(laid["sources"].numpy()[own].tolist()):
            seen = [
                place
                for place in range(source + 1)
                if parts[place] in ((number % pairs, 0), (number % pairs, 1 + number // pairs))
            ]
            assert seen[-1] == source
            assert [ids[place] for place in seen] == prompt + completion[:said]
            assert [positions[place] for place in seen] == list(range(len(prompt) + said))


def test_a_shared_row_holds_every_prompt_once_and_no_padding(batch):
    prompts, sides = batch["prompts"], batch["chosen"] + batch["rejected"]
    assert lay_out_pairs(batch, shared_row)["input_ids"].numel() == sum(map(len, prompts)) + sum(
        len(side) - 1 for side in sides
    )


def test_completions_of_one_token_take_no_room():
    examples = make_examples(2)
    examples.chosen_ids[1], examples.rejected_ids[1] = np.array([7], np.int32), np.array([8], np.int32)
    laid = lay_out_pairs(examples.__getitems__([1]), shared_row)
    assert laid["segments"] == [(len(examples.prompt_ids[1]), 0, 0)]
    assert laid["sources"].tolist() == [len(examples.prompt_ids[1]) - 1] * 2
    assert laid["targets"].tolist() == [7, 8]
