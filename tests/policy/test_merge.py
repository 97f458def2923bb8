"""`mrpo merge`: its folder loads by itself and is the adapted model, or there is no folder."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_policy import load_base, make_examples, plain_sums, write_policy
from transformers import AutoTokenizer

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models import merging
from mrpo_pipeline.policy.merge import merge_adapter
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.policy.train import served_tokenizer
from mrpo_pipeline.recipe import Lora, Policy

RECIPE = "pairs: {train: pairs.jsonl}\npolicy: {model: base%s}\nreferences: {base: {model: base}}\ncache: cache\noutput_dir: out\n"


def train(folder: Path, kind: str = "llama", *, lora: Lora | None = None, base: Path | None = None, **changes):
    """A base, a run's folder with an adapter that changes log-probs by nats, and the adapted model."""
    base = base or write_policy(folder / "base", kind, **changes)
    settings = Policy(model=str(base), lora=lora or Lora())
    torch.manual_seed(0)
    policy = load_policy(settings).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    policy.save_pretrained(folder / "out")
    served_tokenizer(settings).save_pretrained(folder / "out")
    return policy


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("llama", Lora(target_modules="all-linear")),
        ("llama", Lora(use_rslora=True, use_dora=True)),
        ("gpt2", Lora(target_modules=["c_attn"])),
    ],
)
def test_merged_and_unmerged_log_probs_agree_and_the_folder_loads_by_itself(tmp_path, kind, lora):
    policy = train(tmp_path, kind, lora=lora)
    merged = merge_adapter(tmp_path / "out", tmp_path / "new" / "merged")
    examples = make_examples(4)
    shutil.move(tmp_path / "base", tmp_path / "gone")
    before, after = plain_sums(policy, examples), plain_sums(load_base(merged.folder), examples)
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert np.abs(np.array(plain_sums(load_base(tmp_path / "gone"), examples)) - before).max() > 0.1
    assert merged.differences.effect > 0.05 and merged.differences.apart < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    assert tokenizer("w5 w6")["input_ids"] == [5, 6]
    assert tokenizer.chat_template
    assert os.listdir(tmp_path / "new") == ["merged"]


def test_every_file_that_a_loader_needs_travels_byte_for_byte_and_no_other(tmp_path):
    """A generation config and a configuration that transformers refuses to save, a processor, code, a licence."""
    base = write_policy(tmp_path / "base")
    odd = '{"temperature": 0.9, "do_sample": false,  "eos_token_id": 2}'
    files = {
        "generation_config.json": odd,
        "preprocessor_config.json": '{"size": 3}',
        "tokenizer.model": "pieces",
        "LICENSE": "free",
        "chat_template.json": '{"chat_template": "older"}',
        "package/layers.py": "WIDTH = 1\n",
    }
    left_out = {"README.md": "a card", "trainer_state.json": "{}", "pytorch_model.bin": "pickle", ".hidden/x.py": "x"}
    for name, text in (files | left_out).items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    config = json.loads((base / "config.json").read_text())
    odd_config = config | {
        "temperature": 0.7,
        "max_length": 30,
        "rope_theta": 10000.0,
        "somebody_elses": {"key": [1, None]},
    }
    del odd_config["rope_parameters"]
    (base / "config.json").write_text(json.dumps(odd_config))
    train(tmp_path, base=base)
    (tmp_path / "out" / "chat_template.jinja").write_text("{{ messages }} of the run")
    merged = merge_adapter(tmp_path / "out", tmp_path / "merged").folder
    del files["chat_template.json"]  # the run's template
    assert {name: (merged / name).read_text() for name in files} == files
    assert not any((merged / name).exists() for name in left_out)
    assert (merged / "chat_template.jinja").read_text() == "{{ messages }} of the run"
    assert json.loads((merged / "config.json").read_text()) == odd_config


def test_a_base_in_shards_and_another_dtype(tmp_path):
    base = write_policy(tmp_path / "base")
    load_base(base).to(torch.bfloat16).save_pretrained(base, max_shard_size="20KB")
    (base / "model.safetensors").unlink()
    train(tmp_path, base=base)
    assert (base / "model.safetensors.index.json").is_file()
    merged = merge_adapter(tmp_path / "out", tmp_path / "merged")
    assert merged.dtype == "bfloat16" and merged.notices == []
    assert json.loads((merged.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert not (merged.folder / "model.safetensors.index.json").exists()
    wide = merge_adapter(tmp_path / "out", tmp_path / "wide", dtype="float32")
    assert json.loads((wide.folder / "config.json").read_text())["dtype"] == "float32"
    assert wide.differences.rounding < merged.differences.rounding / 100


def test_an_adapter_that_16_bits_round_away_is_reported(tmp_path):
    base = write_policy(tmp_path / "base")
    load_base(base).to(torch.bfloat16).save_pretrained(base)
    policy = train(tmp_path, base=base)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1e-4)
    policy.save_pretrained(tmp_path / "out")
    (notice,) = merge_adapter(tmp_path / "out", tmp_path / "merged").notices
    assert "Rounding the merged weights to bfloat16" in notice and "--dtype float32 keeps it" in notice
    assert merge_adapter(tmp_path / "out", tmp_path / "wide", dtype="float32").notices == []


@pytest.mark.parametrize(("left", "policy", "template"), [
    ("tokenizer", "", "of the run"),
    ("recipe", "", "plain"),
    ("recipe", ", template: plain", "plain"),
    ("nothing", "", None),
])  # fmt: skip
def test_a_checkpoint_has_the_tokenizer_and_template_of_its_run(tmp_path, left, policy, template):
    """For a finished run, an interrupted one whose recipe names them, and none: the base's."""
    from mrpo_pipeline.rendering.template_source import PLAIN_TEMPLATE

    train(tmp_path)
    checkpoint = tmp_path / "out" / "checkpoint-4"
    checkpoint.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "out" / name, checkpoint)
    if left == "tokenizer":
        (tmp_path / "out" / "chat_template.jinja").write_text("of the run")
    else:
        for path in (tmp_path / "out").glob("*token*"):
            path.unlink()
        (tmp_path / "out" / "chat_template.jinja").unlink()
    if left == "recipe":
        (tmp_path / "out" / "recipe.yaml").write_text(RECIPE % policy)
    merged = merge_adapter(checkpoint, tmp_path / "merged").folder
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer("w5 w6")["input_ids"] == [5, 6]
    assert tokenizer.chat_template == (PLAIN_TEMPLATE if template == "plain" else template)


