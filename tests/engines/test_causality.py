"""A model that attends to later tokens is refused; no causal model of any kind is."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build, make
from transformers import AutoConfig, AutoModelForCausalLM

from mrpo_pipeline.engines import open_engine
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.causality import CHANGED_FROM, require_causal

SMALL = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MASKED = {
    "bert": SMALL | {"intermediate_size": 48},
    "roberta": SMALL | {"intermediate_size": 48, "pad_token_id": 0},
    "xlnet": {"vocab_size": 320, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
    "gemma3_text": SMALL | {"head_dim": 16, "num_key_value_heads": 1, "use_bidirectional_attention": True},
    "llama": SMALL | {"intermediate_size": 48, "is_causal": False},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MASKED)
def test_a_model_that_sees_what_follows_is_refused(kind: str, dtype: str) -> None:
    """Untrained, with the narrow initial weights of transformers: the models in which later tokens have the least effect."""
    torch.manual_seed(0)
    model = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MASKED[kind])).to(getattr(torch, dtype)).eval()
    )
    with pytest.raises(UserError, match="The model it sees what follows") as caught:
        require_causal(model, "it", dtype)
    hints = {"gemma3_text": "use_bidirectional_attention: true", "llama": "is_causal: false"}
    assert hints.get(kind, "Name another model") in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "kind", ["mistral", "mixtral", "qwen2_moe", "gemma2", "mamba", "recurrent_gemma", "falcon_h1", "bloom"]
)
def test_a_causal_model_is_not(kind: str, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    require_causal(make(kind, dtype=dtype), "it", dtype)
    assert not [record for record in caplog.records if record.name == "mrpo"]


def test_a_context_of_a_few_tokens_is_enough() -> None:
    require_causal(make("gpt2", n_positions=4), "it", "float32")
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **MASKED["bert"], max_position_embeddings=4)
    with pytest.raises(UserError, match="sees what follows"):
        require_causal(AutoModelForCausalLM.from_config(config).eval(), "it", "float32")


class Blocks(torch.nn.Module):
    """Attends to the end of its own block, as in block diffusion."""

    def __init__(self, size: int, jump: float = 0.0) -> None:
        super().__init__()
        self.config = AutoConfig.for_model("llama", **SMALL)
        self.embedding, self.head = torch.nn.Embedding(320, 32), torch.nn.Linear(32, 320)
        self.size, self.jump, self.passes = size, jump, 0

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor) -> object:
        states = self.embedding(input_ids)
        place = torch.arange(input_ids.shape[1])
        seen = (place[None] // self.size <= place[:, None] // self.size).float()
        mixed = seen @ states / seen.sum(-1, keepdim=True)
        self.passes += 1
        if self.passes == 2:  # a single pass rounds differently
            mixed = mixed + self.jump
        return type("Output", (), {"logits": self.head(mixed)})


@pytest.mark.parametrize("size", [2, 4, 8, 32])
def test_a_model_that_sees_to_the_end_of_its_block_is_refused(size: int) -> None:
    assert CHANGED_FROM % 2 == 1
    torch.manual_seed(0)
    with pytest.raises(UserError, match="sees what follows"):
        require_causal(Blocks(size), "it", "float32")


def test_one_pass_that_rounds_otherwise_is_tried_again() -> None:
    torch.manual_seed(0)
    model = Blocks(1, jump=0.5)
    require_causal(model, "it", "float32")
    assert model.passes == 4


def test_the_engine_refuses_it_when_it_loads(tmp_path, source_of) -> None:  # type: ignore[no-untyped-def]
    path = build("llama", tmp_path / "llama", is_causal=False)
    with pytest.raises(UserError, match=r"The model .*llama of tiny sees what follows.*is_causal: false"):
        open_engine("transformers", source_of(path))


@pytest.mark.vllm
@pytest.mark.usefixtures("forked_vllm")
def test_vllm_refuses_it_when_it_starts(tmp_path, source_of) -> None:  # type: ignore[no-untyped-def]
    path = build("llama", tmp_path / "llama", is_causal=False)
    with pytest.raises(RunError, match=r"first half.* nats per token away, as where a model sees what follows"):
        open_engine("vllm", source_of(path))
