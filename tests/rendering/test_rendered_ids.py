"""Rendered ids equal those of the model's own tokenizer on the complete conversation, split at the content."""

import copy
import unicodedata
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering_cases import KINDS, TEXTS, TRIMMING, TURN_ENDS, VICUNA, chat, plain_text, templated_kinds, user
from tiny_tokenizers import CHATML, LLAMA2, LLAMA3, QWEN3, TEXT, gemma, gpt2, llama2, llama3, mistral, qwen, t5

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import dump_prompt
from mrpo_pipeline.rendering import PLAIN_TEMPLATE, Rendered, Renderer


@lru_cache
def renderer(kind: str) -> Renderer:
    return Renderer(KINDS[kind](), name=kind)


def render(tokenizer: Any, prompt: str, completion: str, **options: str) -> Rendered:
    return Renderer(tokenizer, **options).render([(prompt, completion)])[0]


def tokens(tokenizer: Any, ids: Any) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids.tolist())


def whole(kind: str, prompt: str, completion: str) -> tuple[list[int], list[tuple[int, int]], str, int]:
    """The original tokenizer on the full rendering: ids, offsets, text, and where the content starts."""
    tokenizer = KINDS[kind]()
    messages = [*user(prompt), {"role": "assistant", "content": completion}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=lambda _: "26 Jul 2024")
    content = completion.strip() if tokenizer.chat_template in TRIMMING else completion
    end = text.rindex(TURN_ENDS[tokenizer.chat_template])
    assert text[end - len(content) : end] == content
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets, text, end - len(content)


def assert_ids(kind: str, prompt: str, completion: str) -> None:
    """Compare with the original tokenizer: in one piece, or split at the boundary."""
    tokenizer = KINDS[kind]()
    ids, offsets, text, boundary = whole(kind, prompt, completion)
    got = renderer(kind).render([(chat(prompt), completion)])[0]
    end = TURN_ENDS[tokenizer.chat_template].strip()
    assert tokens(tokenizer, got.completion_ids)[-1] == end
    together = [*got.prompt_ids.tolist(), *got.completion_ids.tolist()]
    first = text[boundary : boundary + 1]
    mark = bool(first) and unicodedata.combining(first) > 0
    straddle = mark or any(start < boundary < stop for start, stop in offsets)
    if not straddle or tokenizer.chat_template == LLAMA2:
        assert together == ids[: len(together)]
    else:
        assert got.prompt_ids.tolist() == tokenizer(text[:boundary], add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", templated_kinds())
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_original_tokenizer_on_the_whole_conversation(kind: str, text: str) -> None:
    assert_ids(kind, TEXTS[1], text)
    assert_ids(kind, text, TEXTS[1])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(templated_kinds()), plain_text, plain_text)
def test_ids_are_those_of_the_original_tokenizer_on_any_text(kind: str, prompt: str, completion: str) -> None:
    assert_ids(kind, prompt, completion)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen"])
@settings(max_examples=40, deadline=None)
@given(prompt=plain_text, completion=plain_text)
def test_byte_level_tokens_are_the_bytes_of_the_content(kind: str, prompt: str, completion: str) -> None:
    tokenizer = KINDS[kind]()
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    got = renderer(kind).render([(chat(prompt), completion)])[0]
    read = bytes(byte_of[char] for token in tokens(tokenizer, got.completion_ids[:-1]) for char in token)
    content = completion.strip() if kind == "llama3" else completion
    assert read == (unicodedata.normalize("NFC", content) if kind == "qwen" else content).encode()


def test_end_of_turn_is_kept_and_the_newline_after_it_is_not() -> None:
    got = render(qwen(), chat("hi"), "fine")
    assert tokens(qwen(), got.completion_ids) == ["f", "in", "e", "<|im_end|>"]
    assert tokens(qwen(), got.prompt_ids)[-5:] == ["<|im_start|>", "a", "s", "sist", "ant", "Ċ"][-5:]


def test_text_between_content_and_end_of_turn_is_kept() -> None:
    got = render(llama2(), chat("hi"), "fine ")
    assert tokens(llama2(), got.completion_ids) == ["▁fin", "e", "▁", "</s>"]
    assert got.byte_ends.tolist() == [3, 5, 5, 5]


def test_the_space_before_the_first_word_is_in_its_token() -> None:
    """Llama-2 continues after `[/INST]`: the template's space before the answer belongs to the answer, as in TRL."""
    got = render(llama2(), chat("hi"), "fine")
    given_prompt = llama2().apply_chat_template(user("hi"), add_generation_prompt=True)["input_ids"]
    assert got.prompt_ids.tolist() == given_prompt
    assert got.byte_ends.tolist() == [3, 4, 4, 4]


