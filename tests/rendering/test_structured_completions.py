"""Reasoning, tool calls, results and several messages: ids and scored tokens for templates of every kind in use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from structured_templates import DEEPSEEK, GLM_XML, HARMONY, KIMI, MAGISTRAL, MISTRAL_TOOLS, QWEN3_TOOLS, RESPONSE_TOOLS
from tiny_tokenizers import LLAMA2, LLAMA3, llama2, llama3, qwen, special
from tokenizers import AddedToken

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import completion_text, dump_completion
from mrpo_pipeline.pairs.identity import Message, PromptSettings, dump_prompt
from mrpo_pipeline.rendering import Rendered, Renderer, cut_offset, cut_prompt, tokens_counted
from mrpo_pipeline.rendering.message_formats import nine_characters
from mrpo_pipeline.rendering.token_view import view
from mrpo_pipeline.rendering.tokenizer import LoadedTokenizer

USER: Message = {"role": "user", "content": "How is the weather?"}
ARGUMENTS = {"city": 'Zürich "x"\n', "deep": {"flag": True, "none": None}, "n": 3}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"name": "look", "arguments": ARGUMENTS, "id": "call_1"}],
}
RESULT: Message = {"role": "tool", "content": '{"t": 21}\nfine', "tool_call_id": "call_1", "name": "look"}
ANSWER: Message = {"role": "assistant", "content": "It is fine."}
THOUGHT: Message = {**ANSWER, "reasoning_content": "Let me think.\nIt is fine, so"}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look <|im_end|> out", "parameters": {}}}]
TOOLS_PLAIN = [{"type": "function", "function": {"name": "look", "description": "Look out.", "parameters": {}}}]


@dataclass
class Model:
    """A tokenizer, its template, and the message format of the template."""

    tokenizer: Any
    stops: tuple[str, ...] = ()

    @classmethod
    def of(cls, template: str, *tokens: str, stops: Sequence[str] = (), eos: str = "<|im_end|>") -> Model:
        made = copy.deepcopy(qwen(template))
        tags = [
            AddedToken(tag, special=False, normalized=False)
            for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>")
        ]
        made.add_tokens([special(token) for token in (*tokens, "<s>", "</s>")], special_tokens=True)
        made.add_tokens(tags)
        made.eos_token = eos
        made.chat_template = template
        return cls(made, tuple(stops))

    def renderer(self, **options: Any) -> Renderer:
        stops = tuple(self.tokenizer.convert_tokens_to_ids(list(self.stops)))
        return Renderer(self.tokenizer, name="tiny", loaded=LoadedTokenizer(self.tokenizer, stops=stops), **options)

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def text(self, messages: list[Any], **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


QWEN3_LIKE = Model.of(QWEN3_TOOLS)
HARMONY_LIKE = Model.of(
    HARMONY, *("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>"), eos="<|return|>"
)
MISTRAL_LIKE = Model.of(
    MISTRAL_TOOLS,
    *(
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
    ),
    eos="</s>",
)
MISTRAL_LIKE.tokenizer.bos_token = "<s>"
DEEPSEEK_LIKE = Model.of(
    DEEPSEEK,
    *("<|User|>", "<|Assistant|>", "<|call_begin|>", "<|call_end|>", "<|output|>", "<|output_end|>"),
    eos="</s>",
)
DEEPSEEK_LIKE.tokenizer.bos_token = "<s>"
GLM_LIKE = Model.of(
    GLM_XML,
    *("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
    stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
    eos="<|endoftext|>",
)


def rendered(
    renderer: Renderer, prompt: list[Message], completion: list[Message], settings: PromptSettings | None = None
) -> Rendered:
    canonical = dump_prompt(prompt, settings or PromptSettings())
    [one] = renderer.render([(canonical, dump_completion(completion))])
    assert len(one.completion_ids) == len(one.byte_ends)
    assert one.byte_ends[-1] == len(completion_text(dump_completion(completion)).encode())
    assert (np.diff(one.byte_ends) >= 0).all()
    return one


def wrapped(message: Message, *, ids: bool = True, text: str | None = None, content: object = "") -> dict[str, Any]:
    """A call in OpenAI's format."""
    calls = []
    for call in message["tool_calls"]:
        function = {"name": call["name"], "arguments": call["arguments"] if text is None else text}
        calls.append({"type": "function", **({"id": call["id"]} if ids else {}), "function": function})
    return {"role": "assistant", "content": message["content"] or content, "tool_calls": calls}


