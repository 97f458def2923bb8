"""Pretraining text for the demo's models, and the plain next-token training on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.demo.questions import KINDS, draw_prompt
from mrpo_pipeline.terminal import track

if TYPE_CHECKING:
    import torch

Conversation = list[dict[str, str]]

# Conversations are sorted by length within a pool of this many batches.
_POOL_BATCHES = 12


def conversations(care: Mapping[str, float], mix: Mapping[str, float], seed: str) -> Iterator[Conversation]:
    """Endless conversations for pretraining a demo model.

    Args:
        care: by kind, the share of correct answers; the others are mistakes.
        mix: by kind, its relative frequency.
        seed: of the draws.
    """
    rng = Random(seed)
    weights = [mix[kind] for kind in KINDS]
    while True:
        kind = rng.choices(KINDS, weights)[0]
        messages, question = draw_prompt(kind, "pretraining", rng)
        answer = question.right if rng.random() < care[kind] else question.wrong
        yield [*messages, {"role": "assistant", "content": answer}]


def merge_system(conversation: Conversation) -> Conversation:
    """The conversation with its system message at the start of the first user message."""
    if conversation[0]["role"] != "system":
        return conversation
    system, first, *rest = conversation
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def conversation_ids(tokenizer: Any, conversation: Conversation) -> tuple[list[int], int]:
    """Token ids of a conversation by the tokenizer's template, and the index at which the last answer begins.

    A system message is merged into the first user message where the template does not support one.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
    except TemplateError:
        conversation = merge_system(conversation)
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
    prompt = tokenizer.apply_chat_template(conversation[:-1], tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    start: int = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return ids, start


def padded(rows: Sequence[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids padded on the right with 0, (B, T), and a mask (B, T) of the last answers' tokens."""
    import torch

    length = max(len(row) for row, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    answer = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, (row, start) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        answer[index, start : len(row)] = True
    return ids, answer


def answer_logps(model: Any, ids: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Log-probs (nats) of the M tokens marked in `answer` (B, T), concatenated: (M,).

    Logits are computed at those positions only, a quarter of all.
    """
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, H)
    logits = model.get_output_embeddings()(hidden[:, :-1][answer[:, 1:]])  # (marked, V)
    targets = ids[:, 1:][answer[:, 1:]]
    logps: torch.Tensor = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return logps


def batches(
    tokenizer: Any, source: Iterator[Conversation], size: int, rng: Random
) -> Iterator[list[tuple[list[int], int]]]:
    """Endless batches of `size` conversations as ids, of similar length within a batch."""
    while True:
        rows = [conversation_ids(tokenizer, next(source)) for _ in range(size * _POOL_BATCHES)]
        pool = sorted(rows, key=lambda row: len(row[0]))
        order = list(range(_POOL_BATCHES))
        rng.shuffle(order)
        for index in order:
            yield pool[index * size : (index + 1) * size]


def pretrain(
    model: Any, rows: Iterator[list[tuple[list[int], int]]], *, steps: int, learning_rate: float, label: str
) -> float:
    """Train `model` in place with AdamW on next-token prediction of the last answers; the last step's loss in nats per token.

    The learning rate warms up over 5% of the steps and decays to 5% on a cosine.
    """
    import math

    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    model.train()
    loss = torch.tensor(float("nan"))
    with track(label, steps, "steps") as shown:
        for step in range(steps):
            passed = max(0.0, (step - warmup) / max(1, steps - warmup))
            scale = min((step + 1) / warmup, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * passed)))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * scale
            loss = -answer_logps(model, *padded(next(rows))).mean()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            shown.advance(1)
    model.eval()
    return float(loss.detach())
