"""Served references end to end, with a loopback server and with a real `vllm serve`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_vllm import LoopbackServer, VllmServer
from mrpo_command import mrpo
from test_scoring import cached_rows, check_against_oracle
from tiny_models import make
from tiny_recipes import QUICK
from tiny_references import hard_pairs, plain_pairs, reference, write_pairs

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.recipe.plain_yaml import write_yaml
from mrpo_pipeline.scoring import score_references
from mrpo_pipeline.verify import verify_cache


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("models") / "base", "llama", "qwen")


@pytest.fixture(scope="module")
def tokenizer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a machine that only uses a server: no weights, no configuration."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def vocabulary(base: Path) -> int:
    return int(json.loads((base / "config.json").read_text())["vocab_size"])


@pytest.fixture
def server(vocabulary: int) -> Iterator[LoopbackServer]:
    with LoopbackServer(make("llama", vocab_size=vocabulary)) as one:
        yield one


def document(
    folder: Path, base: Path, tokenizer: Path, served: Any, rows: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    return {
        "pairs": {"train": str(write_pairs(folder / "pairs.jsonl", rows))},
        "policy": {"model": str(base), "lora": {"target_modules": "all-linear"}},
        "references": {"base": {"tokenizer": str(tokenizer), "server": served}},
        "cache": str(folder / "cache"),
        "limits": {"max_length": 400},
        "training": QUICK,
        "output_dir": str(folder / "out"),
        **more,
    }


def test_a_served_reference_gives_the_rows_of_a_plain_forward_pass(server, tmp_path, base, tokenizer) -> None:  # type: ignore[no-untyped-def]
    rows = hard_pairs()
    run = parse_recipe(
        document(tmp_path, base, tokenizer, {"url": server.url, "concurrency": 3}, rows, scoring={"workers": 2})
    )
    (report,) = score_references(run)
    assert (report.engine, report.scored, report.workers) == ("served", 2 * len(rows), 1)
    assert check_against_oracle(tmp_path, "base", base, rows, 1e-3) > 200
    manifest = json.loads((tmp_path / "cache" / "base" / "manifest.json").read_text())
    fields = manifest["fingerprint"]
    assert (fields["weights"], fields["dtype"], fields["adapter"]) == ("served as tiny", "as served", "none")
    assert json.loads(fields["probe"])["tolerance"] == 5e-3
    assert manifest["recorded"]["versions"]["vllm (the server's)"] == "0.0-loopback"
    asked = server.asked
    (again,) = score_references(run)
    assert (again.scored, again.cached, server.asked) == (0, 2 * len(rows), asked)


def test_another_model_under_the_same_name_is_refused_at_resume(server, tmp_path, base, tokenizer, vocabulary) -> None:  # type: ignore[no-untyped-def]
    score_references(parse_recipe(document(tmp_path, base, tokenizer, server.url, plain_pairs(5))))
    server.model = make("llama", vocab_size=vocabulary, seed=1)
    more = parse_recipe(document(tmp_path, base, tokenizer, server.url, plain_pairs(6)))
    with pytest.raises(
        UserError,
        match=r"`probe` is the log-probs that the served model gave fixed texts .* another model is served now",
    ):
        score_references(more)
    with pytest.raises(UserError, match="another model is served now"):
        list(verify_cache(more, check=2))
    server.model = make("llama", vocab_size=vocabulary)
    assert [(one.scored, one.cached) for one in score_references(more)] == [(2, 10)]
    assert check_against_oracle(tmp_path, "base", base, plain_pairs(6), 1e-3)


def test_a_model_served_under_another_name_is_refused(server, tmp_path, base, tokenizer) -> None:  # type: ignore[no-untyped-def]
    score_references(parse_recipe(document(tmp_path, base, tokenizer, server.url, plain_pairs(2))))
    server.name = "other"
    with pytest.raises(UserError, match="`weights` is served as tiny in the cache and served as other in this run"):
        score_references(parse_recipe(document(tmp_path, base, tokenizer, server.url, plain_pairs(3))))
    loaded = document(tmp_path, base, tokenizer, server.url, plain_pairs(3))
    loaded["references"]["base"] = {"model": str(base)}
    with pytest.raises(UserError, match=r"`weights` is served as tiny in the cache and sha256:"):
        score_references(parse_recipe(loaded))


def test_a_model_swapped_behind_a_load_balancer_leaves_no_row(server, tmp_path, base, tokenizer, vocabulary) -> None:  # type: ignore[no-untyped-def]
    rows = plain_pairs(30)
    run = parse_recipe(
        document(tmp_path, base, tokenizer, {"url": server.url, "concurrency": 2}, rows, scoring={"rows_per_shard": 10})
    )
    other = make("llama", vocab_size=vocabulary, seed=1)

    def swap(route: str, body: Any) -> None:
        if server.asked == 45:  # and no connection is lost
            server.model = other

    server.before = swap
    with pytest.raises(UserError, match="gives other log-probs than when this run began"):
        score_references(run)
    kept = cached_rows(tmp_path / "cache", "base")
    assert kept and len(kept) % 10 == 0 and len(kept) < 60
    server.before, server.model = lambda route, body: None, make("llama", vocab_size=vocabulary)
    (report,) = score_references(run)
    assert (report.scored, report.cached) == (60 - len(kept), len(kept))
    assert check_against_oracle(tmp_path, "base", base, rows, 1e-3)


@pytest.mark.parametrize(("noise", "refused"), [(1e-3, False), (0.02, True)])
def test_a_probe_is_compared_by_what_the_server_computes_in(server, tmp_path, base, tokenizer, noise, refused) -> None:  # type: ignore[no-untyped-def]
    score_references(parse_recipe(document(tmp_path, base, tokenizer, server.url, plain_pairs(2))))
    draw = np.random.default_rng(0)
    server.change = lambda logps: logps + draw.normal(0, noise, len(logps))
    run = parse_recipe(document(tmp_path, base, tokenizer, server.url, plain_pairs(3)))
    if refused:
        with pytest.raises(UserError, match="another model is served now"):
            score_references(run)
    else:
        assert score_references(run)[0].scored == 2


def test_log_probs_above_zero_do_not_enter_the_cache(server, tmp_path, base, tokenizer) -> None:  # type: ignore[no-untyped-def]
    server.change = lambda logps: (
        np.where(np.arange(len(logps)) == len(logps) - 1, 0.5, logps) if server.asked > 20 else logps
    )
    run = parse_recipe(document(tmp_path, base, tokenizer, {"url": server.url, "concurrency": 1}, plain_pairs(12)))
    with pytest.raises((RunError, UserError), match=r"is 0\.5: expected 0 at most"):
        score_references(run)


def test_the_key_is_in_no_file_and_no_output(server, tmp_path, base, tokenizer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    server.key = "sk-very-secret"
    monkeypatch.setenv("MRPO_TEST_KEY", server.key)
    served = {"url": server.url, "api_key_env": "MRPO_TEST_KEY", "retries": 0}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(write_yaml(document(tmp_path, base, tokenizer, served, plain_pairs(4))))
    done = [mrpo("--verbose", "score-refs", recipe, cwd=tmp_path), mrpo("train", recipe, cwd=tmp_path)]
    server.key = "sk-another"
    write_pairs(tmp_path / "pairs.jsonl", plain_pairs(6))
    done.append(mrpo("score-refs", recipe, cwd=tmp_path))
    assert [one.returncode for one in done] == [0, 0, 2], [one.stderr for one in done]
    assert "refuses the key in MRPO_TEST_KEY (HTTP 401)" in done[-1].stderr and "Traceback" not in done[-1].stderr
    assert not any("sk-" in one.stdout + one.stderr for one in done)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and not any(b"sk-very-secret" in path.read_bytes() for path in files)
    assert "MRPO_TEST_KEY" in (tmp_path / "out" / "recipe.yaml").read_text()


@pytest.mark.slow
def test_nothing_but_scoring_needs_the_server(server, tmp_path, base, tokenizer) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "recipe.yaml"
    more = {"pairs": {"train": str(tmp_path / "pairs.jsonl"), "eval_fraction": 0.3}, "evaluation": {"samples": 0}}
    recipe.write_text(write_yaml(document(tmp_path, base, tokenizer, server.url, plain_pairs(12)) | more))
    first = mrpo("score-refs", recipe, "--set", "scoring.check=3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "the server recomputed its own log-probs" in first.stderr + first.stdout
    server.down()
    for command in (
        ["plan", recipe], ["score-refs", recipe], ["audit", recipe], ["targets", recipe, "--output", tmp_path / "t.parquet"],
        ["train", recipe], ["evaluate", recipe], ["cache", "verify", recipe], ["cache", "list", "--cache", tmp_path / "cache"],
    ):  # fmt: skip
        done = mrpo(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        if command[:2] == ["cache", "verify"]:
            assert "not recomputed (The server of reference base at http" in " ".join(done.stdout.split())
        if command[0] == "plan":
            assert "those of the server at http" in " ".join(done.stdout.split())


def test_a_server_that_is_not_there_ends_with_exit_code_2(tmp_path, base, tokenizer) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(write_yaml(document(tmp_path, base, tokenizer, "http://127.0.0.1:9", plain_pairs(2))))
    done = mrpo("score-refs", recipe, cwd=tmp_path)
    assert done.returncode == 2 and "does not answer GET /v1/models" in " ".join(done.stderr.split())
    assert not (tmp_path / "cache" / "base" / "manifest.json").exists()


def start(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mrpo_cli.main", "score-refs", str(recipe)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_shards(folder: Path, count: int, run: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        found = len(list((folder / "cache" / "base" / "shards").glob("*.parquet")))
        if found >= count:
            return found
        time.sleep(0.02)
    raise AssertionError(run.communicate(timeout=30))


def test_an_interrupt_keeps_what_was_scored(server, tmp_path, base, tokenizer) -> None:  # type: ignore[no-untyped-def]
    server.before = lambda route, body: time.sleep(0.01)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        write_yaml(document(tmp_path, base, tokenizer, server.url, plain_pairs(400), scoring={"rows_per_shard": 20}))
    )
    run = start(recipe, tmp_path)
    wait_for_shards(tmp_path, 2, run)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert 40 <= len(cached_rows(tmp_path / "cache", "base")) < 800


@pytest.mark.vllm
@pytest.mark.slow
def test_a_real_server_killed_in_the_middle_and_started_again(tmp_path, base, tokenizer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """`vllm serve` with the token-id route is killed, restarted without that route, and then with another model."""
    rows = plain_pairs(300)  # one at a time, so that most of them are left when the server is killed
    monkeypatch.setenv("MRPO_TEST_KEY", "sk-very-secret")
    recipe = tmp_path / "recipe.yaml"
    real = VllmServer(tmp_path / "vllm.log")
    served = {"url": real.url, "api_key_env": "MRPO_TEST_KEY", "retries": 0, "concurrency": 1}
    recipe.write_text(write_yaml(document(tmp_path, base, tokenizer, served, rows, scoring={"rows_per_shard": 15})))
    try:
        real.start(base, "--enable-scale-out", key="sk-very-secret")
        run = start(recipe, tmp_path)
        wait_for_shards(tmp_path, 2, run)
        real.kill()
        _, errors = run.communicate(timeout=60)
        told = " ".join(errors.split())
        assert run.returncode == 1 and "does not answer any more" in told and "scores what is missing" in told, errors
        assert "by POST /inference/v1/generate" in told
        kept = cached_rows(tmp_path / "cache", "base")
        assert 30 <= len(kept) < 600
        real.start(base, key="sk-very-secret")
        (again,) = score_references(parse_recipe(document(tmp_path, base, tokenizer, served, rows)))
        assert (again.scored, again.cached) == (600 - len(kept), len(kept))
        found = cached_rows(tmp_path / "cache", "base")  # which holds no completion twice
        assert len(found) == 600 and all(found[one] == row for one, row in kept.items())
        assert check_against_oracle(tmp_path, "base", base, rows, 1e-3) > 6000
        (verified,) = verify_cache(parse_recipe(document(tmp_path, base, tokenizer, served, rows)), check=5)
        assert verified.drift is not None and verified.drift.passed and verified.drift.differences.token_max < 1e-3
        real.kill()
        real.start(reference(tmp_path / "other", "llama", "qwen", seed=1), key="sk-very-secret")
        with pytest.raises(UserError, match="another model is served now"):
            score_references(parse_recipe(document(tmp_path, base, tokenizer, served, plain_pairs(301))))
    finally:
        real.kill()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-very-secret" in path.read_bytes() for path in files)
