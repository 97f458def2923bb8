"""The head's log-probs and gradients equal those of full logits, for every architecture, frozen, adapted or trained."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import make
from torch import nn

from mrpo_pipeline.models import head_logps as head_logits
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.models.head_logps import LogitForm

VOCAB = 320
KINDS = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "gpt2", "gpt_neox",
    "mixtral", "cohere", "granite", "opt", "bloom", "mamba", "recurrent_gemma", "falcon_h1",
)  # fmt: skip


def places(batch: int = 3, length: int = 21) -> SimpleNamespace:
    """Ids (B, T) and scattered places: row, position, and the target that follows it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (batch, length), generator=generator)
    chosen = torch.randperm(batch * (length - 1), generator=generator)[: batch * 9]
    rows, positions = chosen // (length - 1), chosen % (length - 1)
    weights = torch.randn(len(chosen), generator=generator)
    return SimpleNamespace(ids=ids, rows=rows, positions=positions, targets=ids[rows, positions + 1], weights=weights)


def naive(model: nn.Module, at: SimpleNamespace) -> torch.Tensor:
    """(N,) log-probs from full logits of the complete batch."""
    every = model(input_ids=at.ids, use_cache=False).logits.float().log_softmax(-1)
    return every[at.rows, at.positions].gather(-1, at.targets[:, None]).squeeze(-1)


def gradient(model: nn.Module, logps: torch.Tensor, at: SimpleNamespace) -> torch.Tensor:
    """All gradients of a loss with a different weight for each log-prob, as one vector."""
    model.zero_grad()
    (logps * at.weights).sum().backward()
    parts = [
        p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel())
        for p in model.parameters()
        if p.requires_grad
    ]
    return torch.cat(parts).clone()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four positions, so that every test crosses chunk borders."""
    monkeypatch.setattr(head_logits, "FEWEST_ROWS", 4)
    monkeypatch.setattr(head_logits, "CPU_CHUNK_BYTES", 4 * 4 * VOCAB)


def with_lora(kind: str, *, targets: object = "all-linear", **settings: object) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", **settings)  # type: ignore[arg-type]
    return get_peft_model(make(kind), config)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", ["all", "all but the head"])
def test_log_probs_and_gradients_equal_those_of_full_logits(kind: str, trained: str) -> None:
    model = make(kind)
    head = Head.of(model)
    assert head.notice is None
    if trained != "all":
        model.get_output_embeddings().requires_grad_(False)
    at = places()
    ours = head.completion_logps(at.ids, at.rows, at.positions, at.targets)
    by_ours = gradient(model, ours, at)
    theirs = naive(model, at)
    assert ours.dtype == torch.float32
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert relative(by_ours, gradient(model, theirs, at)) <= 1e-5


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("gemma2", {}),
        ("granite", {"use_rslora": True}),
        ("gpt_neox", {"use_dora": True}),
        ("llama", {"targets": ["q_proj", "lm_head"]}),  # the head is adapted: recomputing form
        ("phi", {"targets": ["q_proj"], "modules_to_save": ["lm_head"]}),  # the complete head is trained
    ],
)
def test_peft_models(kind: str, settings: dict[str, object]) -> None:
    model = with_lora(kind, **settings)
    head = Head.of(model)
    assert head.notice is None
    at = places()
    by_ours = gradient(model, ours := head.completion_logps(at.ids, at.rows, at.positions, at.targets), at)
    theirs = naive(model, at)
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert relative(by_ours, gradient(model, theirs, at)) <= 1e-5
    with model.disable_adapter(), torch.no_grad():  # like a reference run with the policy's own weights
        bare = head.completion_logps(at.ids, at.rows, at.positions, at.targets)
        assert float((bare - naive(model, at)).abs().max()) <= 1e-4
    assert float((bare - ours).abs().max()) > 1e-2


@pytest.mark.usefixtures("small_chunks")
def test_a_frozen_adapted_head_gives_gradients_to_the_hidden_states() -> None:
    model = with_lora("llama", targets=["lm_head"])
    model.requires_grad_(False)
    head = Head.of(model)
    at = places()
    hidden = head.hidden_states(at.ids)[at.rows, at.positions].detach().requires_grad_()
    (head.token_logps(hidden, at.targets) * at.weights).sum().backward()
    again = hidden.detach().requires_grad_()
    every = model.get_base_model().lm_head(again).log_softmax(-1)
    (every.gather(-1, at.targets[:, None]).squeeze(-1) * at.weights).sum().backward()
    assert relative(hidden.grad, again.grad) <= 1e-5


def test_the_two_step_form_is_the_one_call_form() -> None:
    model = make("qwen3")
    head = Head.of(model)
    at = places()
    with torch.no_grad():
        hidden = head.hidden_states(at.ids, torch.ones_like(at.ids), torch.arange(at.ids.shape[1])[None])
        assert hidden.shape == (*at.ids.shape, 64)
        two = head.token_logps(hidden[at.rows, at.positions], at.targets)
        assert torch.allclose(two, head.completion_logps(at.ids, at.rows, at.positions, at.targets), atol=1e-5)
        assert head.token_logps(hidden[0, :0], at.targets[:0]).shape == (0,)


class Twisted(nn.Module):
    """A projection that no scale and cap can describe."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden)


