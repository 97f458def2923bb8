"""The file of TRL's DPOTrainer: text, the policy's token ids, and log π̃ where TRL keeps its reference's sums.

TRL (1.16) fills the columns ``ref_chosen_logps`` and ``ref_rejected_logps`` itself, from its one reference model, and it
renders text in its own way: it counts what a template writes behind the end of a turn as completion, ends a cut completion
all the same, and lets control strings in the data be control tokens. So the file holds the token ids as well, under TRL's own
names, and `docs/trl.md` shows the two methods of the trainer that leave both as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import parse_prompt
from mrpo_pipeline.pairs.completion import MARK, cut_messages
from mrpo_pipeline.pairs.identity import Message, prompt_settings
from mrpo_pipeline.recipe import Recipe

UNSCORED = "a side holds tokens that are not scored (a tool's result between two messages, or a prompt written otherwise for one side)"

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")

_TYPES = {"tools": pl.List(pl.String)}  # where no row has tools, the values give no type

# Where a loss of ours is one of TRL's (its names), on sums and divided by tokens.
_LOSSES = {
    ("sigmoid", "sum"): "sigmoid",
    ("sigmoid", "token"): "sigmoid_norm",
    ("hinge", "sum"): "hinge",
    ("ipo", "sum"): "ipo",
    ("ipo", "token"): "ipo",
}


def rows(pairs: CachedPairs, recipe: Recipe) -> tuple[pl.DataFrame, dict[str, int]]:
    """Every pair after its cuts: ``prompt``, ``chosen``, ``rejected`` as TRL has them, and the ids that stand for them.

    Where a row has reasoning, tool calls, tools or arguments of the template, messages, ``tools`` and ``chat_template_kwargs`` are
    JSON (`datasets` reads them as ``Json``): in a column of structs, every call would get the arguments of all others, with nulls.
    Left out are pairs with tokens that are not scored, as TRL scores all of a side.

    Raises:
        UserError: where some prompts are messages and others raw text, which one column can't hold.
    """
    frame = pairs.frame
    prompts = [parse_prompt(text) for text in frame["prompt_read"]]
    raw = [isinstance(prompt, str) for prompt in prompts]
    if any(raw) and not all(raw):
        raise UserError(
            f"{sum(raw):,} of {len(raw):,} prompts are raw text and the others messages: expected one kind, for TRL reads all of "
            "a file as the first row. Write them apart, or set pairs.strings to messages."
        )
    kept = frame.with_row_index("index", 0).filter(~_holds_unscored(frame))
    left_out = {UNSCORED: frame.height - kept.height} if kept.height < frame.height else {}
    texts: dict[str, list[Any]] = {side: _counted(kept, side) for side in ("chosen", "rejected")}
    columns: dict[str, list[Any]] = {"prompt": [prompts[index] for index in kept["index"]]}
    if all(raw):
        columns |= {side: [messages[0]["content"] for messages in sides] for side, sides in texts.items()}
    elif _is_structured(frame, prompts):
        columns = {name: [as_json(messages) for messages in column] for name, column in (columns | texts).items()}
        beside = [prompt_settings(text) for text in kept["prompt_read"]]
        # Null, not an empty list: some templates write the words around tools for an empty list as well.
        columns["tools"] = [[_json(tool) for tool in one.tools] if one.tools else None for one in beside]
        columns["chat_template_kwargs"] = [_json(one.template_kwargs or {}) for one in beside]
    else:
        columns |= texts
    return kept.select(
        pl.col("index").cast(pl.Int64),
        "pair_id",
        *(pl.Series(name, values, dtype=_TYPES.get(name)) for name, values in columns.items()),
        "prompt_ids",
        "chosen_ids",
        "rejected_ids",
    ), left_out


def json_columns(frame: pl.DataFrame) -> list[str]:
    """The columns of what `rows` gives that hold JSON."""
    named = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")
    return list(named) if "chat_template_kwargs" in frame.columns else []


def as_json(messages: Sequence[Message]) -> list[str]:
    """Messages as TRL has them (calls of type function, their arguments an object), each as JSON."""
    return [
        _json({key: _call_forms(inner) if key == "tool_calls" else inner for key, inner in message.items()})
        for message in messages
    ]


def _call_forms(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            **({"id": call["id"]} if "id" in call else {}),
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for call in calls
    ]


def _is_structured(frame: pl.DataFrame, prompts: Sequence[Any]) -> bool:
    """Whether one row is more than messages of role and content: then all are JSON, as one column has one type."""
    if any(frame[side].str.starts_with(MARK).any() for side in ("chosen", "rejected")):
        return True
    return bool(frame["prompt_read"].str.starts_with("{").any()) or any(
        len(message) > 2 for prompt in prompts for message in prompt
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def settings(recipe: Recipe) -> list[str]:
    """The keys of ``DPOConfig`` that make TRL's loss this recipe's."""
    method = recipe.method
    loss = _LOSSES.get((method.loss, method.normalize))
    loss = f'"{loss}"' if loss else None
    if (method.loss, method.normalize) == ("mpo", "sum"):
        shares = method.mpo
        loss = (
            f'["sigmoid", "bco_pair", "sft"], loss_weights=[{shares.preference:g}, {shares.quality:g}, {shares.sft:g}]'
        )
    lines = [
        "precompute_ref_log_probs=True  # in a trainer that keeps the file's columns: docs/trl.md",
        "max_length=None  # the ids are cut already",
        f"beta={method.beta:g}",
        f"loss_type={loss}" if loss else f"# TRL has no loss_type for method.loss {method.loss} by {method.normalize}",
    ]
    if method.label_smoothing:
        lines.append(
            f"# label_smoothing {method.label_smoothing:g}: TRL 1.16 has none in its sigmoid loss; take it out of the recipe"
        )
    if method.sft_weight:
        lines.append(
            f'# sft_weight {method.sft_weight:g}: loss_type=[…, "sft"], loss_weights=[1, {method.sft_weight:g}], a mean over '
            "the batch's tokens there"
        )
    return lines


def _counted(frame: pl.DataFrame, side: str) -> list[list[Message]]:
    """(N,) the messages of one side up to its cut."""
    return [cut_messages(completion, cut) for completion, cut in frame.select(side, f"{side}_cut").iter_rows()]


def _holds_unscored(frame: pl.DataFrame) -> pl.Series:
    """(N,) whether prepared pairs have tokens that are not scored behind the prompt that both sides share."""
    masks = pl.col("chosen_scored").is_not_null() | pl.col("rejected_scored").is_not_null()
    return frame.select(masks).to_series()
