"""Stage two from a recipe: the start is the anchor, K = 1 is DPO, and the results work without this project."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import QUICK, run_of
from tiny_references import pair, plain_pairs, reference, write_pairs

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import parse_recipe


def losses(run: Any) -> list[float]:
    train_recipe(run)
    state = json.loads((Path(run.output_dir) / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "rewards/margins" in entry]


def first_log(run: Any) -> dict[str, float]:
    train_recipe(run)
    state = json.loads((Path(run.output_dir) / "trainer_state.json").read_text())
    return state["log_history"][0]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox"])
def test_at_the_anchor_the_first_loss_is_ln_2_and_margins_are_0(tmp_path: Path, kind: str) -> None:
    run = run_of(tmp_path, {"base": reference(tmp_path / "base", kind, "qwen")})
    log = first_log(run)
    assert abs(log["loss"] - math.log(2)) < 1e-4
    assert abs(log["rewards/margins"]) < 1e-4
    assert log["accuracy/anchor"] == 0.5


def test_with_one_reference_mrpo_single_and_dpo_print_the_same_losses(tmp_path: Path) -> None:
    base = reference(tmp_path / "base", "llama", "qwen")
    runs = [
        losses(run_of(tmp_path, {"base": base}, method=method))
        for method in (
            {"name": "mrpo"},
            {"name": "mrpo", "aggregate": "single:base"},
            {"name": "dpo"},
            {"name": "multi-dpo"},
        )
    ]
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert runs[0][-1] < math.log(2) - 0.01


def test_a_policy_with_another_template_than_the_anchor_is_stopped(tmp_path: Path) -> None:
    base = reference(tmp_path / "base", "llama", "qwen")
    run = run_of(tmp_path, {"base": base})
    document = run.model_dump(mode="json")
    document["policy"]["template"] = "plain"
    with pytest.raises(UserError, match="template"):
        train_recipe(parse_recipe(document))
    document["policy"]["check_anchor"] = False
    assert train_recipe(parse_recipe(document))["train_loss"] > 0


def test_training_needs_no_reference_but_the_policy_on_the_disk(tmp_path: Path) -> None:
    base, other = reference(tmp_path / "base", "llama", "qwen"), reference(tmp_path / "other", "phi", "llama2", seed=1)
    run = run_of(tmp_path, {"base": base, "other": other})
    with_files = losses(run)
    shutil.rmtree(other)
    assert losses(run) == with_files


def test_a_completion_that_is_not_scored_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    base = reference(tmp_path / "base", "llama", "qwen")
    run = run_of(tmp_path, {"base": base})
    write_pairs(tmp_path / "pairs.jsonl", plain_pairs(14))
    with pytest.raises(UserError, match="mrpo score-refs"):
        train_recipe(run)


def test_cut_sides_count_alike_for_every_reference(tmp_path: Path) -> None:
    """The sums of a cut completion are those of its tokens up to the cut, for any tokenizer."""
    import pyarrow.parquet as pq

    from mrpo_pipeline.dataset.prepare import prepare_splits
    from mrpo_pipeline.dataset.reference_logps import join_references, open_caches

    rows = [pair("Tell me", "many words go on " * 20, "brief")]
    write_pairs(tmp_path / "pairs.jsonl", rows)
    base, other = reference(tmp_path / "base", "llama", "qwen"), reference(tmp_path / "other", "phi", "llama2", seed=1)
    run = run_of(tmp_path, {"base": base, "other": other}, limits={"max_length": 64})
    joined = join_references(open_caches(run), prepare_splits(run)["train"])
    cut = joined.frame["chosen_cut"][0]
    assert 0 < cut < len(rows[0]["chosen"][0]["content"])
    for column, name in enumerate(joined.names):
        (shard,) = (tmp_path / "cache" / name / "shards").glob("*.parquet")
        row = next(r for r in pq.read_table(shard).to_pylist() if r["completion_id"] == joined.frame["chosen_id"][0])
        counted = [logp for logp, end in zip(row["logprobs"], row["byte_ends"], strict=True) if end <= cut]
        assert joined.logps_chosen[0, column] == pytest.approx(sum(counted), abs=1e-4)
    assert len(joined.frame["chosen_ids"][0]) + joined.frame["prompt_tokens"][0] == 64


@pytest.mark.slow
def test_two_processes_train_from_a_recipe_as_one_does_and_speak_once(tmp_path: Path) -> None:
    import os

    base, other = reference(tmp_path / "base", "llama", "qwen"), reference(tmp_path / "other", "phi", "llama2", seed=1)
    quick = {**QUICK, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "eval_strategy": "steps"}
    run = run_of(
        tmp_path, {"base": base, "other": other}, training=quick, pairs={"train": str(tmp_path / "pairs.jsonl"), "eval_fraction": 0.3}
    )  # fmt: skip
    one = losses(run)
    document = run.model_dump(mode="json")
    document["output_dir"] = str(tmp_path / "two")
    document["training"]["per_device_train_batch_size"] = 1
    (tmp_path / "recipe.yaml").write_text(json.dumps(document))
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [shutil.which("mrpo", path=str(Path(sys.executable).parent)) or "mrpo", "train", "recipe.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "temporary")}

    def start(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=150
        )

    done = start()
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "two" / "trainer_state.json").read_text())
    assert [e["loss"] for e in state["log_history"] if "rewards/margins" in e] == pytest.approx(one, abs=1e-5)
    expected = json.loads((Path(run.output_dir) / "eval_results.json").read_text())
    found = json.loads((tmp_path / "two" / "eval_results.json").read_text())
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert found["eval_refs/effective_k"] == expected["eval_refs/effective_k"]
    assert (tmp_path / "two" / "recipe.yaml").is_file()
    assert "4 pairs read = 4 used" in (tmp_path / "two" / "README.md").read_text()
    # The counts are logged when the pairs are read, and again at the end.
    for words, times in (("agrees with the cached anchor", 1), ("of 3 steps", 1), ("eval: 4 pairs read =", 2)):
        assert sum(words in line for line in done.stderr.splitlines()) == times, (words, done.stderr)
    assert done.stderr.count("Results: ") == done.stderr.count("Next: mrpo evaluate") == 1
    assert not list((tmp_path / "temporary").glob("mrpo-pairs-*"))

    wrong = start("--beta", "-1")
    assert wrong.returncode != 0
    assert wrong.stderr.count("beta") >= 1 and wrong.stderr.count("mrpo: ") == 1


SERVE_WITH_PEFT = """
import importlib.util, json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mrpo_pipeline", "mrpo_cli"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
base, adapter = sys.argv[1:3]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(adapter)
ids = tokenizer.apply_chat_template([{"role": "user", "content": "Question number 3?"}], add_generation_prompt=True, return_dict=False)
with torch.no_grad():
    start = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
    with model.disable_adapter():
        plain = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