@pytest.mark.parametrize(
    ("completion", "theirs"),
    [
        ([THOUGHT], [THOUGHT]),
        ([CALL, RESULT, THOUGHT], [wrapped(CALL), RESULT, THOUGHT]),
        ([CALL], [wrapped(CALL)]),
        ([{**CALL, "reasoning_content": "Look first."}], [{**wrapped(CALL), "reasoning_content": "Look first."}]),
        ([{**CALL, "content": "Wait."}], [wrapped({**CALL, "content": "Wait."})]),
        ([{"role": "assistant", "content": "", "reasoning_content": "Only a thought"}],) * 2,
        (
            [{**CALL, "content": "<think>\nTags.\n</think>\n\nWait."}],
            [wrapped({**CALL, "content": "<think>\nTags.\n</think>\n\nWait."})],
        ),
    ],
)
def test_the_text_after_the_generation_prompt_is_scored_as_in_trl(completion: list[Message], theirs: list[Any]) -> None:
    """The same row tokenized by the installed TRL's DPO trainer."""
    from trl.data_utils import _tokenize, common_prefix_length

    model = QWEN3_LIKE
    for tools, arguments in ((None, {}), (TOOLS_PLAIN, {}), (TOOLS_PLAIN, {"enable_thinking": True})):
        options = {"tools": tools, **arguments}
        prompt_ids = _tokenize(model.tokenizer, [USER], add_generation_prompt=True, **options)["input_ids"]
        full = _tokenize(model.tokenizer, [USER, *theirs], **options)["input_ids"]
        split = common_prefix_length(prompt_ids, full)
        assert split == len(prompt_ids)
        renderer = model.renderer()
        one = rendered(renderer, [USER], completion, PromptSettings(tools, arguments or None))
        assert one.prompt_ids.tolist() == prompt_ids
        # The line break after the end of the turn is not part of it.
        assert one.completion_ids.tolist() == full[split : max(i for i, t in enumerate(full) if t == model.end) + 1]
        assert (one.scored is None) == (len(completion) == 1)
        assert renderer.check.counts == {"exact": 1}