@pytest.mark.parametrize("kind", templated_kinds())
@pytest.mark.parametrize("completion", ["fine", "1. fine", "日本", '"fine"', "🎉 fine", "é", "½"])
def test_prompts_are_split_where_trl_splits_them(kind: str, completion: str) -> None:
    """TRL 1.16 (`DPOTrainer._prepare_dataset`): common prefix of the prompt's ids and those of the conversation."""
    tokenizer = KINDS[kind]()
    options = {"strftime_now": lambda _: "26 Jul 2024"}
    prompt = tokenizer.apply_chat_template(user("How are you?"), add_generation_prompt=True, **options)["input_ids"]
    messages = [*user("How are you?"), {"role": "assistant", "content": completion}]
    full = tokenizer.apply_chat_template(messages, **options)["input_ids"]
    parted = next(i for i in range(len(prompt) + 1) if i == len(prompt) or prompt[i] != full[i])
    got = renderer(kind).render([(chat("How are you?"), completion)])[0]
    assert got.prompt_ids.tolist() == full[:parted]
    # TRL also scores the template's output after the end of the turn.
    assert got.completion_ids.tolist() == full[parted : parted + len(got.completion_ids)]


def test_the_space_of_a_vicuna_template_belongs_to_the_answer() -> None:
    tokenizer = gpt2(VICUNA)
    got = render(tokenizer, chat("hi"), "fine")
    assert tokens(tokenizer, got.completion_ids) == ["Ġfine", "<|endoftext|>"]
    assert tokens(tokenizer, got.prompt_ids)[-1] == ":"


def test_a_space_that_ends_the_generation_prompt_stays_in_the_prompt() -> None:
    tokenizer = gpt2(VICUNA.replace("'ASSISTANT:' }}", "'ASSISTANT: ' }}"))
    got = render(tokenizer, chat("hi"), "fine")
    assert tokens(tokenizer, got.prompt_ids)[-1] == "Ġ"
    assert tokens(tokenizer, got.completion_ids) == ["f", "in", "e", "<|endoftext|>"]


def test_newlines_first_in_the_content_do_not_join_the_templates_newline() -> None:
    contiguous = qwen()("assistant\n\n\nfine")["input_ids"]
    assert "ĊĊĊ" in qwen().convert_ids_to_tokens(contiguous)
    got = render(qwen(), chat("hi"), "\n\nfine")
    assert tokens(qwen(), got.prompt_ids)[-1] == "Ċ"
    assert tokens(qwen(), got.completion_ids)[0] == "ĊĊ"


def test_a_mark_first_in_the_content_is_not_composed_into_the_prompt() -> None:
    got = render(qwen(), dump_prompt("e"), "\u0301x")
    assert qwen().decode(got.prompt_ids) == "e"
    assert qwen().decode(got.completion_ids[:-1]) == "\u0301x"


def test_white_space_that_a_control_token_would_swallow_is_kept() -> None:
    tokenizer = copy.deepcopy(KINDS["phi3"]())
    tokenizer.chat_template = tokenizer.chat_template.replace("'|>\\n'", "'|>'")
    got = render(tokenizer, chat("hi"), "  fine")
    assert tokens(tokenizer, got.prompt_ids)[-1] == "<|assistant|>"
    assert tokens(tokenizer, got.completion_ids) == ["▁", "▁fin", "e", "<|end|>"]


@pytest.mark.parametrize("kind", ["llama2", "metaspace_always", "prefixed_gpt2", "t5"])
@pytest.mark.parametrize("content", ["bar", "\nfoo", ".x", "日本", " b"])
def test_no_space_is_invented_at_a_boundary_in_a_word(kind: str, content: str) -> None:
    """These prepend a space to every section of text, so a plain split would add one."""
    tokenizer = KINDS[kind]()
    got = render(tokenizer, dump_prompt("foo"), content)
    # Control: after a control token, the same text does get a space.
    text = "".join(tokens(tokenizer, got.completion_ids[:-1]))
    assert not text.startswith(("▁", "Ġ")) or content.startswith(" ")
    assert got.prompt_ids[-1] == tokenizer("foo", add_special_tokens=False)["input_ids"][-1]


def test_raw_text_is_bos_prompt_completion_and_end() -> None:
    got = render(llama3(), dump_prompt("Q: how?\nA:"), " fine")
    expected = llama3()("Q: how?\nA: fine")["input_ids"]
    assert [*got.prompt_ids, *got.completion_ids] == [*expected, llama3().eos_token_id]
    assert got.prompt_ids.tolist() == llama3()("Q: how?\nA:")["input_ids"]


def test_raw_text_is_not_put_into_a_template() -> None:
    got = render(qwen(), dump_prompt("Q: "), "日本")
    assert qwen().decode(got.prompt_ids) == "Q: "


