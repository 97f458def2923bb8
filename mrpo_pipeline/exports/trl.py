"""The file of TRL's DPOTrainer: text, the policy's token ids, and log π̃ in the columns of TRL's reference sums.

TRL (1.16) fills ``ref_chosen_logps`` and ``ref_rejected_logps`` itself from its one reference model, and renders text differently: it
scores what a template writes after the end of a turn, adds an end of turn to a truncated completion, and encodes control strings in
the data as control tokens. So the file also has the token ids under TRL's names, and `docs/trl.md` shows the two trainer methods that
keep both.
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

UNSCORED = "a side has tokens that are not scored (a tool's result between messages, or a prompt rendered differently for one side)"

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")

_TYPES = {"tools": pl.List(pl.String)}  # without tools the values have no type

# TRL's names of losses on sums, and of those that divide by tokens.
_LOSSES = {
    **{name: name for name in ("sigmoid", "hinge", "ipo", "robust", "aot", "discopop", "sft")},
    **{name: name.replace("-", "_") for name in ("aot-unpaired", "apo-zero", "apo-down", "sigmoid-norm")},
    **{name: f"{name}_pair" for name in ("exo", "nca", "bco")},
    "sppo": "sppo_hard",
}
_OPTIONS = ("discopop_tau", "f_divergence_type", "f_alpha_divergence_coef")
_PER_TOKEN = {"sigmoid": "sigmoid_norm", "sigmoid-norm": "sigmoid_norm", "ipo": "ipo", "sft": "sft"}


def rows(pairs: CachedPairs, recipe: Recipe) -> tuple[pl.DataFrame, dict[str, int]]:
    """Every pair after truncation: ``prompt``, ``chosen``, ``rejected`` in TRL's format, and their ids; and left-out pairs by reason.

    If a row has reasoning, tool calls, tools or template arguments, messages, ``tools`` and ``chat_template_kwargs`` are JSON (`datasets`
    reads them as ``Json``): in a column of structs, every call would get the arguments of all others, with nulls. Pairs with tokens
    that are not scored are left out, because TRL scores all of a side.

    Raises:
        UserError: for messages and raw text in one file.
    """
    frame = pairs.frame
    prompts = [parse_prompt(text) for text in frame["prompt_read"]]
    raw = [isinstance(prompt, str) for prompt in prompts]
    if any(raw) and not all(raw):
        raise UserError(
            f"{sum(raw):,} of {len(raw):,} prompts are raw text and the others messages: expected one kind, because TRL reads all rows "
            "like the first. Export them separately, or set pairs.strings to messages."
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
        # Null, not an empty list, for which some templates write the text around tools.
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
    """The JSON columns of `rows`."""
    named = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")
    return list(named) if "chat_template_kwargs" in frame.columns else []


def as_json(messages: Sequence[Message]) -> list[str]:
    """Messages in TRL's format (calls of type function with an object of arguments), each as JSON."""
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
    """Whether any row has more than messages of role and content: then all are JSON, as a column has one type."""
    if any(frame[side].str.starts_with(MARK).any() for side in ("chosen", "rejected")):
        return True
    return bool(frame["prompt_read"].str.starts_with("{").any()) or any(
        len(message) > 2 for prompt in prompts for message in prompt
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def settings(recipe: Recipe) -> list[str]:
    """The keys of ``DPOConfig`` for this recipe's loss."""
    method = recipe.method
    losses, known = method.losses, _LOSSES if method.normalize == "sum" else _PER_TOKEN
    unknown = [name for name in losses if name not in known]
    if unknown:
        loss = f"# TRL has no loss_type for method.loss {' + '.join(unknown)} by {method.normalize}"
    elif len(losses) == 1:
        loss = f'loss_type="{known[next(iter(losses))]}"'
    else:
        types, weights = (
            ", ".join(texts) for texts in ([f'"{known[n]}"' for n in losses], [f"{w:g}" for w in losses.values()])
        )
        loss = f"loss_type=[{types}], loss_weights=[{weights}]"
    options = {
        key: getattr(method, key) for key in sorted(method.settings_read() - {"modpo", "bco_shift", "label_smoothing"})
    }
    usual = type(method).model_fields
    lines = [
        "precompute_ref_log_probs=True  # in a trainer that keeps the file's columns: docs/trl.md",
        "max_length=None  # the ids are already truncated",
        f"beta={method.beta:g}",
        loss,
        *(f"{key}={value!r}" for key, value in options.items() if value != usual[key].default and key in _OPTIONS),
    ]
    if method.label_smoothing and "sigmoid" in losses:
        lines.append(
            f"# label_smoothing {method.label_smoothing:g}: TRL 1.16 has none in its sigmoid loss; take it out of the recipe"
        )
    elif method.label_smoothing:
        lines.append(f"label_smoothing={method.label_smoothing:g}")
    if method.has_reward_mean:
        lines.append("# bco: TRL has no running mean of the rewards; method.bco_shift: zero is its loss")
    if "sft" in losses:
        lines.append("# sft: TRL takes a mean over the batch's tokens, not over each completion")
    return lines


def _counted(frame: pl.DataFrame, side: str) -> list[list[Message]]:
    """(N,) the messages of one side up to its cut."""
    return [cut_messages(completion, cut) for completion, cut in frame.select(side, f"{side}_cut").iter_rows()]


def _holds_unscored(frame: pl.DataFrame) -> pl.Series:
    """(N,) whether prepared pairs have tokens after the shared prompt that are not scored."""
    masks = pl.col("chosen_scored").is_not_null() | pl.col("rejected_scored").is_not_null()
    return frame.select(masks).to_series()
