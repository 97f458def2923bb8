"""Requests that no engine can score are refused with their index; messages between processes arrive unchanged."""

from __future__ import annotations

from multiprocessing import Pipe

import numpy as np
import pytest

from mrpo_pipeline.engines import ScoringRequest, engine_available, open_engine
from mrpo_pipeline.engines.base import check_finite, check_requests
from mrpo_pipeline.engines.vllm.ipc import receive, send, split
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.source import ModelSource


def request(prompt: list[int], completion: list[int]) -> ScoringRequest:
    return ScoringRequest(np.array(prompt, np.int32), np.array(completion, np.int32))


FINE = request([1, 2], [3])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (request([], [3]), "prompt has no tokens"),
        (request([1], []), "completion has no tokens"),
        (request([1] * 7, [3, 4]), "make 9, and a context of 9 holds 8"),
        (request([1], [50]), "token id 50 is outside"),
        (request([-1], [5]), "token id -1 is outside"),
    ],
)
def test_a_bad_request_is_named_by_its_index(bad: ScoringRequest, words: str) -> None:
    with pytest.raises(UserError, match="request 1: ") as caught:
        check_requests([FINE, bad], context_length=9, vocab_size=50)
    assert words in str(caught.value)


def test_one_token_less_than_the_context_and_the_last_id_are_accepted() -> None:
    check_requests([request([1] * 7, [49])], context_length=9, vocab_size=50)
    check_requests([request([1] * 700, [49])], context_length=None, vocab_size=50)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_log_prob_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(RunError, match=r"request 7: .*completion token 1 \(id 6\)"):
        check_finite(7, request([1], [5, 6, 8]), np.array([-1.0, value, -2.0], np.float32))


def test_messages_keep_header_numbers_and_their_type() -> None:
    here, there = Pipe()
    send(here, {"event": "results", "length": [2, 1]}, np.array([-1.5, -2.5, -3.5], np.float32))
    send(here, {"event": "done"})
    header, numbers = receive(there)
    assert header == {"event": "results", "length": [2, 1]}
    assert numbers.dtype == np.float32
    assert [piece.tolist() for piece in split(numbers, header["length"])] == [[-1.5, -2.5], [-3.5]]
    assert receive(there)[0] == {"event": "done"}
    here.close()
    with pytest.raises(EOFError):
        receive(there)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("llama", 512), ("gpt2", 512), ("opt", 512), ("bloom", None), ("mamba", None)],
)
def test_context_length_by_configuration(kind: str, expected: int | None) -> None:
    from tiny_models import build_config

    assert context_length(build_config(kind)) == expected


def test_alibi_lifts_the_limit() -> None:
    from transformers import FalconConfig

    assert context_length(FalconConfig(alibi=True)) is None
    assert context_length(FalconConfig(alibi=False, max_position_embeddings=99)) == 99


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match="auto, vllm, transformers"):
        open_engine("tgi", ModelSource(model="x").named("x"))
    assert "no engine tgi" in str(engine_available("tgi"))


def test_vllm_not_installed_is_said_and_auto_takes_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tiny_models import build

    import mrpo_pipeline.engines as engines

    real = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "vllm" else real(name))
    source = ModelSource(model=str(build("llama", tmp_path / "llama"))).named("tiny")
    with pytest.raises(UserError, match="not installed"):
        open_engine("vllm", source)
    engine = open_engine("auto", source, {"max_batch_tokens": 64, "gpu_memory_utilization": 0.5})
    assert engine.name == "transformers"
    assert "since vLLM is not installed" in engine.notices[0]
    engine.close()


def test_auto_is_vllm_on_a_gpu_and_transformers_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import mrpo_pipeline.engines as engines
    from mrpo_pipeline.engines.vllm import environment

    monkeypatch.setattr(engines, "engine_available", lambda kind: None)
    monkeypatch.setattr(environment, "has_gpu", lambda: False)
    kind, why = engines.choose_engine("auto", {"max_batch_tokens": 512})
    assert kind == "transformers" and "on a CPU it starts at once" in why and "\n" not in why
    assert engines.choose_engine("auto", {"max_num_seqs": 4})[0] == "vllm"  # an option of vLLM's own
    assert engines.choose_engine("auto", {}, "gpu")[0] == "vllm"  # planned for a GPU that this machine lacks
    assert engines.choose_engine("vllm", {})[0] == "vllm"
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    assert engines.choose_engine("auto", {})[0] == "vllm"
    monkeypatch.setattr(engines, "engine_available", lambda kind: "it is not installed")
    assert engines.choose_engine("auto", {}) == ("transformers", "it is not installed")
