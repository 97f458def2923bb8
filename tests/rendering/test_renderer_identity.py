"""The identity changes if and only if the ids do."""

import copy
from pathlib import Path

import pytest
from tiny_tokenizers import CHATML, LLAMA3, TEXT, gpt2, llama3, qwen

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering import PLAIN_TEMPLATE, TEMPLATE_DATE, Renderer


def test_fields() -> None:
    identity = Renderer(llama3()).identity()
    assert identity["end_of_turn"] == "<|eot_id|>"
    assert identity["prepended"] == "<|begin_of_text|>"
    assert identity["template_date"] == TEMPLATE_DATE == "2024-07-26"
    assert Renderer(qwen()).identity()["template_date"] == ""
    assert all(isinstance(value, str) for value in identity.values())


def test_saving_and_loading_keeps_it(tmp_path: Path) -> None:
    for i, make in enumerate((gpt2, llama3, qwen)):
        make().save_pretrained(tmp_path / str(i))
        assert Renderer.from_pretrained(str(tmp_path / str(i))).identity() == Renderer(make()).identity()


def test_padding_truncation_side_and_name_are_not_part_of_it() -> None:
    other = copy.deepcopy(qwen())
    other.padding_side = "left"
    other.model_max_length = 7
    other.backend_tokenizer.enable_truncation(5)
    other.backend_tokenizer.enable_padding(length=9)
    made = Renderer(other, name="else")
    assert made.identity() == Renderer(qwen()).identity()
    items = [('[{"role":"user","content":"' + "How are you? " * 9 + '"}]', TEXT[0])]
    assert made.render(items)[0].completion_ids.tolist() == Renderer(qwen()).render(items)[0].completion_ids.tolist()


def test_the_pad_token_is_not_part_of_it() -> None:
    other = copy.deepcopy(qwen())
    other.pad_token = "<|im_end|>"
    assert Renderer(other).identity() == Renderer(qwen()).identity()


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {field for field in before if before[field] != after[field]}


def test_each_change_shows_in_its_field() -> None:
    before = Renderer(qwen()).identity()
    assert changed(before, Renderer(qwen(CHATML + " ")).identity()) == {"template"}
    assert changed(before, Renderer(qwen(), template="plain").identity()) == {"template"}
    assert Renderer(qwen(), template="plain").identity()["template"].startswith("plain:")
    more = copy.deepcopy(qwen())
    more.add_tokens(["lighthouse"])
    assert changed(before, Renderer(more).identity()) == {"tokenizer"}
    ended = copy.deepcopy(qwen())
    ended.eos_token = "<|endoftext|>"
    assert changed(before, Renderer(ended).identity()) == {"end_of_text"}
    unended = Renderer(qwen(CHATML.replace("<|im_end|>", "<|endoftext|>"))).identity()
    assert changed(before, unended) == {"template", "end_of_turn"}


def test_the_tool_template_and_its_variables_are_part_of_it() -> None:
    with_tools = "{%- for tool in tools -%}{{ tool['function']['name'] if brief else tool }}{%- endfor -%}" + CHATML

    def identity(template: object, **arguments: object) -> dict[str, str]:
        tokenizer = copy.deepcopy(qwen())
        tokenizer.chat_template = template
        return Renderer(tokenizer, template_kwargs=arguments).identity()

    named = {"default": CHATML, "tool_use": with_tools}
    before = identity(named)
    assert changed(identity({"default": CHATML}), before) == {"template"}
    assert changed(before, identity({**named, "tool_use": with_tools + " "})) == {"template"}
    assert changed(before, identity(named, brief=True)) == {"template"}
    assert identity(named, wordy=True) == before


def test_a_prepended_bos_is_part_of_it() -> None:
    other = copy.deepcopy(llama3(LLAMA3))
    other.backend_tokenizer.post_processor = qwen().backend_tokenizer.post_processor
    if other("x")["input_ids"] == llama3()("x")["input_ids"]:
        pytest.skip("this transformers puts the post-processor back")
    assert changed(Renderer(llama3()).identity(), Renderer(other).identity()) == {"prepended"}


def test_no_template_and_the_plain_one_by_name_are_the_same() -> None:
    assert Renderer(gpt2()).identity() == Renderer(gpt2(), template="plain").identity()
    assert Renderer(gpt2(PLAIN_TEMPLATE)).identity() == Renderer(gpt2()).identity()


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing-here"):
        Renderer.from_pretrained(str(tmp_path / "nothing-here"))


def test_a_tokenizer_from_another_place(tmp_path: Path) -> None:
    qwen().save_pretrained(tmp_path / "tokenizer")
    made = Renderer.from_pretrained("no/model", tokenizer=str(tmp_path / "tokenizer"), revision="abc", name="mine")
    assert made.identity() == Renderer(qwen()).identity()
    assert made.name == "mine"