def test_the_assistants_parts_of_several_messages_are_scored_and_the_results_are_not() -> None:
    model = QWEN3_LIKE
    one = rendered(model.renderer(), [USER], [CALL, RESULT, THOUGHT])
    theirs = [USER, wrapped(CALL), RESULT, THOUGHT]
    kept = model.text([USER], add_generation_prompt=True)
    full = model.text(theirs)
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(full.removesuffix("\n"))
    assert one.prompt_ids.tolist() == model.ids(kept)
    assert one.scored is not None
    first, last = (
        model.tokenizer.decode(part) for part in np.split(one.completion_ids[one.scored], [one.scored.argmin()])
    )
    assert first + "\n" == model.text(theirs[:2])[len(model.text([USER])) :].removeprefix(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert last == full[len(model.text(theirs[:3], add_generation_prompt=True)) :].removesuffix("\n")


def test_bytes_of_calls_end_together_and_a_cut_never_falls_into_one() -> None:
    completion = dump_completion([{**CALL, "content": "Wait.", "reasoning_content": "Look first."}, RESULT, ANSWER])
    [one] = QWEN3_LIKE.renderer().render([(dump_prompt([USER]), completion)])
    text = completion_text(completion)
    assert one.scored is not None
    calls = (len("Look first.Wait."), len(text) + len("ü".encode()) - 1 - len("It is fine."))
    inside = {int(end) for end in one.byte_ends if calls[0] < end < calls[1]}
    assert not inside
    assert set(one.byte_ends[~one.scored].tolist()) == {calls[1]}
    for budget in range(1, len(one.byte_ends)):
        cut = cut_offset(one, completion, budget)
        assert cut is not None
        assert not calls[0] < cut < calls[1]
        assert tokens_counted(one.byte_ends, True, cut) <= budget or cut == 0  # a side that is empty is left out


def test_harmony_channels_follow_the_generation_prompt() -> None:
    model, renderer = HARMONY_LIKE, HARMONY_LIKE.renderer()
    one = rendered(renderer, [USER], [THOUGHT])
    thinking = {"role": "assistant", "content": "It is fine.", "thinking": THOUGHT["reasoning_content"]}
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(model.text([USER, thinking]))
    assert model.tokenizer.decode(one.completion_ids).startswith("<|channel|>analysis<|message|>")
    called = {**CALL, "reasoning_content": "Look first."}
    one = rendered(renderer, [USER], [called])
    assert model.tokenizer.decode(one.completion_ids[-1:]) == "<|call|>"
    # The complete text drops its reasoning when an answer follows, but the generation prompt keeps it.
    one = rendered(renderer, [USER], [called, RESULT, THOUGHT])
    before = [USER, {**wrapped(called), "thinking": "Look first."}, RESULT]
    asked = model.text(before, add_generation_prompt=True)
    answer = model.text([*before, thinking]).split("<|start|>assistant")[-2:]
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(asked + "<|start|>assistant".join(answer))
    assert one.scored is not None
    assert model.tokenizer.decode(one.completion_ids[one.scored]).count("<|call|>") == 1
    two = {**CALL, "tool_calls": [*CALL["tool_calls"], {"name": "other", "arguments": {}, "id": "call_2"}]}
    with pytest.raises(UserError, match="tiny does not support tool calls"):
        rendered(renderer, [USER], [two])


def test_a_prompt_keeps_the_reasoning_of_its_generation_prompt() -> None:
    model = HARMONY_LIKE
    called = {**CALL, "reasoning_content": "Look first."}
    renderer = model.renderer()
    one = rendered(renderer, [USER, called, RESULT], [ANSWER])
    asked = model.text([USER, {**wrapped(called), "thinking": "Look first."}, RESULT], add_generation_prompt=True)
    assert one.prompt_ids.tolist() == model.ids(asked + "<|channel|>final<|message|>")
    assert rendered(renderer, [USER, called, RESULT], [THOUGHT]).prompt_ids.tolist() == model.ids(asked)


def test_ids_of_nine_characters_are_made_if_the_template_needs_them() -> None:
    model = MISTRAL_LIKE
    made = wrapped(CALL)
    made["tool_calls"][0]["id"] = nine_characters("call_1")
    result = {**RESULT, "tool_call_id": nine_characters("call_1")}
    one = rendered(model.renderer(), [USER], [CALL, RESULT, ANSWER])
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(model.text([USER, made, result, ANSWER]))
    unnamed = {**CALL, "tool_calls": [{"name": "look", "arguments": {}}]}
    assert rendered(model.renderer(), [USER], [unnamed, {"role": "tool", "content": "fine"}, ANSWER]).scored is not None


def test_arguments_become_text_and_content_none_if_the_template_needs_it() -> None:
    import json

    model = DEEPSEEK_LIKE
    text = json.dumps(ARGUMENTS, ensure_ascii=False)
    one = rendered(model.renderer(), [USER, CALL, RESULT], [CALL])
    theirs = wrapped(CALL, text=text)
    theirs["content"] = None
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(model.text([USER, theirs, RESULT, theirs]))
    with pytest.raises(UserError, match="tiny does not support tool calls"):
        rendered(model.renderer(), [USER], [{**CALL, "content": "Wait."}])
    with pytest.raises(UserError, match="tiny does not support reasoning"):
        rendered(model.renderer(), [USER], [THOUGHT])


def test_the_header_of_a_result_ends_a_call_if_it_is_a_stop_token() -> None:
    model, renderer = GLM_LIKE, GLM_LIKE.renderer()
    one = rendered(renderer, [USER], [{**CALL, "reasoning_content": "Look."}])
    theirs = {**wrapped(CALL), "reasoning_content": "Look."}
    observation, user = model.tokenizer.convert_tokens_to_ids(["<|observation|>", "<|user|>"])
    assert [*one.prompt_ids, *one.completion_ids] == [*model.ids(model.text([USER, theirs])), observation]
    one = rendered(renderer, [USER], [CALL, RESULT, ANSWER])
    assert one.scored is not None
    scored = one.completion_ids[one.scored].tolist()
    assert observation in scored
    assert scored[-1] == user
    assert [*one.prompt_ids, *one.completion_ids] == [
        *model.ids(model.text([USER, wrapped(CALL), RESULT, ANSWER])),
        user,
    ]


def test_a_result_is_not_scored_if_the_next_header_is_always_written() -> None:
    tokens = ["ACTION", "/ACTION", "RESPONSE", "/RESPONSE", "START", "END", "BOT", "THINK", "USER", "TOOL"]
    model = Model.of(RESPONSE_TOOLS, *(f"<|{token}|>" for token in tokens), eos="<|/RESPONSE|>")
    other: Message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "other", "arguments": {}, "id": "call_2"}],
    }
    second: Message = {"role": "tool", "content": "later", "tool_call_id": "call_2"}
    messages = [CALL, RESULT, other, second, ANSWER]
    one = rendered(model.renderer(), [USER], messages)
    assert one.scored is not None
    text = model.text([USER, wrapped(CALL), RESULT, wrapped(other), second, ANSWER])
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(text.removesuffix("<|END|>"))
    edges = np.flatnonzero(np.diff(one.scored)) + 1
    runs = [model.tokenizer.decode(run) for run in np.split(one.completion_ids, edges)]
    assert runs[1] == '<|START|><|TOOL|>{"t": 21}\nfine<|END|><|START|><|BOT|><|THINK|>'
    assert runs[2:] == [
        "<|ACTION|>other{}<|/ACTION|><|END|>",
        "<|START|><|TOOL|>later<|END|><|START|><|BOT|><|THINK|>",
        "<|RESPONSE|>It is fine.<|/RESPONSE|>",
    ]


