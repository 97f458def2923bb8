"""The oracle of bench_templates for reasoning, tools, several messages and template arguments, independent of the renderer.

It does not use the renderer's way of finding the form that a template takes: it tries its own forms on each conversation, and compares
the rendered ids with those of the first form that transformers' apply_chat_template writes completely.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from mrpo_pipeline.rendering import Rendered

FROM_GENERATION_PROMPT = "as the generation prompt has it"
Row = dict[str, Any]  # prompt, completion (canonical messages), tools, template_kwargs


def judge(oracle: Any, row: Row, got: Rendered) -> tuple[str, str]:
    """(exact | explained | wrong, why) of one rendering."""
    ours = [*got.prompt_ids.tolist(), *got.completion_ids.tolist()]
    tried = 0
    first_difference = ""
    for messages, text, asked, note in _texts(oracle, row):
        tried += 1
        ids = list(oracle.own.encode(text, add_special_tokens=False).ids)
        why = _difference(oracle, ids, ours, got)
        if why is None:
            first_difference = first_difference or _show(oracle, ids, ours)
            continue
        why = " + ".join(one for one in (note, why) if one)
        problem = _scored(oracle, row, messages, got, asked, text)
        return ("wrong", problem) if problem else ("explained" if why else "exact", why)
    if not tried:
        return "explained", "no rendering of the oracle holds all"
    return "wrong", first_difference


def _texts(oracle: Any, row: Row) -> Iterator[tuple[list[Row], str, str, str]]:
    """Messages in each form that the template writes completely, with the text, the prompt's generation prompt, and what is unusual."""
    canonical = [*row["prompt"], *row["completion"]]
    needed = [t for m in canonical for t in _needed(m, m in row["completion"])]
    options = {"tools": row.get("tools"), **(row.get("template_kwargs") or {})}
    for form in _forms(canonical):
        messages = form(canonical)
        cut = len(row["prompt"])
        text = _try(oracle, messages, **options)
        asked = _try(oracle, messages[:cut], ask=True, **options) or ""
        if text is None:
            continue
        # A system message that is written only where the user's message is the last.
        rest, bare = messages[1:], _try(oracle, messages[1:cut], ask=True, **options) or ""
        without = _try(oracle, rest, **options) or ""
        if messages[0]["role"] == "system" and cut > 1 and bare and without.startswith(bare):
            text_asked = asked + without[len(bare) :]
            if all(_has(text_asked, one) for one in needed) and not all(_has(text, one) for one in needed):
                yield messages, text_asked, asked, FROM_GENERATION_PROMPT
        if all(_has(text, one) for one in needed):
            yield messages, text, asked, ""
        # An instruction that is written only where the user's message is the last.
        question = messages[cut - 1]["content"]
        tail = asked[asked.rfind(question) :] if question and question in asked else ""
        if tail and not text.startswith(asked) and text.count(tail) == 1:
            text_asked = asked + text.partition(tail)[2]
            if all(_has(text_asked, one) for one in needed):
                yield messages, text_asked, asked, FROM_GENERATION_PROMPT
        # Text that a template leaves out of the complete text although the model gets it.
        given = _try(oracle, messages[:-1], ask=True, **options) or ""
        alone = [next(m for m in messages if m["role"] == "user"), messages[-1]]
        own, before = _try(oracle, alone, **options) or "", _try(oracle, alone[:1], ask=True, **options) or ""
        if before and own.startswith(before) and all(_has(given + own[len(before) :], one) for one in needed):
            yield messages, given + own[len(before) :], asked, FROM_GENERATION_PROMPT


def _needed(message: Row, scored: bool) -> list[str]:
    texts = [message["content"].strip()]
    if scored:
        texts.append(message.get("reasoning_content", "").strip())
    for call in message.get("tool_calls", ()):
        texts += [call["name"], *(value for value in call["arguments"].values() if isinstance(value, str))]
    return [text for text in texts if text]


def _has(text: str, one: str) -> bool:
    return any(way in text for way in _spellings(one))


def _spellings(text: str) -> list[str]:
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    return [text, once, json.dumps(once, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]]


def _forms(messages: list[Row]) -> Iterator[Callable[[list[Row]], list[Row]]]:
    calls = any(m.get("tool_calls") or m["role"] == "tool" for m in messages)
    thinks = any(m.get("reasoning_content") for m in messages)
    for key, ids, as_text, empty, role in itertools.product(
        ("reasoning_content", "thinking", "reasoning", "parts") if thinks else ("reasoning_content",),
        ("given", "nine_characters", "functions", "none") if calls else ("given",),
        (False, True) if calls else (False,),
        ("", None) if calls else ("",),
        ("tool", "ipython") if calls else ("tool",),
    ):
        yield lambda m, a=key, b=ids, c=as_text, d=empty, e=role: _formed(m, a, b, c, d, e)


