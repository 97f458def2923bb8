import numpy as np
import pytest
import torch
from tiny_policy import load_base, make_examples, plain_sums, write_policy
from transformers import AutoTokenizer

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.merge import merge_adapter
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.policy.settings import LoraSettings, PolicySettings
from mrpo_pipeline.policy.train import save_tokenizer


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("llama", LoraSettings(target_modules="all-linear")),
        ("llama", LoraSettings(use_rslora=True, use_dora=True)),
        ("gpt2", LoraSettings(target_modules=["c_attn"])),
    ],
)
def test_merged_and_unmerged_log_probs_agree_and_the_folder_alone_suffices(tmp_path, kind, lora):
    base = write_policy(tmp_path / "base", kind)
    settings = PolicySettings(str(base), lora=lora)
    torch.manual_seed(0)
    policy = load_policy(settings).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    policy.save_pretrained(tmp_path / "adapter")
    save_tokenizer(settings, tmp_path / "adapter")
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")

    examples = make_examples(4)
    before, after = plain_sums(policy, examples), plain_sums(load_base(merged), examples)
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert np.abs(np.array(plain_sums(load_base(base), examples)) - before).max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer("w5 w6")["input_ids"] == [5, 6]
    assert tokenizer.chat_template
    assert (merged / "model.safetensors").is_file()


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no adapter"):
        merge_adapter(tmp_path, tmp_path / "out")


def test_a_base_that_is_gone_is_named(tmp_path):
    base = write_policy(tmp_path / "base")
    load_policy(PolicySettings(str(base))).save_pretrained(tmp_path / "adapter")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="base_model_name_or_path"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")


def test_a_model_is_never_overwritten(tmp_path):
    base = write_policy(tmp_path / "base")
    load_policy(PolicySettings(str(base))).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="holds a model already"):
        merge_adapter(tmp_path / "adapter", base)
