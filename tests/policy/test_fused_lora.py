"""A fused layer and adapter: peft's numbers, and peft's own forward for every unusual case."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mrpo_pipeline.policy import fused_lora
from mrpo_pipeline.policy.fused_lora import fuse_adapters


class Layers(nn.Module):
    """Two linear layers, with a bias and without."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 20)
        self.second = nn.Linear(20, 7, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def adapted(*, fuse, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second"], "init_lora_weights": False} | settings
    model = get_peft_model(Layers().to(dtype), LoraConfig(**config))
    if fuse:
        assert fuse_adapters(model) == (0 if settings.get("use_dora") or settings.get("lora_bias") else 2)
    return model


def run(model, x, *, mixed=False):
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        y = model(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    trained = [p.grad.float().flatten() for p in model.parameters() if p.requires_grad]
    return y.detach(), x.grad, torch.cat(trained)


@pytest.fixture
def calls(monkeypatch):
    """The number of fused calls."""
    used = []
    plain = fused_lora._LinearWithAdapter.apply
    monkeypatch.setattr(fused_lora._LinearWithAdapter, "apply", lambda *args: used.append(1) or plain(*args))
    return used


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12)])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_outputs_and_gradients_are_pefts(shape, use_rslora, calls):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5))
    ours = run(adapted(fuse=True, use_rslora=use_rslora), x)
    assert len(calls) == 2
    for found, expected in zip(ours, run(adapted(fuse=False, use_rslora=use_rslora), x), strict=True):
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm()) <= 1e-6


def test_in_mixed_precision_it_computes_in_the_same_dtype(calls):
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(5))
    ours, theirs = (run(adapted(fuse=fuse, dtype=torch.bfloat16), x, mixed=True) for fuse in (True, False))
    assert len(calls) == 2
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        assert float((found - expected).float().norm() / expected.float().norm()) <= 2e-2


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_is_left_to_peft(settings, calls):
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(5))
    for found, expected in zip(
        run(adapted(fuse=True, **settings).train(), x), run(adapted(fuse=False, **settings).train(), x), strict=True
    ):
        assert torch.equal(found, expected)
    assert not calls


def test_an_adapter_that_is_switched_off_or_merged_is_left_to_peft(calls):
    model, x = adapted(fuse=True), torch.randn(3, 12)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(x), Layers.forward(model.base_model.model, x))
        assert not calls
    with torch.no_grad():
        together = model(x)
        assert len(calls) == 2
        model.merge_adapter()
        assert torch.allclose(model(x), together, atol=1e-5)
        assert len(calls) == 2


def test_dropout_is_off_in_evaluation_and_then_it_is_one_operation(calls):
    model, x = adapted(fuse=True, lora_dropout=0.5).eval(), torch.randn(3, 12)
    plain = adapted(fuse=False, lora_dropout=0.5).eval()
    assert torch.allclose(model(x), plain(x), atol=1e-6)
    assert len(calls) == 2


def test_no_more_than_the_input_and_a_thin_product_is_kept_for_the_backward_pass():
    model, x = adapted(fuse=True), torch.randn(50, 12)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        model.base_model.model.first(x)
    assert sorted(shape for shape in kept if shape[0] == 50) == [(50, 4), (50, 12)]


def test_layers_with_trained_base_weights_are_not_fused():
    torch.manual_seed(0)
    model = get_peft_model(Layers(), LoraConfig(r=4, target_modules=["first", "second"]))
    model.base_model.model.first.base_layer.weight.requires_grad_(True)
    assert fuse_adapters(model) == 1