def _formed(messages: list[Row], key: str, ids: str, as_text: bool, empty: str | None, role: str) -> list[Row]:
    from mrpo_pipeline.rendering.message_formats import nine_characters

    made, named, count = [], {}, 0
    for message in messages:
        one: Row = {"role": message["role"], "content": message["content"]}
        if thought := message.get("reasoning_content"):
            if key == "parts":
                one["content"] = [
                    {"type": "thinking", "thinking": thought},
                    {"type": "text", "text": message["content"]},
                ]
                one["content"] = one["content"][: 1 + bool(message["content"])]
            else:
                one[key] = thought
        if calls := message.get("tool_calls"):
            one["content"] = one["content"] or empty
            one["tool_calls"] = []
            for call in calls:
                own = {
                    "given": call["id"],
                    "nine_characters": nine_characters(call["id"]),
                    "functions": f"functions.{call['name']}:{count}",
                }.get(ids)
                count, named[call["id"]] = count + 1, own
                arguments = json.dumps(call["arguments"], ensure_ascii=False) if as_text else call["arguments"]
                function = {"name": call["name"], "arguments": arguments}
                one["tool_calls"].append({"type": "function", **({"id": own} if own else {}), "function": function})
        if message["role"] == "tool":
            one = {"role": role, "content": message["content"], "name": message["name"]}
            if own := named.get(message["tool_call_id"]):
                one["tool_call_id"] = own
        made.append(one)
    return made


def _try(oracle: Any, messages: list[Row], *, ask: bool = False, **options: Any) -> str | None:
    try:
        return str(oracle.text(messages, ask=ask, **options))
    except Exception:  # a template may raise anything
        return None


def _difference(oracle: Any, ids: list[int], ours: list[int], got: Rendered) -> str | None:
    """Empty for no difference, a reason for an allowed one, None for another text."""
    bos = oracle.tokenizer.bos_token_id
    reasons = []
    if ours[0] == bos and ids[:1] != [bos]:
        ours = ours[1:]
        reasons.append("BOS put first")
    if ids[: len(ours)] == ours:
        return " + ".join(reasons)
    if ids[: len(ours) - 1] == ours[:-1]:
        return " + ".join([*reasons, "end of turn added"])
    text, theirs = (oracle.own.decode(one, skip_special_tokens=False) for one in (ours[:-1], ids))
    if "".join(theirs.split()).startswith("".join(text.split())):
        return " + ".join([*reasons, "token across an edge split"])
    return None


def _scored(oracle: Any, row: Row, messages: list[Row], got: Rendered, asked: str, text: str) -> str:
    """What is wrong with the choice of scored tokens; empty if nothing is."""
    mask = got.scored if got.scored is not None else [True] * len(got.completion_ids)
    scored = oracle.own.decode(
        [i for i, one in zip(got.completion_ids.tolist(), mask, strict=True) if one], skip_special_tokens=False
    )
    context = oracle.own.decode(
        [i for i, one in zip(got.completion_ids.tolist(), mask, strict=True) if not one], skip_special_tokens=False
    )
    prompt = oracle.own.decode(got.prompt_ids.tolist(), skip_special_tokens=False)
    for message in row["completion"]:
        for one in _needed(message, True):
            place = context if message["role"] == "tool" else scored
            if not any(_squeezed(way) in _squeezed(place) for way in _spellings(one)):
                return f"{message['role']}'s {one[:40]!r} is not in {place[:200]!r}"
    plain = len(row["completion"]) == 1 and not {"reasoning_content", "tool_calls"} & row["completion"][0].keys()
    if (
        not plain
        and asked
        and text.startswith(asked)
        and _squeezed(prompt).removeprefix(_squeezed(asked)) not in ("",)
        and not _squeezed(prompt).endswith(_squeezed(asked))
    ):
        return f"the prompt is {prompt[-80:]!r}, the generation prompt {asked[-80:]!r}"
    if int(got.completion_ids[-1]) not in oracle.special_ids:
        return f"ends with {oracle.own.id_to_token(int(got.completion_ids[-1]))}"
    return ""


def _squeezed(text: str) -> str:
    return "".join(text.replace("▁", " ").split())


def _show(oracle: Any, ids: list[int], ours: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, ids, strict=False)) if a != b), len(ids))
    both = ([oracle.own.id_to_token(i) for i in one[max(at - 4, 0) : at + 8]] for one in (ours, ids))
    return "token {}: ours {} plain {}".format(at, *both)