def test_an_empty_raw_prompt_has_one_token_of_context() -> None:
    assert tokens(gpt2(), render(gpt2(), dump_prompt(""), "fine").prompt_ids) == ["<|endoftext|>"]
    assert tokens(llama3(), render(llama3(), dump_prompt(""), "fine").prompt_ids) == ["<|begin_of_text|>"]
    assert Renderer(gpt2()).prompt_lengths([dump_prompt("")]) == [1]


@pytest.mark.parametrize("template", [LLAMA3, LLAMA3.replace("{{- bos_token }}", "")])
def test_bos_occurs_exactly_once(template: str) -> None:
    got = render(llama3(template), chat("hi"), "fine")
    assert tokens(llama3(), got.prompt_ids).count("<|begin_of_text|>") == 1
    assert tokens(llama3(), got.prompt_ids)[0] == "<|begin_of_text|>"


def test_bos_in_the_data_is_text() -> None:
    got = render(llama3(), dump_prompt("<|begin_of_text|>hi"), "fine")
    assert tokens(llama3(), got.prompt_ids)[:2] == ["<|begin_of_text|>", "<"]


def test_a_tokenizer_that_adds_eos_gets_one_end() -> None:
    got = render(t5(), chat("hi"), "fine")
    assert tokens(t5(), got.completion_ids).count("</s>") == 1
    assert "</s>" not in tokens(t5(), got.prompt_ids)


def test_without_a_template_the_plain_one_is_used() -> None:
    got = render(gpt2(), chat("hi", "yes", "and?"), "fine")
    text = gpt2().decode(got.prompt_ids)
    assert text == "User:\nhi\n\nAssistant:\nyes<|endoftext|>\n\nUser:\nand?\n\nAssistant:\n"
    system = dump_prompt([{"role": "system", "content": "Be brief."}, *user("hi")])
    assert gpt2().decode(render(gpt2(), system, "fine").prompt_ids) == "Be brief.\n\nUser:\nhi\n\nAssistant:\n"
    forced = render(qwen(), chat("hi"), "fine", template="plain")
    assert qwen().decode(forced.prompt_ids) == "User:\nhi\n\nAssistant:\n"
    assert tokens(qwen(), forced.completion_ids)[-1] == "<|im_end|>"


def test_a_template_file_is_read_and_a_missing_one_is_named(tmp_path: Any) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(CHATML.replace("<|im_start|>", "## "), encoding="utf-8")
    assert qwen().decode(render(qwen(), chat("hi"), "x", template=str(path)).prompt_ids).startswith("## user\nhi")
    with pytest.raises(UserError, match=r"missing\.jinja"):
        Renderer(qwen(), template=str(tmp_path / "missing.jinja"))


def test_a_template_without_an_end_uses_the_tokenizers_eos() -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n\\n' }}{% endfor %}"
    got = render(gpt2(template), chat("hi"), "fine.")
    assert tokens(gpt2(), got.completion_ids)[-2:] == [".", "<|endoftext|>"]
    nameless = copy.deepcopy(gpt2(template))
    nameless.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        Renderer(nameless)


def test_slow_tokenizers_are_errors() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match=r"Slow.*fast"):
        Renderer(Slow(), name="old")


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_batch_gives_what_single_calls_give(kind: str) -> None:
    items = [(chat(TEXTS[i % 3]), TEXTS[i % len(TEXTS)]) for i in range(300)]
    fresh = Renderer(KINDS[kind]())
    for one, item in zip(renderer(kind).render(items)[240:], items[240:], strict=True):
        [alone] = fresh.render([item])
        assert one.prompt_ids.tolist() == alone.prompt_ids.tolist()
        assert one.completion_ids.tolist() == alone.completion_ids.tolist()
        assert one.byte_ends.tolist() == alone.byte_ends.tolist()


@pytest.mark.parametrize("kind", list(KINDS))
def test_prompt_lengths_are_those_of_the_rendered_prompts(kind: str) -> None:
    prompts = [chat(text) for text in TEXTS] + [dump_prompt(text.rstrip()) for text in TEXTS]
    rendered = renderer(kind).render([(prompt, "日") for prompt in prompts])
    assert renderer(kind).prompt_lengths(prompts) == [len(one.prompt_ids) for one in rendered]


def test_rendering_twice_gives_the_same() -> None:
    long = " ".join(TEXT)
    for make in (gemma, mistral, qwen):
        first, second = (render(make(), chat(long), long) for _ in range(2))
        assert first.completion_ids.tolist() == second.completion_ids.tolist()


def test_the_plain_template_is_public() -> None:
    assert "Assistant:\\n" in PLAIN_TEMPLATE
    assert QWEN3 != PLAIN_TEMPLATE
