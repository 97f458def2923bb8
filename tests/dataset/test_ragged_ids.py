import numpy as np
import pytest
from tiny_policy import make_examples

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.ragged_ids import IdRows
from mrpo_pipeline.policy.run_identity import examples_digest

ROWS = [np.array(row, np.int32) for row in ([5, 6, 7], [8], [9, 10])]


def test_rows_are_views_of_one_flat_array_and_read_as_the_list_did():
    rows = IdRows.of(ROWS)
    assert len(rows) == 3 and rows.lengths.tolist() == [3, 1, 2]
    for place in (0, 1, 2, -1, -3):
        assert rows[place].tolist() == ROWS[place].tolist()
    assert [row.tolist() for row in rows] == [row.tolist() for row in ROWS]
    assert [row.tolist() for row in rows[1:]] == [[8], [9, 10]]
    assert np.shares_memory(rows[1], rows.flat)
    assert IdRows.of(rows) is rows
    for place in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            rows[place]


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 4"):
        IdRows(np.zeros(5, np.int32), np.array([1, 3]))


def test_examples_that_were_written_open_as_they_were_mapped_and_outlive_their_files(tmp_path):
    examples = make_examples(7, references=3)
    examples.chosen_units = np.arange(7.0) + 1
    examples.rejected_units = np.arange(7.0) + 2
    examples.write(tmp_path / "train")
    opened = PreferenceExamples.open(tmp_path / "train")
    for file in (tmp_path / "train").iterdir():
        file.unlink()
    assert examples_digest(opened) == examples_digest(examples)
    assert isinstance(opened.chosen_ids, IdRows) and not opened.chosen_ids.flat.flags.writeable
    ours, theirs = examples.__getitems__([2, ~5]), opened.__getitems__([2, ~5])
    assert ours.keys() == theirs.keys()
    for name in ("prompts", "chosen", "rejected"):
        assert [ids.tolist() for ids in theirs[name]] == [ids.tolist() for ids in ours[name]]
    for name in ("weights", "anchor_rejected", "rejected_units", "lengths", "pair_weights"):
        assert (theirs[name] == ours[name]).all(), name
    assert opened.pair_ids == examples.pair_ids