def test_calls_written_before_the_content_are_refused() -> None:
    calls = QWEN3_TOOLS[
        QWEN3_TOOLS.index("{%- for call in m.tool_calls") : QWEN3_TOOLS.index(
            "{{- '<|im_end|>\\n' }}{%- elif m.role == 'tool'"
        )
    ]
    template = QWEN3_TOOLS.replace(calls, "").replace(
        "{%- if m.role == 'assistant' %}", "{%- if m.role == 'assistant' %}" + calls
    )
    with pytest.raises(UserError, match="tiny does not support the order"):
        rendered(Model.of(template).renderer(), [USER], [{**CALL, "content": "Wait."}])


def test_calls_written_by_id_and_reasoning_kept_before_calls_only() -> None:
    model = Model.of(KIMI, "<|call|>", "<|arguments|>", "<|call_end|>")
    renderer = model.renderer()
    thinking = {**CALL, "reasoning_content": "Look first."}
    theirs = {**wrapped(CALL), "reasoning_content": "Look first."}
    theirs["tool_calls"][0]["id"] = "functions.look:0"
    one = rendered(renderer, [USER], [thinking])
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(model.text([USER, theirs]))
    assert "functions.look:0" in model.tokenizer.decode(one.completion_ids)
    # Its generation prompt keeps the reasoning that the complete text drops when an answer follows.
    one = rendered(renderer, [USER], [thinking, RESULT, ANSWER])
    before = [USER, theirs, {**RESULT, "tool_call_id": "functions.look:0"}]
    asked = model.text(before, add_generation_prompt=True)
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(asked + "<think></think>It is fine.<|im_end|>")
    with pytest.raises(UserError, match="tiny does not support reasoning"):
        rendered(renderer, [USER], [THOUGHT])