def test_code_of_the_base_runs_only_when_asked_for_and_travels(tmp_path):
    from transformers import AutoModelForCausalLM

    train(tmp_path)
    base = tmp_path / "base"
    (base / "configuration_my.py").write_text(
        "from transformers import LlamaConfig\nclass MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
    )
    (base / "modeling_my.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_my import MyConfig\n"
        "class MyForCausalLM(LlamaForCausalLM):\n    config_class = MyConfig\n"
        "    def forward(self, *given, **named):\n"
        "        result = super().forward(*given, **named)\n        result.logits = result.logits * 0.5\n        return result\n"
    )
    config = json.loads((base / "config.json").read_text()) | {"model_type": "mine", "architectures": ["MyForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_my.MyConfig",
        "AutoModelForCausalLM": "modeling_my.MyForCausalLM",
    }
    (base / "config.json").write_text(json.dumps(config))
    (tmp_path / "out" / "recipe.yaml").write_text(RECIPE % ", trust_remote_code: true")
    with pytest.raises(UserError, match=r"modeling_my\.py.*--trust-remote-code.*It ran in training"):
        merge_adapter(tmp_path / "out", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merged = merge_adapter(tmp_path / "out", tmp_path / "merged", trust_remote_code=True).folder
    assert (merged / "modeling_my.py").read_bytes() == (base / "modeling_my.py").read_bytes()
    shutil.rmtree(base)
    loaded = AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=True)
    assert type(loaded).__name__ == "MyForCausalLM"


def test_input_that_cannot_be_merged_is_named(tmp_path):
    train(tmp_path)
    with pytest.raises(UserError, match="holds no adapter"):
        merge_adapter(tmp_path, tmp_path / "merged")
    with pytest.raises(UserError, match="It holds adapters in out: one is used at a time"):
        merge_adapter(tmp_path, tmp_path / "merged")
    with pytest.raises(UserError, match="--dtype is 'int4'"):
        merge_adapter(tmp_path / "out", tmp_path / "merged", dtype="int4")
    for full in (tmp_path / "base", tmp_path / "out", tmp_path / "out" / "adapter_config.json"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=r"is there already|holds a model already"):
            merge_adapter(tmp_path / "out", full)
        assert sorted(tmp_path.rglob("*")) == before
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"base_model_name_or_path.*--base"):
        merge_adapter(tmp_path / "out", tmp_path / "merged")
    (tmp_path / "out" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match=r"names no base model.*--base"):
        merge_adapter(tmp_path / "out", tmp_path / "merged")
    (tmp_path / "merged").mkdir()  # an empty folder is allowed
    assert (
        merge_adapter(tmp_path / "out", tmp_path / "merged", base=str(tmp_path / "elsewhere")).folder / "config.json"
    ).is_file()


def test_a_merged_model_that_is_not_the_adapted_one_is_not_left(tmp_path, monkeypatch):
    train(tmp_path)
    settle = merging._settle_ties

    def spoil(merged):
        merged.model.layers[0].mlp.down_proj.weight.mul_(0.9)
        settle(merged)

    monkeypatch.setattr(merging, "_separate_shared_weights", lambda model: True)
    monkeypatch.setattr(merging, "_settle_ties", spoil)
    with pytest.raises(RunError, match="not the adapted one: its log-probs are"):
        merge_adapter(tmp_path / "out", tmp_path / "new" / "merged")
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]


COMMAND = [sys.executable, "-c", "from mrpo_cli.main import main; main()", "merge", "out", "--output", "merged"]


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


def test_killed_or_out_of_room_at_any_instant_it_ends_well_when_run_again(tmp_path):
    train(tmp_path, hidden_size=64, vocab_size=2000)
    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=small_files)
    assert done.returncode == 1 and "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]
    process = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".merged-*/merged/*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "merged").exists() and list(tmp_path.glob(".merged-*"))
    merge_adapter(tmp_path / "out", tmp_path / "merged")
    assert sorted(os.listdir(tmp_path)) == ["base", "merged", "out"]
    load_base(tmp_path / "merged")
