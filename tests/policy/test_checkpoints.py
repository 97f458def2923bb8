import json
import os

import pytest
from tiny_policy import make_examples

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.checkpoints import (
    MARKER,
    checkpoints,
    latest_complete,
    mark_complete,
    remove,
    rotate,
)
from mrpo_pipeline.policy.run_identity import examples_digest

RUN = {"training.learning_rate": "0.1", "pairs": "abc"}


def write(folder, step, *, whole=True, run=RUN):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "adapter_model.safetensors").write_bytes(b"weights" * step)
    if whole:
        mark_complete(checkpoint, run)
        # Files written within one tick of the clock would have no order.
        os.utime(checkpoint / MARKER, ns=(step, step))
    return checkpoint


def names(folder):
    return [path.name for path in checkpoints(folder)]


def test_the_latest_complete_checkpoint_is_used_and_partial_ones_are_ignored(tmp_path):
    write(tmp_path, 9)
    expected = write(tmp_path, 10)
    write(tmp_path, 20, whole=False)
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert latest_complete(tmp_path, RUN) == expected


def test_a_file_truncated_after_the_marker_makes_a_checkpoint_incomplete(tmp_path):
    expected = write(tmp_path, 1)
    broken = write(tmp_path, 2)
    (broken / "adapter_model.safetensors").write_bytes(b"w")
    assert latest_complete(tmp_path, RUN) == expected
    (expected / MARKER).write_text("{")
    with pytest.raises(UserError, match=r"checkpoint-1/complete\.json"):
        latest_complete(tmp_path, RUN)


FILES = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "carried.json",
)


@pytest.mark.parametrize("name", [*FILES, MARKER])
def test_a_byte_that_changed_is_found_the_one_before_is_taken_and_without_one_it_is_refused_by_name(
    tmp_path, name, caplog
):
    for step in (1, 2):
        checkpoint = write(tmp_path, step, whole=False)
        for file in FILES:
            (checkpoint / file).write_text(f'{{"global_step": {step}, "more": "training.learning_rate"}}')
        mark_complete(checkpoint, RUN)
    assert latest_complete(tmp_path, RUN) == tmp_path / "checkpoint-2"
    for step, taken in ((2, tmp_path / "checkpoint-1"), (1, None)):
        flip(tmp_path / f"checkpoint-{step}" / name)
        if taken is not None:
            assert latest_complete(tmp_path, RUN) == taken
            assert f"checkpoint-2/{name} is not what training wrote" in caplog.text
        else:
            with pytest.raises(UserError, match=f"checkpoint-1/{name}"):
                latest_complete(tmp_path, RUN)


def test_a_checkpoint_without_checksums_is_taken_and_that_is_logged(tmp_path, caplog):
    checkpoint = write(tmp_path, 1)
    marker = json.loads((checkpoint / MARKER).read_text())
    (checkpoint / MARKER).write_text(json.dumps({"files": marker["files"], "run": marker["run"]}))
    assert latest_complete(tmp_path, RUN) == checkpoint
    assert "the sizes alone" in caplog.text


def test_removing_a_checkpoint_that_is_a_symlink_removes_only_the_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, 1)
    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoint-1").symlink_to(elsewhere / "checkpoint-1")
    write(out, 2)
    rotate(out, 1)
    assert names(out) == ["checkpoint-2"]
    assert latest_complete(elsewhere, RUN) == elsewhere / "checkpoint-1"


def flip(path):
    """Change one digit, so that the file stays readable."""
    text = path.read_text()
    at = next(i for i in range(len(text) - 1, 0, -1) if text[i].isdigit())
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


def test_no_checkpoint_to_resume_from_is_no_error(tmp_path):
    assert latest_complete(tmp_path / "not there", RUN) is None


def test_a_checkpoint_of_another_run_is_refused_naming_what_differs(tmp_path):
    write(tmp_path, 5)
    with pytest.raises(UserError, match=r"training\.learning_rate \(was 0\.1, now 0\.2\)"):
        latest_complete(tmp_path, RUN | {"training.learning_rate": "0.2"})
    with pytest.raises(UserError, match="pairs or their cached numbers have changed"):
        latest_complete(tmp_path, RUN | {"pairs": "abd"})
    mine = write(tmp_path, 3, run=RUN | {"pairs": "abd"})
    assert latest_complete(tmp_path, RUN | {"pairs": "abd"}) == mine


def test_rotation_keeps_the_newest_complete_checkpoints_and_ignores_partial_ones(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 4, whole=False)
    rotate(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_rotation_keeps_the_only_complete_checkpoint(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2, whole=False)
    rotate(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-1"]


def test_rotation_keeps_the_best_and_the_newest(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    rotate(tmp_path, 2, keep=[tmp_path / "checkpoint-1"])
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]
    rotate(tmp_path, 1, keep=[tmp_path / "checkpoint-1"])
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]


def test_rotation_goes_by_age_when_a_run_restarts(tmp_path):
    old = write(tmp_path, 100)
    os.utime(old / MARKER, ns=(1, 1))
    write(tmp_path, 5)
    rotate(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-5"]


def test_rotation_keeps_the_one_just_marked_where_the_clock_jumped_back(tmp_path):
    write(tmp_path, 5)
    newest = write(tmp_path, 10)
    os.utime(newest / MARKER, ns=(1, 1))
    rotate(tmp_path, 1, newest=newest)
    assert names(tmp_path) == ["checkpoint-10"]


def test_without_a_limit_everything_stays(tmp_path):
    write(tmp_path, 1, whole=False)
    rotate(tmp_path, None)
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_checkpoint_written_over_an_old_one_is_incomplete_until_it_is_marked(tmp_path):
    checkpoint = write(tmp_path, 1)
    remove(checkpoint)
    assert not checkpoint.exists()


def test_the_marker_lists_every_file_with_its_size(tmp_path):
    checkpoint = write(tmp_path, 3)
    assert json.loads((checkpoint / MARKER).read_text())["files"] == {"adapter_model.safetensors": 21}


def test_the_digest_sees_tokens_and_numbers():
    digests = {examples_digest(make_examples(4)), examples_digest(make_examples(4, seed=1))}
    examples = make_examples(4)
    assert examples_digest(examples) in digests
    examples.prompt_ids[0][0] += 1
    digests.add(examples_digest(examples))
    examples.reference_chosen[2, 0] += 1e-9
    digests.add(examples_digest(examples))
    assert len(digests) == 4