print(json.dumps({"ids": ids, "adapted": start.max().item(), "token": start.argmax().item(), "moved": (start - plain).abs().max().item()}))
"""

SERVE_WITH_VLLM = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mrpo_pipeline", "mrpo_cli"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
def main():
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    base, adapter, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    llm = LLM(base, dtype="float32", enforce_eager=True, enable_lora=True, max_lora_rank=8, max_model_len=128,
              enable_prefix_caching=False, skip_tokenizer_init=True, max_num_batched_tokens=512)
    (out,) = llm.generate([{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, temperature=0, logprobs=0, detokenize=False),
                          lora_request=LoRARequest("trained", 1, adapter), use_tqdm=False)
    (entry,) = [{"token": t, "adapted": v.logprob} for t, v in out.outputs[0].logprobs[0].items() if t == out.outputs[0].token_ids[0]]
    print("RESULT " + json.dumps(entry))
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained")
    base = reference(folder / "base", "llama", "qwen")
    run = run_of(folder, {"base": base})
    train_recipe(run)
    script = folder / "serve_with_peft.py"
    script.write_text(SERVE_WITH_PEFT)
    found = subprocess.run(
        [sys.executable, str(script), str(base), run.output_dir], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return base, Path(run.output_dir), json.loads(found.stdout.splitlines()[-1])


def test_the_adapter_loads_with_peft_only(trained: tuple[Path, Path, dict[str, Any]]) -> None:
    assert trained[2]["moved"] > 1e-2


@pytest.mark.vllm
def test_vllm_serves_the_adapter_with_nothing_of_this_project(
    tmp_path: Path, trained: tuple[Path, Path, dict[str, Any]]
) -> None:
    import os

    base, adapter, expected = trained
    script = tmp_path / "serve_with_vllm.py"
    script.write_text(SERVE_WITH_VLLM)
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    found = subprocess.run(
        [sys.executable, str(script), str(base), str(adapter), json.dumps(expected["ids"])],
        capture_output=True, text=True, check=False, env=environment, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("RESULT ")]
    served = json.loads(line.removeprefix("RESULT "))
    assert served["token"] == expected["token"]
    assert served["adapted"] == pytest.approx(expected["adapted"], abs=1e-3)