@pytest.mark.parametrize("listed", [False, True])
def test_reasoning_as_parts_of_the_content(listed: bool) -> None:
    template = MAGISTRAL.replace("part.thinking", "part.thinking[0].text") if listed else MAGISTRAL
    model = Model.of(template, "[INST]", "[/INST]", "[THINK]", "[/THINK]", eos="</s>")
    model.tokenizer.bos_token = "<s>"
    one = rendered(model.renderer(), [USER], [THOUGHT])
    thought = THOUGHT["reasoning_content"]
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": thought}] if listed else thought}]
    theirs = {"role": "assistant", "content": [*parts, {"type": "text", "text": "It is fine."}]}
    assert [*one.prompt_ids, *one.completion_ids] == model.ids(model.text([USER, theirs]))
    assert model.tokenizer.decode(one.completion_ids).startswith("[THINK]")


@pytest.mark.parametrize(
    ("prompt", "completion", "settings", "what"),
    [
        ([USER], [THOUGHT], PromptSettings(), "reasoning"),
        ([USER], [CALL], PromptSettings(), "tool calls"),
        ([USER, CALL, RESULT], [ANSWER], PromptSettings(), "tool calls"),
        ([USER], [ANSWER], PromptSettings(TOOLS), "tools"),
    ],
)
def test_unsupported_contents_are_errors_that_name_the_template(
    prompt: list[Message], completion: list[Message], settings: PromptSettings, what: str
) -> None:
    with pytest.raises(UserError, match=f"tiny does not support {what}, which the row contains"):
        rendered(Renderer(llama2(LLAMA2), name="tiny"), prompt, completion, settings)


@pytest.mark.parametrize("where", ["content", "reasoning", "argument", "key", "result", "tool"])
def test_control_strings_are_text_everywhere(where: str) -> None:
    nasty = "a <|im_end|> b"
    call = {"name": "look", "arguments": {nasty if where == "key" else "q": [nasty if where == "argument" else "x"]}}
    message = {
        "role": "assistant",
        "content": nasty if where == "content" else "y",
        "reasoning_content": nasty if where == "reasoning" else "z",
        "tool_calls": [call],
    }
    result = {"role": "tool", "content": nasty if where == "result" else "r"}
    settings = PromptSettings(TOOLS if where == "tool" else None)
    one = rendered(QWEN3_LIKE.renderer(), [USER], [message, result, ANSWER], settings)
    ids = [*one.prompt_ids, *one.completion_ids]
    assert "a <|im_end|> b" in QWEN3_LIKE.tokenizer.decode(ids) or "Look <|im_end|> out" in QWEN3_LIKE.tokenizer.decode(
        ids
    )
    ends = sum(int(i) == QWEN3_LIKE.tokenizer.eos_token_id for i in ids)
    assert ends == 4 + (where == "tool")


@pytest.mark.parametrize("earlier", [False, True])
def test_a_control_string_that_would_be_escaped_is_an_error(earlier: bool) -> None:
    model = Model.of(QWEN3_TOOLS.replace("call.arguments | tojson", "call.arguments | tojson(ensure_ascii=True)"))
    nasty: Message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "look", "arguments": {"q": "a <|im_end|>"}}],
    }
    prompt, completion = ([USER, nasty, {"role": "tool", "content": "r"}], [ANSWER]) if earlier else ([USER], [nasty])
    with pytest.raises(UserError, match="escapes non-ASCII"):
        rendered(model.renderer(), prompt, completion)


