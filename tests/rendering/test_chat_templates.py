"""A completion is located in the full rendering of any template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering_cases import chat, plain_text, user
from tiny_tokenizers import CHATML, GEMMA, LLAMA2, LLAMA3, MISTRAL, QWEN3, gemma, gpt2, llama3, mistral, qwen

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import dump_prompt
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.rendering.chat_template import ChatTemplate
from mrpo_pipeline.rendering.content_location import Frame


def located(template: str, prompt: str, completion: str) -> tuple[str, str, str, int]:
    made = ChatTemplate(qwen(template), "auto", "tiny")
    messages = user(prompt)
    found = made.locate(messages, completion, made.frame(messages))
    return found.prefix, found.content, found.suffix, found.start


CHATML_HEAD = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_unchanged_content_is_located() -> None:
    assert located(CHATML, "hi", " fine\n") == (CHATML_HEAD, " fine\n", "<|im_end|>\n", 0)


def test_trimmed_content_has_its_start_index() -> None:
    template = CHATML.replace("m['content']", "m['content'] | trim")
    assert located(template, "hi", " \n fine \n") == (CHATML_HEAD, "fine", "<|im_end|>\n", 3)
    assert located(template, "hi", " \n ") == (CHATML_HEAD, "", "<|im_end|>\n", 0)
    left = CHATML.replace("m['content']", "m['content'].lstrip()")
    assert located(left, "hi", " \n fine \n") == (CHATML_HEAD, "fine \n", "<|im_end|>\n", 3)
    lines = CHATML.replace("m['content']", "m['content'].strip('\\n')")
    assert located(lines, "hi", "\n\n fine \n") == (CHATML_HEAD, " fine ", "<|im_end|>\n", 2)


@settings(max_examples=100, deadline=None)
@given(plain_text, st.sampled_from(["m['content']", "m['content'] | trim", "m['content'].rstrip()"]))
def test_the_located_content_is_in_the_completion_and_the_rendering(completion: str, way: str) -> None:
    template = CHATML.replace("m['content']", way)
    prefix, content, suffix, start = located(template, "hi", completion)
    assert completion[start : start + len(content)] == content
    assert content.strip() == completion.strip()
    messages = [*user("hi"), {"role": "assistant", "content": completion}]
    assert prefix + content + suffix == qwen(template).apply_chat_template(messages, tokenize=False)


def test_a_completion_that_repeats_the_prompt_or_the_template_is_found_at_the_end() -> None:
    for completion in ("hi", "assistant", "assistant\nhi", "user\nhi"):
        assert located(CHATML, "hi", completion)[:2] == (CHATML_HEAD, completion)
    assert located(CHATML, "qZanswerX7", "x")[0] == CHATML_HEAD.replace("hi", "qZanswerX7")


def test_an_empty_think_block_belongs_to_the_prompt() -> None:
    head = CHATML_HEAD + "<think>\n\n</think>\n\n"
    assert located(QWEN3, "hi", "fine") == (head, "fine", "<|im_end|>\n", 0)
    generation = qwen(QWEN3).apply_chat_template(user("hi"), tokenize=False, add_generation_prompt=True)
    assert generation != head


def test_a_completion_with_its_own_think_block_is_content_from_the_block_on() -> None:
    completion = "<think>\nhm\n</think>\n\nfine"
    assert located(QWEN3, "hi", completion) == (CHATML_HEAD, completion, "<|im_end|>\n", 0)


def test_a_rewritten_completion_is_an_error_that_names_the_template() -> None:
    with pytest.raises(UserError, match=r"chat template of tiny.*fine</think>no"):
        located(QWEN3, "hi", "fine</think>no")
    made = ChatTemplate(qwen(CHATML.replace("+ m['content'] +", "+ m['content'].replace('!', '.') +")), "auto", "tiny")
    assert made.locate(user("hi"), "fine", made.frame(user("hi"))).content == "fine"
    with pytest.raises(UserError, match="changes the completion"):
        made.locate(user("hi"), "fine!", made.frame(user("hi")))


def test_a_template_that_writes_the_answer_twice_or_never_is_an_error() -> None:
    for template, times in (("{{ messages[0]['content'] }}", 0), (CHATML + CHATML, 2)):
        with pytest.raises(UserError, match=f"{times} times"):
            ChatTemplate(qwen(template), "auto", "tiny")


def test_the_templates_own_error_is_reported() -> None:
    renderer = Renderer(mistral(MISTRAL), name="mist")
    prompt = dump_prompt([*user("a"), *user("b")])
    with pytest.raises(UserError, match=r"mist.*roles must alternate"):
        renderer.render([(prompt, "x")])


def test_a_broken_template_is_a_user_error() -> None:
    for template in ("{{ messages[0]['content'] + 1 }}", "{% for %}", "{{ nothing.at.all }}"):
        with pytest.raises(UserError, match="tiny"):
            ChatTemplate(qwen(template), "auto", "tiny")


@pytest.mark.parametrize(("make", "template"), [(gemma, GEMMA), (mistral, MISTRAL)])
def test_a_rejected_system_message_is_merged_into_the_first_user_message(make: object, template: str) -> None:
    renderer = Renderer(make(template), name="tiny")  # type: ignore[operator]
    with_system = dump_prompt([{"role": "system", "content": "Be brief."}, *user("hi")])
    first = renderer.render([(with_system, "fine"), (with_system, "so"), (chat("Be brief.\n\nhi"), "fine")])
    assert first[0].prompt_ids.tolist() == first[2].prompt_ids.tolist()
    assert len(renderer.notices) == 1
    assert "rejects" in renderer.notices[0]
    assert "tiny" in renderer.notices[0]


def test_a_dropped_system_message_is_merged_into_the_first_user_message() -> None:
    template = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    renderer = Renderer(qwen(template), name="tiny")
    assert renderer.notices == []
    got = renderer.render([(dump_prompt([{"role": "system", "content": "Be brief."}, *user("hi")]), "fine")])[0]
    assert "Be brief.\n\nhi" in qwen().decode(got.prompt_ids)
    assert "drops it" in renderer.notices[0]


def test_a_system_message_alone_becomes_a_user_message() -> None:
    renderer = Renderer(gemma(GEMMA))
    [alone, same] = renderer.render([(dump_prompt([{"role": "system", "content": "S"}]), "x"), (chat("S"), "x")])
    assert alone.prompt_ids.tolist() == same.prompt_ids.tolist()


def test_supported_system_messages_stay_in_place() -> None:
    renderer = Renderer(llama3(LLAMA3))
    got = renderer.render([(dump_prompt([{"role": "system", "content": "Be brief."}, *user("hi")]), "fine")])[0]
    assert "\n\nBe brief.<|eot_id|>" in llama3().decode(got.prompt_ids)
    wrapped = Renderer(gpt2(LLAMA2.replace("bos_token", "''")))
    got = wrapped.render([(dump_prompt([{"role": "system", "content": "Be brief."}, *user("hi")]), "fine")])[0]
    assert "<<SYS>>\nBe brief.\n<</SYS>>\n\nhi" in gpt2().decode(got.prompt_ids)
    assert renderer.notices == wrapped.notices == []


def test_the_date_is_fixed() -> None:
    got = Renderer(llama3(LLAMA3)).render([(chat("hi"), "fine")])[0]
    assert "Today Date: 26 Jul 2024\n" in llama3().decode(got.prompt_ids)
    older = LLAMA3.replace("strftime_now is defined", "false")
    got = Renderer(llama3(older)).render([(chat("hi"), "fine")])[0]
    assert "Today Date: 26 Jul 2024\n" in llama3().decode(got.prompt_ids)


def test_the_frame_is_rendered_once_for_all_completions_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    frame = ChatTemplate.frame

    def counted(self: ChatTemplate, messages: list[dict[str, str]]) -> Frame:
        calls.append(1)
        return frame(self, messages)

    renderer = Renderer(qwen())
    monkeypatch.setattr(ChatTemplate, "frame", counted)
    renderer.render([(chat("once"), f"answer {i}") for i in range(20)])
    renderer.prompt_lengths([chat("once")])
    assert len(calls) == 1
