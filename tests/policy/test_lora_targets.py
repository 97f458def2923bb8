import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from tiny_policy import VOCABULARY, load_base, write_policy
from transformers import AutoConfig, AutoModelForCausalLM

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.lora import add_adapter
from mrpo_pipeline.policy.lora_targets import target_modules
from mrpo_pipeline.recipe import Lora

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
MULTIMODAL = {
    "gemma3": {
        "text_config": TEXT,
        "vision_config": IMAGES | {"image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
    },
    # Its projector is one linear module beside the layers.
    "fuyu": {"text_config": TEXT | {"model_type": "persimmon"}, "patch_size": 4, "pad_token_id": 0},
    # Its cross-attention layers have the names of its self-attention layers, and only images run through them.
    "mllama": {
        "text_config": TEXT | {"cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 32, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2, "image_size": 28,
            "patch_size": 14, "intermediate_layers_indices": [0], "vision_output_dim": 64, "intermediate_size": 48,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma3")
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3", **MULTIMODAL["gemma3"])).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_an_adapter_stays_inside_the_language_model(gemma3, tmp_path, targets):
    base = load_base(gemma3)
    assert any("vision_tower" in name and name.endswith("q_proj") for name, _ in base.named_modules())
    policy = add_adapter(base, Lora(target_modules=targets))
    policy.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as tensors:
        names = list(tensors.keys())
    assert len(names) == 2 * 2 * (7 if targets == "all-linear" else 2)
    assert all(".language_model.layers." in name for name in names)

    # Plain peft adds it to the same modules of the same base.
    served = PeftModel.from_pretrained(load_base(gemma3), tmp_path)
    assert {name for name, _ in served.named_parameters() if "lora_" in name} == {
        name for name, _ in policy.named_parameters() if "lora_" in name
    }


def test_a_module_only_outside_the_language_model_is_refused(gemma3):
    with pytest.raises(
        UserError, match=r"names out_proj, .*outside its language model alone \(.*vision_tower"
    ) as caught:
        target_modules(load_base(gemma3), ["q_proj", "out_proj"])
    assert "Expected some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "outside"), [("gemma3", "vision_tower"), ("fuyu", "vision_embed_tokens"), ("mllama", "cross_attn")]
)
def test_what_text_does_not_run_through_is_left_out(kind, outside):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MULTIMODAL[kind]))
    assert any(outside in name for name, _ in model.named_modules())
    _, names = target_modules(model, "all-linear")
    assert names
    assert not [name for name in names if outside in name]


def test_a_plan_that_runs_nothing_counts_the_same_modules(gemma3):
    model = load_base(gemma3)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    assert target_modules(empty, "all-linear") == target_modules(model, "all-linear")
    empty.forward = None  # an architecture that does not run on the meta device
    assert target_modules(empty, "all-linear") == target_modules(model, "all-linear")


def test_an_expert_that_no_token_was_routed_to_is_in_the_language_model():
    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))

        def forward(self, states):
            return self.experts[1](states)

    config = AutoConfig.for_model("llama", **TEXT)
    model = AutoModelForCausalLM.from_config(config)
    for layer in model.model.layers:
        layer.mlp = Experts()
    given, names = target_modules(model, "all-linear")
    assert given == "all-linear"
    assert {f"model.layers.{i}.mlp.experts.{j}" for i in range(2) for j in range(3)} < set(names)


def test_a_text_model_is_given_to_peft_as_it_was_set(tmp_path):
    base = load_base(write_policy(tmp_path))
    assert target_modules(base, "all-linear")[0] == "all-linear"
    assert target_modules(base, ["q_proj", "lm_head"])[0] == ["q_proj", "lm_head"]
    assert target_modules(base, "o_proj")[0] == ["o_proj"]


def test_what_peft_refuses_of_an_architecture_is_one_paragraph():
    config = AutoConfig.for_model(
        "mamba", hidden_size=32, num_hidden_layers=1, vocab_size=96, state_size=4, pad_token_id=0
    )
    with pytest.raises(UserError, match=r"Module 'out_proj' is incompatible.*Correct policy\.lora"):
        add_adapter(AutoModelForCausalLM.from_config(config), Lora(target_modules="all-linear"))
