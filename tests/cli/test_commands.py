"""The `mrpo` command as a user meets it: a real process, its exit code and what it prints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mrpo_command import mrpo
from tiny_references import pair, plain_pairs, reference, write_pairs

BAD_ROWS = {
    "missing side": {"prompt": "a", "chosen": "b"},
    "null": {"prompt": "a", "chosen": "b", "rejected": None},
    "wrong type": {"prompt": "a", "chosen": 3, "rejected": "c"},
    "empty completion": {"prompt": "a", "chosen": "", "rejected": "c"},
    "equal sides": {"prompt": "a", "chosen": "c", "rejected": "c"},
    "unknown role": {"prompt": [{"role": "wizard", "content": "a"}], "chosen": "b", "rejected": "c"},
    "tool call": pair("a", "b", "c") | {"chosen": [{"role": "assistant", "content": "b", "tool_calls": [{"id": "1"}]}]},
    "image": pair([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "b", "c"),
    "a user's message in an answer": pair("a", "b", "c")
    | {"chosen": [{"role": role, "content": "b"} for role in ("assistant", "user", "assistant")]},
    "empty prompt": pair([], "b", "c"),
    "lone surrogate": None,
    "invalid UTF-8": None,
    "not JSON": None,
    "not an object": None,
}
RAW = {
    "lone surrogate": b'{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}',
    "invalid UTF-8": b'{"prompt": "a", "chosen": "\xff\xfe", "rejected": "c"}',
    "not JSON": b'{"prompt": "a", "chosen": ',
    "not an object": b'["a", "b", "c"]',
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_with_file_row_and_reason_before_any_model_loads(tmp_path: Path, kind: str) -> None:
    good = [json.dumps({"prompt": "a", "chosen": f"b{i}", "rejected": "c"}).encode() for i in range(3)]
    bad = RAW[kind] if kind in RAW else json.dumps(BAD_ROWS[kind]).encode()
    (tmp_path / "pairs.jsonl").write_bytes(b"\n".join([*good, bad, *good]) + b"\n")
    # The model's folder does not exist: if it were checked first, the message would name it.
    found = mrpo(
        "score-refs", "--train-file", "pairs.jsonl", "--model", "absent", "--reference", "base=absent", cwd=tmp_path
    )
    assert found.returncode == 2
    assert "pairs.jsonl: row 3 (line 4)" in found.stderr and "Traceback" not in found.stderr
    assert "absent" not in found.stderr


def test_the_first_ten_bad_rows_are_listed_with_their_number(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b"}] * 37)
    found = mrpo("score-refs", "--train-file", "pairs.jsonl", "--model", "m", "--reference", "base=m", cwd=tmp_path)
    assert found.returncode == 2
    assert "37" in found.stderr and "row 9 (line 10)" in found.stderr and "row 10 (line 11)" not in found.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "absent.yaml"], "absent.yaml is not there"),
        (["train", "--set", "method.bta=1"], "the nearest valid one is `beta`"),
        (["train", "--set", "method.beta=fast"], "method.beta"),
        (["train", "--set", "training.learning_rat=1"], "`learning_rate`"),
        (["compare", "demo", "--processes", "0"], "`compare.processes`"),
        (["score-refs", "--reference", "base"], "NAME=MODEL"),
        (["score-refs"], "names no reference"),
        (["score-refs", "--reference", "a=b"], "names no pairs"),
        (["cache", "stats", "--cache", "nowhere"], "no cached reference"),
        (["recipes", "copy", "nothing"], "demo"),
        (["merge", "nowhere", "--output", "x"], "nowhere"),
        (["evaluate", "--model", "m", "--reference", "a=m", "--output-dir", "none"], "holds no adapter"),
    ],
)
def test_wrong_input_gets_one_paragraph_and_exit_code_2(tmp_path: Path, arguments: list[str], expected: str) -> None:
    found = mrpo(*arguments, cwd=tmp_path)
    assert found.returncode == 2, found.stderr
    assert expected in found.stderr and "Traceback" not in found.stderr
    assert found.stderr.strip().count("\n") == 0


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['mrpo', '--help']\n"
        "from mrpo_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'vllm', 'polars', 'pyarrow', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--seeds", "a"], "compare.seeds.0"),
        (["--seeds", "1,1"], "compare.seeds"),
        (["--processes", "0"], "compare.processes"),
        (["--max-prompt-length", "500"], "limits.max_prompt_length is 500"),
    ],
    ids=str,
)
def test_wrong_options_of_compare_are_refused_before_anything_heavy_loads(wrong: list[str], named: str) -> None:
    script = (
        f"import sys; sys.argv = ['mrpo', 'compare', 'demo', *{wrong}]\n"
        "from mrpo_cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert ended.code == 2\n"
        "heavy = {'torch', 'transformers', 'vllm', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stderr
    assert named in told


def test_one_seed_is_a_list_of_one() -> None:
    from mrpo_cli.option_values import value_of

    assert (value_of("compare.seeds", "3"), value_of("compare.seeds", "3, 4")) == ([3], [3, 4])
    assert (value_of("method.weights", "adaptive"), value_of("method.weights", "0.5,0.5")) == ("adaptive", [0.5, 0.5])


def test_shipped_recipes_are_listed_copied_and_readable(tmp_path: Path) -> None:
    from mrpo_pipeline.recipe import load_recipe, shipped_recipes

    listed = mrpo("recipes", cwd=tmp_path)
    assert (
        {line.split()[0] for line in listed.stdout.splitlines()} == set(shipped_recipes()) >= {"demo", "paper", "small"}
    )
    for name in shipped_recipes():
        copied = mrpo("recipes", "copy", name, cwd=tmp_path)
        assert copied.returncode == 0
        assert load_recipe(tmp_path / copied.stdout.strip()).references
    assert mrpo("recipes", "copy", "demo", cwd=tmp_path).returncode == 2


@pytest.mark.slow
def test_score_targets_train_evaluate_compare_and_merge_from_options_only(tmp_path: Path) -> None:
    reference(tmp_path / "base", "llama", "qwen")
    reference(tmp_path / "other", "gpt_neox", "gpt2", seed=1)
    write_pairs(tmp_path / "pairs.jsonl", plain_pairs(24))
    options = [
        "--train-file", "pairs.jsonl", "--eval-fraction", "0.25", "--model", "base", "--reference", "base=base",
        "--reference", "other=other", "--max-length", "200",
    ]  # fmt: skip
    training = ["--max-steps", "2", "--lora-target-modules", "all-linear", "--logging-steps", "1"]

    done = mrpo("score-refs", *options, "--engine", "transformers", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [report["scored"] for report in json.loads(done.stdout)] == [48, 48]

    import polars as pl

    assert mrpo("targets", *options, "--output", "targets.parquet", cwd=tmp_path).returncode == 0
    frame = pl.read_parquet(tmp_path / "targets.parquet")
    assert frame.columns == [
        "file", "row", "pair_in_row", "id", "pair_id", "references", "logps_chosen", "logps_rejected", "weights",
        "clipped_chosen", "clipped_rejected", "target_chosen", "target_rejected",
    ]  # fmt: skip
    assert frame["references"][0].to_list() == ["base", "other"]

    done = mrpo("train", *options, *training, "--output-dir", "trained", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in (
        "adapter_model.safetensors", "adapter_config.json", "README.md", "trainer_state.json", "train_results.json",
        "eval_results.json", "recipe.yaml", "tokenizer.json",
    ):  # fmt: skip
        assert (tmp_path / "trained" / name).is_file(), name
    assert not list((tmp_path / "trained").rglob("*.pt")) or (tmp_path / "trained" / "checkpoint-2").is_dir()

    trained = json.loads((tmp_path / "trained" / "train_results.json").read_text())
    held_out = json.loads((tmp_path / "trained" / "eval_results.json").read_text())
    assert "refs/other/weight" in trained and "eval_refs/other/weight" in held_out and "eval_loss" in held_out

    done = mrpo("evaluate", *options, "--output-dir", "trained", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["before"]["accuracy/anchor"] == 0.5

    comparing = ["compare", *options, *training, "--output-dir", "compared", "--seeds", "0,1"]
    done = mrpo(*comparing, "--processes", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert [method["name"] for method in found["methods"]] == ["dpo-base", "dpo-other", "simpo", "multi-dpo", "mrpo"]
    assert found["costs"]["processes"] == 2 and found["costs"]["runs_made_now"] == 11
    assert found["verdict"]["sentence"] in done.stdout
    assert (tmp_path / "compared" / "report.html").stat().st_size > 10_000
    again = mrpo(*comparing, "--json", cwd=tmp_path)
    assert again.stderr.count("done before") == 11 and json.loads(again.stdout) == found

    assert mrpo("merge", "trained", "--output", "merged", cwd=tmp_path).returncode == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    for command in (["cache", "list"], ["cache", "stats"], ["cache", "verify"], ["cache", "prune"]):
        done = mrpo(*command, "--cache", "cache", cwd=tmp_path)
        assert done.returncode == 0 and "other" in done.stdout, done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_keeps_finished_work_and_names_how_to_resume(tmp_path: Path, sent: signal.Signals) -> None:
    reference(tmp_path / "base", "llama", "qwen")
    write_pairs(tmp_path / "pairs.jsonl", plain_pairs(2000))
    command = [
        sys.executable, "-m", "mrpo_cli.main", "score-refs", "--train-file", "pairs.jsonl", "--model", "base",
        "--reference", "base=base", "--engine", "transformers", "--set", "scoring.rows_per_shard=50",
        "--set", "scoring.max_batch_tokens=256",
    ]  # fmt: skip
    shards = tmp_path / "cache" / "base" / "shards"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while len(list(shards.glob("*.parquet"))) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(sent)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in told and "Traceback" not in told
    assert len(list(shards.glob("*.parquet"))) >= 3
    assert not [path for path in shards.iterdir() if path.suffix != ".parquet"]
