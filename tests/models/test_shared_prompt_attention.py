"""Attention over a shared row: what each completion attends to, in both implementations, and what is refused."""

from itertools import pairwise

import pytest
import tiny_models
import torch

from mrpo_pipeline.models import shared_prompt_attention


@pytest.mark.parametrize("given", [{"position_bias": torch.zeros(1)}, {"s_aux": torch.zeros(2)}, {"dropout": 0.1}])
def test_something_that_is_not_done_here_is_refused_and_not_left_out(given):
    model = tiny_models.make("llama")
    attention = shared_prompt_attention.SharedPromptAttention(model)
    states = torch.randn(1, 2, 10, 8)
    with attention.over([(4, 3, 2, 1)]):
        shared_prompt_attention.attend(model, states, states, states, None)
        with pytest.raises(shared_prompt_attention.NotShareableError):
            shared_prompt_attention.attend(model, states, states, states, None, **given)


@pytest.mark.parametrize(("keys_per_token", "calls"), [(2, 1), (0, 7), (0.5, 3)])
def test_the_variable_length_kernel_is_given_the_same_sequences(keys_per_token, calls, monkeypatch):
    """The kernel needs a GPU: its arguments are tested with a plain implementation of their documented meaning."""
    from torch.nn.attention import varlen

    def written_out(
        query, key, value, query_bounds, key_bounds, longest_query, longest_key, *, scale, window_size, enable_gqa
    ):
        parts = []
        ends = zip(pairwise(query_bounds.tolist()), pairwise(key_bounds.tolist()), strict=True)
        for (q0, q1), (k0, k1) in ends:
            assert q1 - q0 <= longest_query
            assert k1 - k0 <= longest_key
            own = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0)
            behind = own - torch.arange(k1 - k0)
            seen = (behind >= 0) & ((behind <= window_size[0]) if window_size[0] >= 0 else True)
            groups = query.shape[1] // key.shape[1]
            k, v = (t[k0:k1].repeat_interleave(groups, dim=1).transpose(0, 1) for t in (key, value))
            scores = query[q0:q1].transpose(0, 1) @ k.transpose(1, 2) * scale
            parts.append((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1))
        assert window_size[1] == 0
        return torch.cat(parts)

    monkeypatch.setattr(varlen, "varlen_attn", written_out)
    torch.manual_seed(0)
    monkeypatch.setattr(shared_prompt_attention, "_KEYS_PER_TOKEN", keys_per_token)
    row = shared_prompt_attention.Row([(5, 4, 6), (1, 0, 3, 0, 8), (7, 2)], variable_length=True)
    total = sum(row.sizes)
    query, key, value = torch.randn(1, 4, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)
    for window in (None, 3):
        expected = shared_prompt_attention._one_by_one(row, query, key, value, 0.3, window, None)
        found = shared_prompt_attention._in_one_kernel(row, query, key, value, 0.3, window)
        assert torch.allclose(found, expected, atol=1e-5)
    assert len(row.calls(query.device)) == calls


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 3, 9])
def test_every_completion_attends_to_its_prompt_and_itself_alone(window, cap):
    torch.manual_seed(1)
    segments = [(5, 4, 6, 1), (1, 0, 3, 0, 8), (0, 2, 3), (7, 2)]
    row = shared_prompt_attention.Row(segments, variable_length=False)
    total = sum(map(sum, segments))
    query, key, value = (torch.randn(1, heads, total, 8, dtype=torch.float64) for heads in (4, 2, 2))
    found = shared_prompt_attention._one_by_one(row, query, key, value, 0.3, window, cap)
    start = 0
    for prompt, *completions in segments:
        end = start + prompt
        for completion in completions:
            seen = [*range(start, start + prompt), *range(end, end + completion)]
            behind = torch.arange(len(seen))[:, None] - torch.arange(len(seen))
            hidden = (behind < 0) | (behind >= (window or len(seen)))
            k, v = (tensor[:, :, seen].repeat_interleave(2, dim=1) for tensor in (key, value))
            scores = query[:, :, seen] @ k.transpose(2, 3) * 0.3
            scores = scores if cap is None else cap * torch.tanh(scores / cap)
            expected = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)
            assert torch.allclose(found[:, seen], expected, atol=1e-6)
            end += completion
        start = end


def test_one_mask_serves_completions_of_every_length():
    row = shared_prompt_attention.Row([(5, 4, 6)], variable_length=False)
    like = torch.zeros(1)
    for queries, keys in ((6, 11), (2, 20), (7, 9)):
        mask = row.mask(queries, keys, 4, like)
        places = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        assert ((mask == 0) == ((places >= 0) & (places < 4))).all()
    assert len(row._made) == 1