def strange_model(*, keeps: bool) -> nn.Module:
    """A Llama whose logits are changed after the projection in a way that the configuration does not show."""
    model = make("llama")
    plain = model.forward

    def bent(input_ids: torch.Tensor, logits_to_keep: object = 0, **given: object) -> object:
        output = plain(input_ids=input_ids, logits_to_keep=logits_to_keep, **given)
        output.logits = output.logits + 0.3 * output.logits.sin()
        return output

    def without_keeping(input_ids: torch.Tensor, **given: object) -> object:
        return bent(input_ids, **given)

    model.forward = bent if keeps else without_keeping
    return model


@pytest.mark.parametrize("keeps", [True, False])
def test_a_head_that_is_not_understood_is_told_and_computed_the_plain_way(keeps: bool) -> None:
    model = strange_model(keeps=keeps)
    head = Head.of(model)
    assert head.is_plain
    assert head.notice is not None
    assert "LlamaForCausalLM" in head.notice
    assert "full logits" in head.notice
    at = places()
    mask = torch.ones_like(at.ids)
    ours = head.completion_logps(at.ids, at.rows, at.positions, at.targets, attention_mask=mask)
    by_ours = gradient(model, ours, at)
    theirs = naive(model, at)
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert relative(by_ours, gradient(model, theirs, at)) <= 1e-5
    states = head.hidden_states(at.ids)
    assert torch.allclose(head.token_logps(states[at.rows, at.positions], at.targets), theirs, atol=1e-4)


def test_a_prompt_learning_adapter_is_computed_the_plain_way() -> None:
    from peft import PrefixTuningConfig, get_peft_model

    model = get_peft_model(make("llama"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert Head.of(model).is_plain


def test_a_cap_too_high_to_show_on_ordinary_logits_is_found() -> None:
    """These logits stay under 3, where a cap of 50 changes them by 0.004, within bf16's rounding. The enlarged probe shows it."""
    model = make("gemma2", final_logit_softcapping=50.0).to(torch.bfloat16)
    assert Head.of(model).form == LogitForm(1.0, 50.0)
    model.config.final_logit_softcapping = None
    assert Head.of(model).form == LogitForm(1.0, None)


@pytest.mark.parametrize(
    ("kind", "form"), [("cohere", LogitForm(0.25)), ("granite", LogitForm(0.25)), ("llama", LogitForm())]
)
def test_scales_are_found(kind: str, form: LogitForm) -> None:
    assert Head.of(make(kind)).form == form


def test_a_projection_of_another_class_is_called_and_not_taken_apart() -> None:
    model = make("llama")
    model.lm_head = Twisted(model.lm_head)
    head = Head.of(model)
    assert head.notice is None
    at = places()
    with torch.no_grad():
        ours = head.completion_logps(at.ids, at.rows, at.positions, at.targets)
        assert torch.allclose(ours, naive(model, at), atol=1e-4)


def test_probing_leaves_the_model_as_it_was() -> None:
    model = make("gpt2").train()
    model.transformer.h[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    Head.of(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "phi", "gemma2", "mamba"])
def test_bfloat16_weights_take_a_float32_softmax(kind: str) -> None:
    model = make(kind, dtype="bfloat16")
    head = Head.of(model)
    assert head.notice is None
    at = places()
    ours = head.completion_logps(at.ids, at.rows, at.positions, at.targets)
    assert ours.dtype == torch.float32
    theirs = naive(model, at)
    assert float((ours - theirs).abs().max()) <= 0.05
    assert relative(gradient(model, ours, at), gradient(model, theirs, at).float()) <= 0.02


@pytest.mark.parametrize("frozen", [True, False])
def test_under_autocast_the_head_computes_as_the_model_would(frozen: bool) -> None:
    model = make("llama")
    model.lm_head.requires_grad_(not frozen)
    head = Head.of(model)
    at = places()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = head.completion_logps(at.ids, at.rows, at.positions, at.targets)
        theirs = naive(model, at)
    assert ours.dtype == torch.float32
    assert float((ours - theirs).abs().max()) <= 0.02
    assert relative(gradient(model, ours, at), gradient(model, theirs, at)) <= 0.02


def test_the_gradient_is_taken_without_keeping_logits() -> None:
    """The graph keeps one (N, H) tensor for a frozen head, and no logits for a trained one."""
    model = make("llama")
    head = Head.of(model)
    at = places()
    hidden = head.hidden_states(at.ids)[at.rows, at.positions].detach().requires_grad_()
    for frozen in (True, False):
        model.lm_head.requires_grad_(not frozen)
        kept: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t):
            head.token_logps(hidden, at.targets)
        assert kept
        assert all(len(shape) < 2 or shape[-1] == 64 for shape in kept), kept


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("frozen", [True, False])
def test_no_block_of_logits_is_larger_than_a_chunk_forward_or_backward(frozen: bool) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    model = make("llama")
    model.lm_head.requires_grad_(not frozen)
    head = Head.of(model)
    at = places()
    hidden = head.hidden_states(at.ids)[at.rows, at.positions].detach().requires_grad_()
    rows = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            # (64, V) is the transposed weight, or its gradient.
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCAB,) and result.shape != (64, VOCAB):
                rows.append(result.shape[0])
            return result

    with Watch():
        head.token_logps(hidden, at.targets).sum().backward()
    assert rows
    assert max(rows) <= 4


def test_a_cap_that_the_configuration_does_not_tell_is_noticed() -> None:
    """On ordinary logits it disappears in bf16's rounding; on the enlarged ones it does not."""
    model = make("llama", dtype="bfloat16")
    project = model.forward

    def capped(input_ids: torch.Tensor, **given: object) -> object:
        output = project(input_ids=input_ids, **given)
        output.logits = 50 * torch.tanh(output.logits / 50)
        return output

    model.forward = capped
    assert Head.of(model).is_plain