def test_template_arguments_of_the_model_and_of_the_row() -> None:
    model = QWEN3_LIKE
    off = model.renderer(template_kwargs={"enable_thinking": False, "other": 1})
    assert any("does not use this argument: other" in notice for notice in off.notices)
    plain = model.renderer()
    assert off.identity() != plain.identity()
    assert model.renderer(template_kwargs={"other": 1}).identity() == plain.identity()
    assert model.renderer(template_kwargs={}).identity() == plain.identity()
    asked = model.ids(model.text([USER], add_generation_prompt=True, enable_thinking=False))
    row = PromptSettings(template_kwargs={"enable_thinking": False})
    prompts = [dump_prompt([USER]), dump_prompt([USER], row)]
    one = rendered(off, [USER], [CALL])
    assert one.prompt_ids.tolist() == asked
    on, by_row = plain.render([(prompt, dump_completion([CALL])) for prompt in prompts])
    assert by_row.prompt_ids.tolist() == asked
    assert on.prompt_ids.tolist() == model.ids(model.text([USER], add_generation_prompt=True))
    back = rendered(off, [USER], [CALL], PromptSettings(template_kwargs={"enable_thinking": True}))
    assert back.prompt_ids.tolist() == on.prompt_ids.tolist()
    with pytest.raises(UserError, match="'tools', which rendering itself decides"):
        rendered(plain, [USER], [ANSWER], PromptSettings(template_kwargs={"tools": []}))
    with pytest.raises(UserError, match="'eos_token'"):
        model.renderer(template_kwargs={"eos_token": "x"})


def test_a_cut_prompt_keeps_tools_arguments_and_calls_with_their_results() -> None:
    renderer = QWEN3_LIKE.renderer()
    settings = PromptSettings([{"type": "function", "function": {"name": "look"}}], {"enable_thinking": False})
    long = {"role": "user", "content": "An old question. " * 40}
    prompt = dump_prompt([long, ANSWER, {**USER, "content": "x " * 200}, CALL, RESULT], settings)
    room = renderer.prompt_lengths([dump_prompt([{**USER, "content": "x " * 20}, CALL, RESULT], settings)])[0]
    cut = cut_prompt(renderer, prompt, room)
    assert cut is not None
    kept = dump_prompt([{**USER, "content": "x "}, CALL, RESULT], settings)
    assert cut.endswith(kept[kept.index('"},{"role":"assistant"') :])
    assert "An old question" not in cut
    assert renderer.prompt_lengths([cut])[0] <= room


def test_the_token_view_labels_text_calls_scaffold_and_context() -> None:
    completion = dump_completion([{**CALL, "reasoning_content": "Look first."}, RESULT, ANSWER])
    lines = view(QWEN3_LIKE.renderer(), dump_prompt([USER]), [("chosen", completion, None)])
    titles = [line.split(" (")[0].strip() for line in lines if not line.startswith("    ")]
    assert titles == [
        "prompt, not scored",
        "chosen, scored, written by the template",
        "chosen, scored, reasoning",
        "chosen, scored, tool calls",
        "chosen, context, not scored",
        "chosen, scored, written by the template",
        "chosen, scored, content",
        "chosen, scored, written by the template",
    ]


def test_a_python_repr_of_parts_is_not_support_for_reasoning() -> None:
    with pytest.raises(UserError, match="tiny does not support reasoning"):
        rendered(Renderer(llama3(LLAMA3), name="tiny"), [USER], [{**THOUGHT, "reasoning_content": "one line"}])


def test_earlier_reasoning_is_dropped_if_the_template_does_not_support_it() -> None:
    renderer = Renderer(llama2(LLAMA2), name="tiny")
    second = {"role": "user", "content": "And now?"}
    with_it, without = (dump_prompt([USER, answer, second]) for answer in (THOUGHT, ANSWER))
    one, other = renderer.render([(with_it, "fine"), (without, "fine")])
    assert one.prompt_ids.tolist() == other.prompt_ids.tolist()
