"""A checkpoint folder from elsewhere runs no code on --resume, for any planted file."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import shutil
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from tiny_policy import write_policy
from torch.distributed import checkpoint as sharded
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING
from training_run import run

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.checkpoints import MARKER, mark_complete
from mrpo_pipeline.policy.safe_resume import INDEX, check_indexes, data_only


class Planted:
    """Unpickling it creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mknod, (str(self.trace),)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose last complete checkpoint is of the second of four steps."""
    folder = tmp_path_factory.mktemp("stopped")
    model = write_policy(folder / "model")
    run(model, folder / "out", max_steps=4, save_total_limit=3)
    shutil.rmtree(folder / "out" / "checkpoint-4")
    (folder / "out" / MARKER).unlink()
    return model, folder / "out"


def plant(checkpoint: Path, name: str, trace: Path) -> None:
    """Replace a file and update the marker, as an attacker would."""
    torch.save({"state": Planted(trace), "param_groups": []}, checkpoint / name)
    if name == "adapter_model.bin":
        (checkpoint / "adapter_model.safetensors").unlink()
    identity = json.loads((checkpoint / MARKER).read_text())["run"]
    (checkpoint / MARKER).unlink()
    mark_complete(checkpoint, identity)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin"])
def test_a_planted_pickle_is_refused_and_does_not_run(stopped, tmp_path, name):
    model, left = stopped
    output, trace = tmp_path / "out", tmp_path / "ran"
    shutil.copytree(left, output)
    plant(output / "checkpoint-2", name, trace)
    with pytest.raises(UserError, match=r"--resume found .*checkpoint-2, a file of which is not what training wrote"):
        run(model, output, resume=True, max_steps=4, save_total_limit=3)
    assert not trace.exists()
    torch.load(output / "checkpoint-2" / name, weights_only=False)
    assert trace.exists(), "the trap is one: read without care, it goes off"


def test_a_run_resumes_from_an_intact_checkpoint(stopped, tmp_path):
    model, left = stopped
    shutil.copytree(left, tmp_path / "out")
    assert run(model, tmp_path / "out", resume=True, max_steps=4, save_total_limit=3)["train_loss"] > 0


STATE = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "lr": 0.1,
    "betas": (0.9, 1),
}


def write_sharded(folder: Path) -> Path:
    """A sharded part like FSDP's: an index, and tensors and numbers in a torch file."""
    sharded.save({"optimizer": STATE}, checkpoint_id=folder / "optimizer_0", no_dist=True)
    return folder


def read_sharded(folder: Path) -> dict[str, object]:
    state = {"optimizer": {**STATE, "weight": torch.zeros(2, 3), "lr": 0.0}}
    sharded.load(state, checkpoint_id=folder / "optimizer_0", no_dist=True)
    return state["optimizer"]


def test_a_sharded_part_is_read_as_it_was_written(tmp_path):
    with data_only(write_sharded(tmp_path)):
        found = read_sharded(tmp_path)
    assert torch.equal(found["weight"], STATE["weight"])
    assert (found["lr"], found["betas"]) == (0.1, (0.9, 1))


def test_a_planted_index_of_a_sharded_part_does_not_run(tmp_path):
    index = write_sharded(tmp_path) / "optimizer_0" / INDEX
    index.write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"optimizer_0/\.metadata: it names posix\.mknod"), data_only(tmp_path):
        read_sharded(tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(index.read_bytes())
    assert (tmp_path / "ran").exists(), "without the guard it runs"


class Attribute:
    """Pickled as a member of an enum is by Python 3.11.2: by ``getattr``."""

    def __init__(self, of: type, name: str) -> None:
        self.found = getattr, (of, name)

    def __reduce__(self) -> tuple[object, tuple[type, str]]:
        return self.found


def test_an_index_reads_members_of_its_enum_by_name_and_no_other_attribute(tmp_path):
    index = tmp_path / INDEX
    index.write_bytes(pickle.dumps(Attribute(_MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST")))
    check_indexes(tmp_path)
    for of, name in ((_MEM_FORMAT_ENCODING, "__init_subclass__"), (PosixPath, "unlink")):
        index.write_bytes(pickle.dumps(Attribute(of, name)))
        with pytest.raises(UserError, match=r"it names builtins\.getattr"):
            check_indexes(tmp_path)


def test_a_planted_number_in_a_sharded_part_does_not_run(tmp_path):
    """torch reads non-tensors there with weights_only=False, which would run code."""
    write_sharded(tmp_path)
    index = tmp_path / "optimizer_0" / INDEX
    metadata = pickle.loads(index.read_bytes())
    trap = io.BytesIO()
    torch.save(Planted(tmp_path / "ran"), trap)
    for place, info in metadata.storage_data.items():
        if place.fqn.endswith("lr"):
            file = tmp_path / "optimizer_0" / info.relative_path
            info.offset, info.length = file.stat().st_size, len(trap.getvalue())
            file.write_bytes(file.read_bytes() + trap.getvalue())
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=r"a pickle of GLOBAL posix\.mknod"), data_only(tmp_path):
        read_sharded(tmp_path)
    assert not (tmp_path / "ran").exists()
    read_sharded(tmp_path)
    assert (tmp_path / "ran").exists(), "without the guard it runs"


@pytest.mark.parametrize(
    "thing",
    [collections.Counter(), np.float64(1), Path.cwd, collections.OrderedDict.fromkeys, torch.load, "no index", b"\x80"],
    ids=["Counter", "numpy scalar", "Path.cwd", "fromkeys", "torch.load", "text", "bytes"],
)
def test_an_index_holds_nothing_but_its_own_kinds(tmp_path, thing):
    """Harmless data that is not an index passes here and fails in torch; a file that names a function does not pass."""
    (tmp_path / INDEX).write_bytes(thing if isinstance(thing, bytes) else pickle.dumps(thing))
    if isinstance(thing, str):
        check_indexes(tmp_path)
        return
    with pytest.raises(UserError, match="is not what training wrote"):
        check_indexes(tmp_path)


def test_the_switches_of_torch_are_as_they_were_afterwards(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with data_only(None):
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("else"), pickle.UnpicklingError("of no checkpoint")])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error)), data_only(None):
        raise error
