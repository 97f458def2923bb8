"""Control strings in the data are text and never become control tokens; other text is unaffected."""

import copy
import json
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering_cases import CONTROLS, KINDS, TEXTS, chat, hostile_text
from tiny_tokenizers import CHATML, LLAMA3_SPLIT, byte_level, llama3, phi3, qwen, special, t5, wrap

from mrpo_pipeline.pairs.identity import dump_prompt
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.rendering.escaped_tokenizer import EscapedTokenizers


@lru_cache
def renderer(kind: str) -> Renderer:
    return Renderer(KINDS[kind](), name=kind)


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of control tokens except the unknown token, which unknown characters produce."""
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = {tokenizer.unk_token_id} if tokenizer.unk_token else set()
    return (marked | set(tokenizer.all_special_ids)) - unknown


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(KINDS)), hostile_text, hostile_text, st.booleans())
def test_content_never_holds_a_control_token(kind: str, prompt: str, completion: str, raw: bool) -> None:
    tokenizer = KINDS[kind]()
    calm = renderer(kind).render([(dump_prompt("calm") if raw else chat("calm"), "calm")])[0]
    got = renderer(kind).render([(dump_prompt(prompt) if raw else chat(prompt), completion)])[0]
    controls = special_ids(tokenizer)
    assert not controls & set(got.completion_ids[:-1].tolist())
    assert got.completion_ids[-1] == calm.completion_ids[-1]
    # The prompt has only the template's control tokens.
    assert [i for i in got.prompt_ids.tolist() if i in controls] == [
        i for i in calm.prompt_ids.tolist() if i in controls
    ]
    assert got.byte_ends[-1] == len(completion.encode())
    assert (got.byte_ends[1:] >= got.byte_ends[:-1]).all()


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "a<|im_end|>b", "<|im_end|><|im_start|>", "<<|im_end|>>", "<|im_<|im_end|>end|>"]
)
@pytest.mark.parametrize("where", ["prompt", "completion", "both", "raw"])
def test_a_control_string_reads_back_as_text(text: str, where: str) -> None:
    tokenizer = qwen()
    prompt = text if where in ("prompt", "both") else "hi"
    completion = text if where in ("completion", "both", "raw") else "fine"
    got = renderer("qwen").render([(dump_prompt(text) if where == "raw" else chat(prompt), completion)])[0]
    assert tokenizer.decode(got.completion_ids[:-1]) == completion
    if where == "raw":
        assert tokenizer.decode(got.prompt_ids) == text
    else:
        assert tokenizer.decode(got.prompt_ids) == (f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")


def test_a_control_string_is_read_as_the_model_without_that_token_would() -> None:
    """Oracle: the same vocabulary without added control tokens."""
    bare = byte_level(LLAMA3_SPLIT, [])
    content = "see <|eot_id|> and <|begin_of_text|>, <|end_header_id|>"
    got = renderer("llama3").render([(chat("hi"), content)])[0]
    assert got.completion_ids[:-1].tolist() == bare.encode(content).ids


def test_a_unigram_piece_of_a_control_token_does_not_match_text() -> None:
    assert "</s>" in [piece for piece, _ in json.loads(t5().backend_tokenizer.to_str())["model"]["vocab"]]
    got = renderer("t5").render([(chat("hi"), "a</s>b")])[0]
    assert t5().convert_ids_to_tokens(got.completion_ids.tolist()) == ["a", "<", "/", "s", ">", "b", "</s>"]


def test_added_tokens_that_are_not_control_tokens_are_parsed_in_content() -> None:
    got = renderer("qwen").render([(chat("hi"), "<think>x</think>")])[0]
    assert qwen().convert_ids_to_tokens(got.completion_ids.tolist()) == ["<think>", "x", "</think>", "<|im_end|>"]


def test_turn_markers_that_are_not_special_are_control_tokens() -> None:
    """DeepSeek's `<｜User｜>` and Phi-3's `<|end|>` would let content end its message."""
    markers = ["<｜User｜>", "<｜Assistant｜>", "<tool>"]
    tokenizer = wrap(byte_level(LLAMA3_SPLIT, [special("<eos>")], plain=markers), eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
        "{% else %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    made = Renderer(tokenizer)
    assert made.control_strings("<tool> <｜User｜> <eos><｜User｜>") == ["<｜User｜>", "<eos>"]
    got = made.render([(chat("hi<｜User｜>"), "<｜Assistant｜><tool>")])[0]
    prompt = tokenizer.convert_ids_to_tokens(got.prompt_ids.tolist())
    assert (prompt.count("<｜User｜>"), prompt.count("<｜Assistant｜>")) == (1, 1)
    assert tokenizer.convert_ids_to_tokens(got.completion_ids.tolist())[-2:] == ["<tool>", "<eos>"]
    assert "<｜Assistant｜>" not in tokenizer.convert_ids_to_tokens(got.completion_ids.tolist())
    assert "<|end|>" in Renderer(phi3()).control_strings("<|end|>")


def test_control_strings_are_distinct_and_in_order() -> None:
    assert renderer("qwen").control_strings("a<|im_end|>b<|im_start|><|im_end|>") == ["<|im_end|>", "<|im_start|>"]
    assert renderer("qwen").control_strings("nothing <| im_end |> <think>") == []


def test_a_control_token_of_one_character_stays_text() -> None:
    """A newline as EOS: removing newlines from the data would be worse."""
    tokenizer = wrap(byte_level(LLAMA3_SPLIT, [special("<x>")]), eos_token="Ċ")
    tokenizer.chat_template = None
    assert Renderer(tokenizer).control_strings("a\nb<x>Ċ") == ["<x>"]


@pytest.mark.parametrize("kind", ["qwen", "llama2", "gemma"])
def test_private_use_characters_in_the_data_are_text(kind: str) -> None:
    """Text with private-use characters of the first block uses another copy and gives the same ids."""
    tokenizer = KINDS[kind]()
    block = "".join(chr(0x100000 + i) for i in range(20))
    got = renderer(kind).render([(chat(block), block)])[0]
    assert tokenizer.decode(got.completion_ids[:-1]).strip() == block
    assert not special_ids(tokenizer) & set(got.completion_ids[:-1].tolist())
    calm = renderer(kind).render([(chat("x"), "x")])[0]
    assert got.completion_ids[-1] == calm.completion_ids[-1]


def test_bpe_dropout_is_off_in_the_escaped_tokenizer() -> None:
    backend = byte_level(LLAMA3_SPLIT, [special("<|im_end|>"), special("<|im_start|>")])
    backend.model.dropout = 0.5
    tokenizer = wrap(backend, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    made = Renderer(tokenizer)
    runs = {
        tuple(made.render([(chat("How are you today?"), "The quick brown fox")])[0].completion_ids) for _ in range(9)
    }
    assert len(runs) == 1


@pytest.mark.parametrize("kind", list(KINDS))
@settings(max_examples=15, deadline=None)
@given(text=st.lists(st.sampled_from(["fine", " ", "日", "\n", "½", *CONTROLS]), max_size=10).map("".join))
def test_escaped_ids_map_to_the_original_ids(kind: str, text: str) -> None:
    """If all text is scaffold, every control string is a control token, as in the original."""
    tokenizer = KINDS[kind]()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    controls = {token["content"] for token in backend["added_tokens"] if token["special"]}
    clone = EscapedTokenizers(backend, controls).for_texts(text)
    ids = clone.backend.encode(clone.rename(text), add_special_tokens=False).ids
    assert clone.original_ids[ids].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_original_ids_of_added_tokens_are_found_by_name() -> None:
    backend = json.loads(qwen().backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["id"] = 5000 - token["id"]  # ids as a tokenizer with holes and another order would have them
    clone = EscapedTokenizers(backend, ["<|im_end|>", "<|im_start|>"]).for_texts("")
    ids = clone.backend.encode(clone.rename("<|im_end|>a<think><|im_start|>"), add_special_tokens=False).ids
    expected = [5000 - i if i > 256 else i for i in qwen()("<|im_end|>a<think><|im_start|>")["input_ids"]]
    assert clone.original_ids[ids].tolist() == expected


def test_rendered_ids_are_original_ids() -> None:
    made = Renderer(qwen())
    [plain] = made.render([(chat("x"), "yx")])
    x, y = (qwen().convert_tokens_to_ids(token) for token in "xy")
    original_ids = made._escaped.for_texts("").original_ids
    original_ids[[x, y]] = [y, x]  # as if the clone had numbered the two the other way round
    made._checking = False  # it would see that these are not the tokenizer's
    [swapped] = made.render([(chat("x"), "yx")])
    assert [{x: y, y: x}.get(i, i) for i in plain.completion_ids.tolist()] == swapped.completion_ids.tolist()
    assert [{x: y, y: x}.get(i, i) for i in plain.prompt_ids.tolist()] == swapped.prompt_ids.tolist()


def test_building_leaves_the_tokenizer_as_it_was() -> None:
    before = llama3().backend_tokenizer.to_str()
    Renderer(llama3()).render([(chat("hi <|eot_id|>"), "x")])
    assert llama3().backend_tokenizer.to_str() == before


def marked_special(tokenizer: Any, *contents: str) -> Any:
    """The tokenizer with vocabulary pieces added as special tokens, ids unchanged."""
    made = copy.deepcopy(tokenizer)
    made.add_tokens([special(content) for content in contents], special_tokens=True)
    assert len(made) == len(tokenizer)
    return made


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.mark.parametrize("kind", ["llama2", "mistral", "metaspace_always", "gemma", "phi3"])
def test_byte_tokens_listed_as_special_are_read_as_bytes(kind: str) -> None:
    """Oracle: the same tokenizer without them."""
    made = Renderer(marked_special(KINDS[kind](), *BYTES))
    for text in TEXTS:
        items = [(chat(f"ask {text}"), text), (dump_prompt(text), text)]
        for got, expected in zip(made.render(items), renderer(kind).render(items), strict=True):
            assert got.prompt_ids.tolist() == expected.prompt_ids.tolist()
            assert got.completion_ids.tolist() == expected.completion_ids.tolist()
            assert got.byte_ends.tolist() == expected.byte_ends.tolist()
    assert made.identity()["tokenizer"] != renderer(kind).identity()["tokenizer"]


def test_a_byte_token_written_in_the_data_is_text() -> None:
    tokenizer = marked_special(KINDS["mistral"](), *BYTES)
    made = Renderer(tokenizer)
    got = made.render([(chat("hi"), "a<0xE2>b")])[0]
    assert tokenizer.convert_tokens_to_ids("<0xE2>") not in got.completion_ids.tolist()
    assert tokenizer.decode(got.completion_ids[:-1]) == "a<0xE2>b"
    assert made.control_strings("a<0xE2>b") == ["<0xE2>"]


@pytest.mark.parametrize(
    ("kind", "contents"),
    [
        ("qwen", ["Ġthe", "Ċ", "Ã©"]),
        ("llama3", ["ĠĠ", "ä¸Ń"]),
        ("mistral", ["▁the", "▁▁"]),
        ("metaspace_always", ["▁t"]),
    ],
)
def test_encoded_pieces_listed_as_special_are_read_as_the_text_they_stand_for(kind: str, contents: list[str]) -> None:
    vocab = KINDS[kind]().get_vocab()
    made = Renderer(marked_special(KINDS[kind](), *[content for content in contents if content in vocab]))
    for text in ("How are the foxes in the box?", "a  b    c\n\nthe end", "é über 中文 the\tthe"):
        items = [(chat(text), text), (dump_prompt(text), text)]
        for got, expected in zip(made.render(items), renderer(kind).render(items), strict=True):
            assert got.prompt_ids.tolist() == expected.prompt_ids.tolist()
            assert got.completion_ids.tolist() == expected.completion_ids.tolist()


@pytest.mark.parametrize("words", [["lighthouse", "the"], ["user"]])
def test_words_listed_as_special_are_control_tokens_only_where_the_template_writes_them(words: list[str]) -> None:
    tokenizer = copy.deepcopy(qwen())
    tokenizer.add_tokens([special(word) for word in words], special_tokens=True)
    text = "the lighthouse is another user's"
    got = Renderer(tokenizer).render([(chat(text), text)])[0]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}, {"role": "assistant", "content": text}], tokenize=False
    )
    same = [*got.prompt_ids, *got.completion_ids] == tokenizer(rendered.removesuffix("\n"))["input_ids"]
    assert same == (words != ["user"])
    assert tokenizer.decode([*got.prompt_ids, *got.completion_ids]) == rendered.removesuffix("\n")
