"""The engine of a served reference, against a loopback server that answers like vLLM and can be made to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_vllm import LoopbackServer, free_port
from tiny_models import make

from mrpo_pipeline.engines.base import ImpossibleLogProbError, NoServerError, ScoringRequest
from mrpo_pipeline.engines.served import ServedEngine
from mrpo_pipeline.engines.served.answers import Completions, Dense, Generate
from mrpo_pipeline.engines.served.precision import computes_in_16_bits, is_distribution
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.recipe import parse_recipe


@pytest.fixture(scope="module")
def model() -> Any:
    return make("llama")


@pytest.fixture
def server(model: Any) -> Iterator[LoopbackServer]:
    with LoopbackServer(model) as one:
        yield one


@pytest.fixture
def texts(uneven: Any) -> list[ScoringRequest]:
    return [one for one in uneven(12) if len(one) > 8][:3]


def reference(url: str, **more: Any) -> Any:
    served = {"url": url, "retries": 1, **more}
    return parse_recipe({"references": {"base": {"model": "/nowhere", "server": served}}}).sources()[0]


def agrees(engine: ServedEngine, model: Any, plain: Any, requests: list[ScoringRequest]) -> None:
    got = dict(engine.score(requests))
    assert sorted(got) == list(range(len(requests)))
    for index, request in enumerate(requests):
        expected = plain(model, request)
        expected = expected if request.scored is None else expected[request.scored]
        assert got[index].dtype == np.float32
        np.testing.assert_allclose(got[index], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("way", [Dense, Generate, Completions])
def test_each_way_of_asking_gives_the_numbers_of_a_plain_forward(server, texts, model, plain, uneven, way) -> None:  # type: ignore[no-untyped-def]
    server.dense = way is Dense
    if way is Completions:
        server.routes -= {Generate.route}
    engine = ServedEngine(reference(server.url), texts)
    assert type(engine._way) is way and (engine.model, engine.context_length) == ("tiny", 512)
    requests = uneven(40)
    mask = np.arange(len(requests[1].completion_ids)) % 3 != 1
    requests.append(ScoringRequest(requests[1].prompt_ids, requests[1].completion_ids, mask))
    agrees(engine, model, plain, requests)
    assert engine.versions()["vllm (the server's)"] == "0.0-loopback"
    engine.close()


def test_no_more_is_asked_at_once_than_the_recipe_says(server, texts, uneven) -> None:  # type: ignore[no-untyped-def]
    server.before = lambda route, body: time.sleep(0.02)
    engine = ServedEngine(reference(server.url, concurrency=3), texts)
    list(engine.score(uneven(30)))
    assert server.most_at_once == 3


def test_a_busy_server_is_asked_again(server, texts, model, plain, uneven, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("random.uniform", lambda low, high: 0.01)
    engine = ServedEngine(reference(server.url, retries=3), texts)
    left = [429, 503, 502, None, 500]

    def busy(route: str, body: Any) -> Any:
        return (left.pop(), "text/html", b"<html>come again</html>") if left else None

    server.before = busy
    agrees(engine, model, plain, uneven(20))
    assert not left


def test_what_was_in_flight_is_all_that_a_dead_server_costs(server, texts, uneven) -> None:  # type: ignore[no-untyped-def]
    engine = ServedEngine(reference(server.url, retries=0, concurrency=4), texts)
    requests = uneven(60)
    scored = engine.score(requests)
    got = [next(scored)[0] for _ in range(10)]
    server.down()
    with pytest.raises(RunError, match=r"does not answer any more .*attempts: 1.*run `mrpo score-refs` again"):
        got.extend(index for index, _ in scored)
    sent = {tuple(body["token_ids"]) for body in server.bodies}
    asked = [index for index, one in enumerate(requests) if (*one.prompt_ids, *one.completion_ids) in sent]
    assert len(set(got)) == len(got) >= len(asked) - 4


def test_another_model_after_a_loss_is_refused_before_one_of_its_answers_is_taken(
    server, texts, model, plain, uneven, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("random.uniform", lambda low, high: 0.05)
    engine = ServedEngine(reference(server.url, retries=8, concurrency=2), texts)
    requests, got = uneven(40), {}

    def swap() -> None:
        server.down()
        server.model = make("llama", seed=1)
        server.before = lambda route, body: None
        server.up()

    scored = engine.score(requests)
    got.update(next(scored) for _ in range(5))
    server.before = lambda route, body: (None, "", b"")
    threading.Timer(0.1, swap).start()
    with pytest.raises(UserError, match=r"gives other log-probs .* another model is served as tiny now"):
        got.update(scored)
    assert 5 <= len(got) < 40
    for index, logps in got.items():
        np.testing.assert_allclose(logps, plain(model, requests[index]), atol=1e-3, rtol=0)


def test_the_same_model_after_a_loss_goes_on(server, texts, model, plain, uneven, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("random.uniform", lambda low, high: 0.02)
    engine = ServedEngine(reference(server.url, retries=6), texts)
    lost = iter([True] * 7)
    server.before = lambda route, body: (None, "", b"") if next(lost, False) else None
    agrees(engine, model, plain, uneven(30))
    assert engine._known_losses == engine._client.losses == 7


def last(value: float) -> Any:
    return lambda logps: np.where(np.arange(len(logps)) == len(logps) - 1, value, logps)


@pytest.mark.parametrize(
    ("dense", "value", "expected"),
    [(True, np.nan, "is nan"), (False, np.nan, "is nan"), (False, -9999.0, "is -inf")],  # -9999: vLLM's JSON for -inf
)
def test_numbers_that_are_no_log_probs_are_refused(server, texts, uneven, dense, value, expected) -> None:  # type: ignore[no-untyped-def]
    server.dense = dense
    engine = ServedEngine(reference(server.url), texts)
    server.change = last(value)
    with pytest.raises(ImpossibleLogProbError, match=expected):
        list(engine.score(uneven(5)))


def renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {"7": row.popitem()[1]}


def misread(server: LoopbackServer, edit: Any) -> None:
    """Let the server send its answer changed by ``edit``."""
    answer = server._generate
    server._generate = lambda body: edit(answer(body)) or answer(body)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda answer: answer | {"prompt_token_ids": [5] * len(answer["prompt_token_ids"])}, "other token ids than the"),
        (lambda answer: answer | {"prompt_logprobs": answer["prompt_logprobs"][:-1]}, r"positions for \d+ tokens"),
        (lambda answer: answer | {"prompt_logprobs": None}, "prompt_logprobs of no list positions"),
        (lambda answer: answer | {"prompt_logprobs": [None, *(renamed(row) for row in answer["prompt_logprobs"][1:])]}, "of other tokens"),
        (lambda answer: answer | {"prompt_logprobs": [None] * len(answer["prompt_logprobs"])}, "without a log-prob at each position"),
        (lambda answer: [answer], "no JSON object"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_of_what_was_sent_is_refused(server, texts, uneven, edit, expected) -> None:  # type: ignore[no-untyped-def]
    engine = ServedEngine(reference(server.url), texts)
    misread(server, edit)
    with pytest.raises(RunError, match=rf"base: .*do not line up with what was sent: .*{expected}"):
        list(engine.score(uneven(4)))


def test_what_no_server_can_score_is_refused_before_it_is_asked(server, texts) -> None:  # type: ignore[no-untyped-def]
    engine = ServedEngine(reference(server.url), texts)
    asked = server.asked
    with pytest.raises(UserError, match="a context of 512 holds 511 at most"):
        list(engine.score([ScoringRequest(np.full(500, 5, np.int32), np.full(12, 5, np.int32))]))
    assert server.asked == asked


# Errors at the start: exit code 2.


def test_nobody_at_the_address(texts: Any) -> None:
    with pytest.raises(
        NoServerError,
        match=r"reference base at http://127.0.0.1:\d+ does not answer GET /v1/models .*references.base.server.url",
    ):
        ServedEngine(reference(f"http://127.0.0.1:{free_port()}"), texts)


def test_a_web_page_in_place_of_a_server(server: Any, texts: Any) -> None:
    server.before = lambda route, body: (200, "text/html", b"<html>hello</html>")
    with pytest.raises(UserError, match="HTTP 200 and text/html, not with JSON: expected a running vLLM"):
        ServedEngine(reference(server.url), texts)


def test_an_answer_that_leads_elsewhere(server: Any, texts: Any) -> None:
    server.before = lambda route, body: (302, "text/html", b"")
    with pytest.raises(UserError, match="HTTP 302"):
        ServedEngine(reference(server.url), texts)


def test_a_model_that_is_not_served(server: Any, texts: Any) -> None:
    with pytest.raises(
        UserError, match=r"serves no model large: there are tiny\. Name one of them as references.base.server.model"
    ):
        ServedEngine(reference(server.url, model="large"), texts)


def test_a_server_that_does_not_list_log_probs_of_prompts(server: Any, texts: Any) -> None:
    server.routes -= {Generate.route, Completions.route}
    with pytest.raises(
        UserError,
        match=r"no log-probs of a prompt's tokens \(POST /inference/v1/generate: HTTP 403: Scale-out .* disabled.; POST /v1/comp",
    ):
        ServedEngine(reference(server.url), texts)


def test_logits_in_place_of_log_probs(server: Any, texts: Any, model: Any) -> None:
    logps = server._logps
    server._logps = lambda ids: logps(ids) + 3.0
    with pytest.raises(UserError, match=r"sum to more than 1.*--logprobs-mode raw_logprobs"):
        ServedEngine(reference(server.url), texts)


def test_the_key_comes_from_the_environment_and_is_told_nobody(
    server: Any, texts: Any, uneven: Any, monkeypatch: Any
) -> None:
    server.key = "sk-very-secret"
    with pytest.raises(
        UserError, match=r"refuses a request without a key \(HTTP 401\).*references.base.server.api_key_env"
    ):
        ServedEngine(reference(server.url), texts)
    with pytest.raises(UserError, match="names MRPO_TEST_KEY, an environment variable that is not set"):
        ServedEngine(reference(server.url, api_key_env="MRPO_TEST_KEY"), texts)
    monkeypatch.setenv("MRPO_TEST_KEY", "sk-wrong-secret")
    with pytest.raises(UserError, match="refuses the key in MRPO_TEST_KEY") as caught:
        ServedEngine(reference(server.url, api_key_env="MRPO_TEST_KEY"), texts)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("MRPO_TEST_KEY", "sk-very-secret")
    engine = ServedEngine(reference(server.url, api_key_env="MRPO_TEST_KEY"), texts)
    server.before = lambda route, body: (
        400,
        "application/json",
        json.dumps({"error": {"message": f"no {server.key}!"}}).encode(),
    )
    with pytest.raises(RunError, match=r"HTTP 400: no \*\*\*!"):
        list(engine.score(uneven(3)))


def test_differences_of_logits_in_16_bits_are_told_from_those_of_32() -> None:
    import torch

    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 50, generator=draw) * 4
    for dtype, coarse in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, True)):
        logps = torch.log_softmax(logits.to(dtype).float(), dim=-1)
        rows = [{"1": float(row[1]), "2": float(row[2])} for row in logps]
        assert computes_in_16_bits(rows) is coarse
        assert all(map(is_distribution, rows))
    assert computes_in_16_bits([{"1": -0.5}])
    assert not is_distribution({"1": -0.1, "2": -0.1})


def test_the_files_of_a_served_model_are_not_looked_for(tmp_path: Path) -> None:
    from mrpo_pipeline.models.source import fetch, resolve

    source = reference("http://host:1", model="big")
    assert fetch(source) is source
    fields = resolve(source)
    assert (fields["weights"], fields["dtype"], fields["adapter"]) == ("served as big", "as served", "none")
    assert resolve(reference("http://host:1"))["weights"] is None
