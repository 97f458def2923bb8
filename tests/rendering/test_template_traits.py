"""Traits of real templates and tokenizers, each on a small example: ids, scored tokens, notices."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rendering_cases import chat, user
from tiny_tokenizers import (
    CHATML,
    LLAMA2,
    MISTRAL,
    QWEN3,
    VICUNA,
    gpt2,
    llama2,
    llama3,
    mistral,
    qwen,
    special,
    wrap,
)
from tokenizers import Tokenizer

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import dump_prompt
from mrpo_pipeline.rendering import Rendered, Renderer
from mrpo_pipeline.rendering.own_rendering_comparison import RenderingMismatchError
from mrpo_pipeline.rendering.tokenizer import LoadedTokenizer

SYSTEM = {"role": "system", "content": "Be brief."}

# Like Mistral 7B v0.3, Nemo and Large: the system message is written before the last message if that is from the user.
MISTRAL_V3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}"
    "{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}{%- for message in loop_messages %}"
    "{%- if message['role'] == 'user' %}{%- if loop.last and system is defined %}"
    "{{- '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
# Like GLM: only the next header ends an answer.
GLM = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# Like Command-R7B: one token ends the response, another the turn.
RESPONSE = (
    "{% for m in messages %}{{ '<|START|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{{ '<|RESPONSE|>' + m['content'] + '<|/RESPONSE|>' }}{% else %}{{ m['content'] }}{% endif %}{{ '<|END|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START|>assistant\\n' }}{% endif %}"
)
# Like DeepSeek V3.1: a closing think tag before earlier answers.
CLOSING_THINK = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% if '</think>' in m['content'] %}{{ m['content'] }}{% else %}{{ '</think>' + m['content'] }}{% endif %}{{ '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n</think>' }}{% endif %}"
)


def with_tokens(tokenizer: Any, *contents: str, **names: str) -> Any:
    made = copy.deepcopy(tokenizer)
    made.add_tokens([special(content) for content in contents], special_tokens=True)
    for name, value in names.items():
        setattr(made, name, value)
    return made


def rendered(renderer: Renderer, prompt: list[dict[str, str]], answer: str) -> Rendered:
    return renderer.render([(dump_prompt(prompt), answer)])[0]


@pytest.mark.parametrize("earlier", [[], [*user("First?"), {"role": "assistant", "content": "One."}]])
@pytest.mark.parametrize("text", ["hi", "Be brief.", "INST", "]"])
def test_a_system_message_only_in_the_generation_prompt_is_kept(earlier: list[dict[str, str]], text: str) -> None:
    tokenizer = mistral(MISTRAL_V3)
    renderer = Renderer(tokenizer, name="tiny")
    prompt = [SYSTEM, *earlier, *user(text)]
    got = rendered(renderer, prompt, "fine")
    asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert got.prompt_ids.tolist() == tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(got.completion_ids) == "fine</s>"
    assert "generation prompt" in renderer.notices[0]
    assert renderer.identity()["rendering"] == "1+system as asked"
    assert rendered(renderer, user("hi"), "fine").completion_ids.tolist() == got.completion_ids.tolist()


def test_an_empty_system_message_only_in_the_generation_prompt_is_dropped() -> None:
    renderer = Renderer(mistral(MISTRAL_V3))
    empty = {"role": "system", "content": ""}
    assert rendered(renderer, [empty, *user("hi")], "x").prompt_ids.tolist() == (
        rendered(renderer, user("hi"), "x").prompt_ids.tolist()
    )


def test_a_template_that_drops_a_turn_is_an_error() -> None:
    template = CHATML.replace("{% for m in messages %}", "{% for m in messages[-2:] %}")
    with pytest.raises(UserError, match=r"drops a message.*\(user: 'First\?'\)"):
        Renderer(qwen(template)).render([(chat("First?", "One.", "Second?"), "Two.")])


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("answer", ["<think>\nhm\n</think>\n\nyes", "yes"])
def test_a_closing_tag_between_turns_is_not_a_turn_marker(answer: str, marked: bool) -> None:
    tokenizer = with_tokens(qwen(CLOSING_THINK), *(("<think>", "</think>") if marked else ()))
    assert tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids("<think>")].special == marked
    got = Renderer(tokenizer).render([(chat("a", "b", "c"), answer)])[0]
    messages = [*user("a"), {"role": "assistant", "content": "b"}, *user("c"), {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert [*got.prompt_ids, *got.completion_ids] == tokenizer(text)["input_ids"]
    assert ("<think>" in answer) == (tokenizer.convert_tokens_to_ids("</think>") in got.completion_ids.tolist())


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json", "chat_template.jinja"])
def test_a_template_in_another_file_of_the_model_is_used(tmp_path: Path, file: str) -> None:
    qwen(None).save_pretrained(tmp_path)
    (tmp_path / file).write_text(CHATML if file.endswith("jinja") else json.dumps({"chat_template": CHATML}))
    got = Renderer.from_pretrained(str(tmp_path))
    assert got.identity()["template"] == Renderer(qwen()).identity()["template"]


def test_a_template_of_the_model_serves_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    qwen(None).save_pretrained(tmp_path / "tokenizer")
    qwen().save_pretrained(tmp_path / "model")
    got = Renderer.from_pretrained(str(tmp_path / "model"), tokenizer=str(tmp_path / "tokenizer"))
    assert got.identity()["template"] == Renderer(qwen()).identity()["template"]


def test_a_template_that_takes_content_as_parts_gets_parts() -> None:
    parts = CHATML.replace("m['content']", "m['content'][0]['text']")
    got, expected = (Renderer(qwen(one)).render([(chat("hi"), "fine")])[0] for one in (parts, CHATML))
    assert got.prompt_ids.tolist() == expected.prompt_ids.tolist()
    assert got.completion_ids.tolist() == expected.completion_ids.tolist()


def byte_level_llama(folder: Path) -> None:
    """A byte-level tokenizer.json with the class of SentencePiece models, like copies of R1-Distill-Llama."""
    llama3().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizerFast"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def test_ids_are_those_of_tokenizer_json_and_not_of_the_class_that_loads_it(tmp_path: Path) -> None:
    byte_level_llama(tmp_path)
    renderer = Renderer.from_pretrained(str(tmp_path), name="distilled")
    text = "How are you today?\n\nI am fine,  thank you!"
    got = renderer.render([(chat(text), text)])[0]
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert got.completion_ids[:-1].tolist() == own.encode(text, add_special_tokens=False).ids
    assert own.decode(got.prompt_ids.tolist(), skip_special_tokens=False).count(text) == 1
    assert "tokenizer.json is used directly" in renderer.reading[0]


def test_a_tokenizer_json_that_loses_white_space_is_an_error() -> None:
    """The file that transformers saves after loading with the wrong class."""
    backend = json.loads(llama3().backend_tokenizer.to_str())
    backend["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    broken = wrap(Tokenizer.from_str(json.dumps(backend)), **names)
    broken.chat_template = llama3().chat_template
    with pytest.raises(RenderingMismatchError, match=r"do not decode to the text") as error:
        Renderer(broken, name="copy").render([(chat("hi"), "How are you?")])
    assert "Howareyou?" in str(error.value)


@pytest.mark.parametrize("answer", ["Fine.", "fine\n", "Fine!", "a\n\n"])
def test_no_token_crosses_the_end_of_the_content(answer: str) -> None:
    tokenizer = qwen(CHATML.replace("+ '<|im_end|>'", "+ '\\n\\n<|im_end|>'"))
    bare = qwen(VICUNA.replace("+ eos_token", "+ '\\n\\n'"))
    for one, end in ((tokenizer, "\n\n<|im_end|>"), (bare, "<|im_end|>")):
        renderer = Renderer(one)
        got = renderer.render([(chat("hi"), answer)])[0]
        content = [int(i) for i, b in zip(got.completion_ids, got.byte_ends, strict=True) if b <= len(answer)]
        assert one.decode(got.completion_ids).removeprefix(" ") == answer + end
        tokens = one.convert_ids_to_tokens(content)
        texts = [one.decode(got.completion_ids[: n + 1]).removeprefix(" ") for n in range(len(tokens))]
        assert answer in texts  # a token ends where the content ends
        assert renderer.identity()["rendering"] == "1+content ends apart"
    assert Renderer(qwen()).identity()["rendering"] == "1"


def test_white_space_before_the_templates_bos_puts_no_second_one() -> None:
    tokenizer = llama3(llama3().chat_template.replace("{{- bos_token }}", "{{- '\\n' + bos_token }}"))
    renderer = Renderer(tokenizer)
    ids = rendered(renderer, user("hi"), "fine").prompt_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert renderer.identity()["rendering"] == "1+white space before BOS"


def test_the_header_of_the_next_turn_does_not_end_an_answer() -> None:
    tokenizer = with_tokens(qwen(GLM), "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>")
    always = with_tokens(tokenizer)
    always.chat_template = GLM.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
    for one in (tokenizer, always):
        renderer = Renderer(one, name="tiny")
        got = rendered(renderer, user("hi"), "fine")
        assert one.decode(got.completion_ids) == "fine<|im_end|>"
        assert one.decode(got.prompt_ids).endswith("<|user|>\nhi<|assistant|>\n")
        assert "writes no end-of-turn token: <|im_end|> is used" in renderer.notices[0]


def test_an_answer_ends_with_the_stop_token_of_the_generation_configuration(tmp_path: Path) -> None:
    glm = with_tokens(qwen(GLM), "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>")
    names = ("<|START|>", "<|RESPONSE|>", "<|/RESPONSE|>", "<|END|>")
    command = with_tokens(qwen(RESPONSE), *names, eos_token="<|END|>")
    for i, (one, stops, end) in enumerate(
        [(glm, ["<|endoftext|>", "<|user|>"], "<|user|>"), (command, ["<|END|>"], "<|/RESPONSE|><|END|>")]
    ):
        folder = tmp_path / str(i)
        one.save_pretrained(folder)
        ids = one.convert_tokens_to_ids(stops)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids if len(ids) > 1 else ids[0]}))
        renderer = Renderer.from_pretrained(str(folder))
        assert one.decode(rendered(renderer, user("hi"), "fine").completion_ids) == "fine" + end
        assert renderer.identity()["end_of_turn"] in stops


def test_an_end_of_turn_that_is_not_a_stop_token_is_reported() -> None:
    tokenizer = qwen()
    tokenizer = with_tokens(tokenizer, eos_token="<|endoftext|>")
    loaded = LoadedTokenizer(tokenizer, stops=(tokenizer.eos_token_id,))
    renderer = Renderer(tokenizer, loaded=loaded)
    assert tokenizer.decode(rendered(renderer, user("hi"), "fine").completion_ids) == "fine<|im_end|>"
    assert "not a stop token of the model (<|endoftext|>)" in renderer.notices[0]


@pytest.mark.parametrize(
    ("make", "template"),
    [(mistral, MISTRAL), (llama2, CHATML.replace("in messages %}", "in messages if m['role'] != 'system' %}"))],
)
def test_an_empty_system_message_is_dropped_if_system_messages_are_merged(make: Any, template: str) -> None:
    renderer = Renderer(make(template))
    empty = {"role": "system", "content": ""}
    with_empty, without = (rendered(renderer, prompt, "fine") for prompt in ([empty, *user("hi")], user("hi")))
    assert with_empty.prompt_ids.tolist() == without.prompt_ids.tolist()
    assert renderer.identity()["rendering"].endswith("+empty system message left out")
    alone = rendered(renderer, [empty], "fine")
    assert alone.prompt_ids.tolist() == rendered(renderer, user(""), "fine").prompt_ids.tolist()


def tekken() -> Path | None:
    try:
        import mistral_common
    except ImportError:
        return None
    return next((Path(mistral_common.__file__).parent / "data").glob("tekken_*.json"), None)


def test_a_tekken_file_next_to_tokenizer_json_is_ignored(tmp_path: Path) -> None:
    file = tekken()
    if file is None:
        pytest.skip("mistral-common is not installed, so transformers does not look at tekken.json")
    llama3().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    shutil.copy(file, tmp_path / "tekken.json")
    assert Renderer.from_pretrained(str(tmp_path)).identity() == Renderer(llama3()).identity()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"only tekken\.json.*expected `tokenizer\.json`"):
        Renderer.from_pretrained(str(tmp_path))


def test_a_wrongly_converted_sentencepiece_tokenizer_is_an_error(tmp_path: Path) -> None:
    file = tekken()
    found = file and next(file.parent.glob("tokenizer.model.v1"), None)
    if not found:
        pytest.skip("mistral-common, which ships a SentencePiece file, is not installed")
    shutil.copy(found, tmp_path / "tokenizer.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    with pytest.raises(UserError, match=r"only tokenizer\.model.*SentencePiece"):
        Renderer.from_pretrained(str(tmp_path))


def test_first_conversations_are_counted_by_reason() -> None:
    renderer = Renderer(gpt2(LLAMA2.replace("bos_token", "''")), name="tiny")
    renderer.render([(chat("hi"), "fine"), (chat("hi"), "see <|endoftext|>"), (dump_prompt("raw"), " text")])
    assert renderer.check.conversations == 3
    assert renderer.check.counts["control strings in the data are text"] == 1
    assert renderer.check.counts.total() == 3
    assert "3 first conversations compared" in renderer.check.summary()


def test_each_shape_is_compared_a_few_times_only() -> None:
    renderer = Renderer(qwen(QWEN3))
    renderer.render([(chat("hi"), f"answer {i}") for i in range(20)])
    assert renderer.check.counts == {"exact": 3}
    renderer.render([(chat("a", "b", "c"), "d"), (dump_prompt([SYSTEM, *user("hi")]), "<think>\nx\n</think>\n\ny")])
    assert renderer.check.counts == {"exact": 5}


def test_a_rendering_mismatch_stops_the_run() -> None:
    renderer = Renderer(qwen(), name="tiny")
    ids = renderer._escaped.for_texts("").original_ids
    x, y = (qwen().convert_tokens_to_ids(token) for token in "xy")
    ids[[x, y]] = [y, x]
    with pytest.raises(
        RenderingMismatchError, match=r"tiny: the rendering differs from the model's own tokenizer.*token"
    ) as error:
        renderer.render_each([(chat("x"), "fine")])
    assert "rendered here:" in str(error.value)
    assert f"'x' ({x})" in str(error.value)
