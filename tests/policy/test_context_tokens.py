"""Completions with context inside, and sides whose prompts differ: sums, losses and gradients against full logits with a mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from tiny_policy import make_examples

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.ragged_ids import MaskRows
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.models.attention import exact_attention
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.models.input_layouts import plain_rows, shared_row
from mrpo_pipeline.models.shared_prompt_attention import SharedPromptAttention
from mrpo_pipeline.policy.collate import lay_out_pairs
from mrpo_pipeline.policy.forward import PolicyForward
from mrpo_pipeline.policy.metrics import pair_losses
from mrpo_pipeline.policy.run_identity import examples_digest
from mrpo_pipeline.policy.share_prompts import share_prompts

T, F = True, False


def with_context(seed: int = 0, longest: int = 24) -> PreferenceExamples:
    """Pairs 0 to 5 of different lengths: plain, context inside, at the start and at the end, no shared prompt, one side only."""
    examples = make_examples(6, seed=seed, longest=longest)
    draw = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        return draw.integers(3, 96, count).astype(np.int32)

    sides = {
        1: ([T, T, F, F, F, T], [T, F, T]),
        2: ([F, F, F, T, T], [F, T]),  # the rest of each side's own prompt
        3: ([F, T, T, F, T], [F, F, T]),
        4: ([T, T, F], [T]),
        5: ([T, T], [F] * 9 + [T] + [F] * 12 + [T, T]),
    }
    masks = {"chosen": [()] * 6, "rejected": [()] * 6}
    for pair, both in sides.items():
        for side, mask in zip(masks, both, strict=True):
            getattr(examples, f"{side}_ids")[pair] = ids(len(mask))
            masks[side][pair] = () if all(mask) else np.array(mask)
    examples.prompt_ids[3] = ids(0)
    return replace(examples, chosen_scored=masks["chosen"], rejected_scored=masks["rejected"])


def policy(kind: str):
    model = tiny_models.make(kind)
    attention = exact_attention(model.config)
    if attention is not None:
        model.set_attn_implementation(attention)
    torch.manual_seed(3)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, lora).eval()


def masked_sums(model, examples: PreferenceExamples, picked: list[int]) -> torch.Tensor:
    """(2B,) full logits of each row alone, log-softmax, and a mask."""
    sums = []
    for side in ("chosen", "rejected"):
        for pair in picked:
            prompt, ids = examples.prompt_ids[pair], getattr(examples, f"{side}_ids")[pair]
            scored = getattr(examples, f"{side}_scored")[pair]
            mask = np.concatenate([np.zeros(len(prompt)), scored if len(scored) else np.ones(len(ids))])[1:]
            row = torch.tensor(np.concatenate([prompt, ids]), dtype=torch.long)[None]
            logps = model(input_ids=row, use_cache=False).logits[0, :-1].double().log_softmax(-1)
            own = logps.gather(-1, row[0, 1:, None])[:, 0]
            sums.append((own * torch.from_numpy(mask)).sum())
    return torch.stack(sums)


def gradient(model, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def forward_of(model, *, shared: bool, **options) -> PolicyForward:
    """In float64, where 1e-6 is far above rounding."""
    head = Head.of(model.get_base_model())
    assert head.notice is None
    model.double()
    return PolicyForward(head, SharedPromptAttention(head.model) if shared else None, **options)


@pytest.mark.parametrize("chunked_head", [True, False])
@pytest.mark.parametrize("layout", [plain_rows, shared_row])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral"])
def test_sums_and_gradients_are_those_of_full_logits_and_a_mask(kind, layout, chunked_head):
    # Rows longer than the sliding window of 16 of gemma2 and mistral.
    examples, picked = with_context(), [5, 0, 3, 1, 2, 4]
    model = policy(kind)
    forward = forward_of(model, shared=layout is shared_row, chunked_head=chunked_head)
    weights = torch.linspace(-1, 2, 2 * len(picked), dtype=torch.float64)
    expected = masked_sums(model, examples, picked)
    by_expected = gradient(model, (expected * weights).sum())
    found = forward(**lay_out_pairs(examples.__getitems__(picked), layout))
    by_found = gradient(model, (found * weights).sum())
    forward.release()
    scale = expected.detach().abs().max()
    assert float((found - expected).detach().abs().max() / scale) <= 1e-6
    assert float((by_found - by_expected).norm() / by_expected.norm()) <= 1e-6


@pytest.mark.parametrize("layout", [plain_rows, shared_row])
def test_losses_that_divide_by_tokens_divide_by_those_that_are_scored(layout):
    examples, picked = with_context(seed=1), [3, 5, 1]
    examples.chosen_units = examples.chosen_counts.astype(np.float64)
    examples.rejected_units = examples.rejected_counts.astype(np.float64)
    model = policy("llama")
    forward = forward_of(model, shared=layout is shared_row)
    chosen, rejected = masked_sums(model, examples, picked).chunk(2)
    counts = [
        [sum(mask) if len(mask) else len(ids) for mask, ids in zip(masks, side, strict=True)]
        for masks, side in (
            (examples.chosen_scored, examples.chosen_ids),
            (examples.rejected_scored, examples.rejected_ids),
        )
    ]
    expected = 0.0
    for at, pair in enumerate(picked):
        up = (chosen[at] - examples.reference_chosen[pair, 0]) / counts[0][pair]
        down = (rejected[at] - examples.reference_rejected[pair, 0]) / counts[1][pair]
        expected = expected + (up - down - 1 / (2 * 0.3)) ** 2 - 0.7 * chosen[at] / counts[0][pair]
    batch = examples.__getitems__(picked)
    by_expected = gradient(model, expected)
    sums = forward(**lay_out_pairs(batch, layout)).chunk(2)
    found = pair_losses(*sums, batch["lengths"], batch, LossSettings(loss="ipo", beta=0.3, sft_weight=0.7)).losses.sum()
    by_found = gradient(model, found)
    forward.release()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float((by_found - by_expected).norm() / by_expected.norm()) <= 1e-6


def test_context_takes_room_and_is_not_counted_as_scored():
    examples = with_context()
    batch = examples.__getitems__([5, 3, ~0])
    lengths = [len(ids) for ids in (*batch["chosen"], *batch["rejected"])]
    assert examples.lengths[5] == len(examples.prompt_ids[5]) + 24
    assert examples.shared_lengths[3] == 5 + 3
    assert batch["lengths"].tolist() == [2, 3, len(examples.chosen_ids[0]), 3, 1, len(examples.rejected_ids[0])]
    assert batch["tokens"] == 2 * len(examples.prompt_ids[5]) + lengths[0] + lengths[1] + lengths[3] + lengths[4]
    for laid in (lay_out_pairs(batch, plain_rows), lay_out_pairs(batch, shared_row)):
        assert len(laid["targets"]) == len(laid["sources"]) == len(laid["completions"]) == int(batch["lengths"].sum())
        assert int(laid["sources"].min()) >= 0
    assert examples.__getitems__([0])["scored"] is None


def test_a_model_shares_prompts_over_such_pairs():
    examples, model = with_context(), policy("llama")
    forward = forward_of(model, shared=False)
    model.forward = forward
    assert share_prompts(model, forward, [examples], [3, 2], dtype="float64", device=torch.device("cpu")) is None


def test_what_is_scored_is_written_opened_and_part_of_the_digest(tmp_path):
    examples = with_context()
    examples.write(tmp_path / "train")
    replace(examples, reference_chosen=examples.reference_chosen + 1).write(
        tmp_path / "other", ids_from=tmp_path / "train"
    )
    for folder in ("train", "other"):
        opened = PreferenceExamples.open(tmp_path / folder)
        assert isinstance(opened.chosen_scored, MaskRows)
        assert [row.tolist() for row in opened.rejected_scored] == [list(row) for row in examples.rejected_scored]
        assert opened.chosen_counts.tolist() == examples.chosen_counts.tolist()
    assert examples_digest(PreferenceExamples.open(tmp_path / "train")) == examples_digest(examples)
    masks = [row.copy() for row in examples.chosen_scored]
    masks[1][3] = True
    assert examples_digest(replace(examples, chosen_scored=masks)) != examples_digest(examples)
    plain = make_examples(6)
    plain.write(tmp_path / "plain")
    assert PreferenceExamples.open(tmp_path / "plain").chosen_scored is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"chosen_scored": [()] * 5}, "chosen_scored: expected a row for each"),
        ({"rejected_scored": [(), [T, T], (), (), (), ()]}, "rejected_scored: expected a row for each"),
        ({"rejected_scored": [(), [F, F, F], (), [F, F, T], (), ()]}, "rejected_scored: row 1 has no token"),
        ({"chosen_scored": None}, "prompt_ids: a row is empty, and a token is scored right behind it"),
    ],
)
def test_what_cannot_be_scored_is_refused(changes, fault):
    arrays = {
        name: None if rows is None else [np.array(row, dtype=np.bool_) for row in rows]
        for name, rows in changes.items()
    }
    with pytest.raises(ValueError, match=fault):
        replace(with_context(), **arrays)
