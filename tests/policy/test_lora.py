import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_policy import load_base, write_policy

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.lora import add_adapter, lora_config
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.recipe import Lora, Policy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: write_policy(tmp_path_factory.mktemp(kind), kind) for kind in ("llama", "gpt2", "gpt_neox")}


def adapted(model):
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize(("kind", "valid"), [("gpt2", "c_attn"), ("gpt_neox", "query_key_value")])
def test_modules_an_architecture_does_not_have_are_refused_naming_those_it_has(folders, kind, valid):
    with pytest.raises(UserError, match=r"policy\.lora\.target_modules names q_proj, v_proj") as caught:
        lora_config(Lora(), load_base(folders[kind]))
    assert valid in str(caught.value)
    assert "lm_head" not in str(caught.value)


def test_one_absent_name_among_others_is_refused_where_peft_would_pass_over_it(folders):
    with pytest.raises(UserError, match="names qproj,"):
        lora_config(Lora(target_modules=["qproj", "v_proj"]), load_base(folders["llama"]))


@pytest.mark.parametrize(
    ("kind", "targets", "expected"),
    [
        ("llama", ["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        ("llama", "o_proj", {"o_proj"}),
        ("llama", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", ["c_attn"], {"c_attn"}),
        ("gpt_neox", "all-linear", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
def test_targets(folders, kind, targets, expected):
    assert adapted(add_adapter(load_base(folders[kind]), Lora(target_modules=targets))) == expected


def test_rank_scaling_and_variants_reach_peft(folders):
    settings = Lora(r=4, alpha=6, dropout=0.25, use_rslora=True, use_dora=True)
    config = lora_config(settings, load_base(folders["llama"]))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 6, 0.25)
    assert config.use_rslora
    assert config.use_dora
    assert config.task_type == "CAUSAL_LM"


def test_training_can_start_from_an_adapter_whose_own_settings_hold(folders, tmp_path):
    first = add_adapter(load_base(folders["llama"]), Lora(r=3, target_modules=["k_proj"]))
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    first.save_pretrained(tmp_path)
    second = load_policy(Policy(model=str(folders["llama"]), adapter=str(tmp_path)))
    assert adapted(second) == {"k_proj"}
    own = {name: parameter for name, parameter in second.named_parameters() if parameter.requires_grad}
    assert own.keys() == {name for name, parameter in first.named_parameters() if parameter.requires_grad}
    for name, parameter in first.named_parameters():
        if name in own:
            assert torch.equal(parameter, own[name])


def test_an_adapter_of_another_model_is_refused(folders, tmp_path):
    add_adapter(load_base(folders["gpt2"]), Lora(target_modules=["c_attn"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"policy\.adapter"):
        load_policy(Policy(model=str(folders["llama"]), adapter=str(tmp_path)))


def test_weights_that_lack_a_tensor_are_refused_and_not_drawn_at_random(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 of the tensors.*layers\.1\.mlp\.up_proj"):
        load_policy(Policy(model=str(tmp_path / "part")))


def test_a_tied_head_is_not_missing(tmp_path):
    folder = write_policy(tmp_path, "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_policy(Policy(model=str(folder)))


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Correct policy\.model"):
        load_policy(Policy(model=str(tmp_path / "nothing")))
