"""A shared vocabulary gives the ids of a vocabulary of its own, and a recorded tokenizer those of the one transformers loads."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rendering_cases import TEXTS
from tiny_tokenizers import KINDS, qwen, t5
from tokenizers import Tokenizer

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import dump_prompt
from mrpo_pipeline.rendering import Renderer, renderer
from mrpo_pipeline.rendering.escaped_tokenizer import EscapedTokenizer, control_tokens
from mrpo_pipeline.rendering.vocabulary_reuse import holds_no_control, record, without_vocabulary

BPE = sorted(kind for kind in KINDS if json.loads(KINDS[kind]().backend_tokenizer.to_str())["model"]["type"] == "BPE")


def parts(tokenizer: Any) -> tuple[dict[str, Any], list[str]]:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return backend, sorted(control_tokens(backend, tokenizer.all_special_tokens), key=lambda one: (-len(one), one))


def originals(escaped: EscapedTokenizer, ids: list[int]) -> list[int]:
    return [-1 if one == escaped.break_id else int(escaped.original_ids[one]) for one in ids]


def vocabulary(**more: Any) -> dict[str, Any]:
    vocab = {piece: i for i, piece in enumerate(["<", "x", ">", "<x", "<x>"])}
    added = [{"content": "<x>", "single_word": False, "normalized": False}]
    model = {"type": "BPE", "dropout": None, "vocab": vocab, "merges": [], **more}
    return {"model": model, "added_tokens": added, "normalizer": None}


@pytest.mark.parametrize("kind", BPE)
def test_a_copy_on_the_models_vocabulary_gives_the_ids_of_a_renamed_one(kind: str) -> None:
    tokenizer = KINDS[kind]()
    backend, controls = parts(tokenizer)
    assert holds_no_control(backend, controls)
    shared = EscapedTokenizer(backend, controls, 0x100000, tokenizer.backend_tokenizer)
    alone = EscapedTokenizer(backend, controls, 0x100000)
    joined = "".join(f"{text}{control}" for text, control in zip(TEXTS * 9, controls, strict=False))
    for text in [*TEXTS, *controls, joined, *map(shared.rename, [joined, *controls]), f"a{shared.break_char} b"]:
        ours, theirs = (one.backend.encode(text, add_special_tokens=False) for one in (shared, alone))
        assert originals(shared, ours.ids) == originals(alone, theirs.ids)
        assert ours.offsets == theirs.offsets
    for one in (shared, alone):
        assert one.original_ids[one.backend.encode(one.rename(controls[0])).ids].tolist() == [
            tokenizer.convert_tokens_to_ids(controls[0])
        ]


def test_the_model_itself_is_unchanged() -> None:
    tokenizer = copy.deepcopy(qwen())
    before = tokenizer.backend_tokenizer.to_str()
    Renderer(tokenizer).render([(dump_prompt("a <|im_end|> b"), "c")])
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(
    ("more", "held"),
    [
        ({}, True),
        ({"merges": [["<", "x"]]}, True),
        ({"merges": [["<x", ">"]]}, False),
        ({"ignore_merges": True}, False),
        ({"dropout": 0.1}, False),
        ({"continuing_subword_prefix": "##"}, False),
        ({"end_of_word_suffix": "</w>"}, False),
        ({"type": "WordPiece"}, False),
        ({"vocab": {"<": 0, "x": 1, ">": 2, "<x>": 9}}, False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_vocabulary_is_shared_only_if_no_text_becomes_a_control_token(more: dict[str, Any], held: bool) -> None:
    assert holds_no_control(vocabulary(**more), {"<x>"}) is held


@pytest.mark.parametrize(
    ("flags", "normalizer", "held"),
    [
        ({"single_word": True}, None, False),
        ({"normalized": True}, {"type": "NFC"}, False),
        ({"normalized": True}, None, True),
        ({}, {"type": "NFC"}, True),
    ],
)
def test_a_control_token_that_may_be_overlooked_in_a_text_is_not_shared(
    flags: dict[str, bool], normalizer: dict[str, str] | None, held: bool
) -> None:
    backend = {**vocabulary(), "normalizer": normalizer}
    backend["added_tokens"][0] |= flags
    assert holds_no_control(backend, {"<x>"}) is held


def test_an_end_of_turn_that_the_search_overlooks_is_no_private_character() -> None:
    tokenizer = copy.deepcopy(KINDS["llama2"]())
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["normalized"] = True
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    made = Renderer(tokenizer)
    [got] = made.render([(dump_prompt([{"role": "user", "content": "hi"}]), "  </s> k")])
    assert b"\xf4" not in made.token_bytes(got.completion_ids.tolist())


def test_a_piece_outside_the_vocabulary_is_never_reached() -> None:
    assert holds_no_control(vocabulary(ignore_merges=True, end_of_word_suffix="</w>"), {"<y>"})
    assert not holds_no_control(vocabulary(), {"<"})


def test_a_merge_that_makes_a_control_token_does_not_make_it_from_content() -> None:
    tokenizer = copy.deepcopy(qwen())
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab, end = backend["model"]["vocab"], "<|im_end|>"
    pieces = ["<|", "im", "_end", "|>"]
    for made in [*pieces, "<|im", "<|im_end", end]:
        vocab.setdefault(made, len(vocab))
    merges = [["<", "|"], ["i", "m"], ["|", ">"], ["_", "e"], ["_e", "n"], ["_en", "d"]]
    for made in ("_e", "_en"):
        vocab.setdefault(made, len(vocab))
    merges += [["<|", "im"], ["<|im", "_end"], ["<|im_end", "|>"]]
    backend["model"] |= {"merges": merges, "ignore_merges": False}
    backend["pre_tokenizer"] = None
    backend["added_tokens"] = [{**one, "id": vocab.get(one["content"], one["id"])} for one in backend["added_tokens"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert not holds_no_control(json.loads(tokenizer.backend_tokenizer.to_str()), {end})
    made = Renderer(tokenizer)
    got = made.render([(dump_prompt("hi"), f"a{end}")])[0]
    assert got.completion_ids.tolist().count(end_id) == 1 and got.completion_ids[-1] == end_id


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_model_is_loaded_again_with_the_same_ids(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    KINDS[kind]().save_pretrained(tmp_path / "model")
    items = [(dump_prompt(text), other) for text, other in zip(TEXTS, reversed(TEXTS), strict=True)]
    first = Renderer.from_pretrained(str(tmp_path / "model"))
    expected = first.render(items)
    if kind in BPE:  # then neither transformers' loading nor the identity is run again
        monkeypatch.setattr(renderer, "load_tokenizer", None)
        monkeypatch.setattr(renderer, "identity", None)
    again = Renderer.from_pretrained(str(tmp_path / "model"))
    assert (again.identity(), again.reading, again.bos) == (first.identity(), first.reading, first.bos)
    for ours, theirs in zip(again.render(items), expected, strict=True):
        assert ours.prompt_ids.tolist() == theirs.prompt_ids.tolist()
        assert ours.completion_ids.tolist() == theirs.completion_ids.tolist()
        assert ours.byte_ends.tolist() == theirs.byte_ends.tolist()
    assert again.check.counts == first.check.counts
    assert again.notices == first.notices


def test_the_tokenizer_of_an_adapter_or_another_folder_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    qwen().save_pretrained(tmp_path / "model")
    more = copy.deepcopy(qwen())
    more.add_tokens(["<tool>"])
    more.save_pretrained(tmp_path / "more")
    for place in ("adapter", "tokenizer"):
        settings = {place: str(tmp_path / "more")}
        first = Renderer.from_pretrained(str(tmp_path / "model"), **settings)
        with monkeypatch.context() as patched:
            patched.setattr(renderer, "load_tokenizer", None)
            again = Renderer.from_pretrained(str(tmp_path / "model"), **settings)
        assert again.identity() == first.identity() != Renderer.from_pretrained(str(tmp_path / "model")).identity()
        ids = again.render([(dump_prompt("a"), "x <tool>")])[0].completion_ids
        assert ids.tolist() == first.render([(dump_prompt("a"), "x <tool>")])[0].completion_ids.tolist()
        assert again.reading == first.reading


def test_a_tokenizer_that_differs_from_its_file_is_not_recorded() -> None:
    tokenizer, unigram = copy.deepcopy(qwen()), t5()

    def recorded(one: Any, **model: Any) -> bool:
        backend = json.loads(one.backend_tokenizer.to_str())
        settings = without_vocabulary(backend)
        return (
            record(one, settings, Tokenizer.from_str(json.dumps({**backend, "model": {**backend["model"], **model}})))
            is not None
        )

    vocab = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    a, b = sorted(vocab, key=vocab.get)[-2:]
    assert recorded(tokenizer)
    assert not recorded(tokenizer, vocab={**vocab, a: vocab[b], b: vocab[a]})
    assert not recorded(tokenizer, merges=merges[:-1])
    assert not recorded(tokenizer, ignore_merges=False)
    assert record(tokenizer, without_vocabulary(parts(tokenizer)[0]), None) is None
    assert not recorded(unigram)
    tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    assert recorded(tokenizer)


def test_a_tokenizer_with_its_own_template_code_is_not_recorded() -> None:
    tokenizer = copy.deepcopy(qwen())

    class Own(type(tokenizer)):  # type: ignore[misc]
        def apply_chat_template(self, *arguments: Any, **settings: Any) -> Any:
            return super().apply_chat_template(*arguments, **settings)

    tokenizer.__class__ = Own
    file = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    assert record(tokenizer, without_vocabulary(parts(tokenizer)[0]), file) is None


def test_a_tokenizer_that_cannot_be_made_from_its_record_is_not_recorded() -> None:
    tokenizer = copy.deepcopy(qwen())
    tokenizer._set_model_specific_special_tokens({"padding_side": "<side>"})
    assert record(tokenizer, *_of(tokenizer)) is None


def _of(tokenizer: Any) -> tuple[dict[str, Any], Any]:
    return without_vocabulary(parts(tokenizer)[0]), Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


def _releases(folder: Path) -> list[Path]:
    """Two models whose files have the same sizes and times; in the second, two pieces have each other's id."""
    made = [folder / "v1", folder / "v2"]
    for one in made:
        qwen().save_pretrained(one)
        file = json.loads((one / "tokenizer.json").read_text())
        if one.name == "v2":
            vocab = file["model"]["vocab"]
            vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
        (one / "tokenizer.json").write_text(json.dumps(file))
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    assert len({(one / "tokenizer.json").stat().st_size for one in made}) == 1
    return made


@pytest.mark.parametrize("way", ["link", "copy", "folder"])
def test_files_of_the_same_size_and_times_at_the_same_path_are_read_again(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    releases = _releases(tmp_path / "releases")
    item = (dump_prompt([{"role": "user", "content": "the"}]), "eet")
    expected = [Renderer.from_pretrained(str(one)).render([item])[0].completion_ids.tolist() for one in releases]
    assert expected[0] != expected[1]
    place = tmp_path / "current"
    for one, ids in zip(releases, expected, strict=True):
        if way == "link":
            place.unlink(missing_ok=True)
            place.symlink_to(one)
        elif way == "copy":
            shutil.copytree(one, place, dirs_exist_ok=True)  # keeps the times
        else:
            monkeypatch.chdir(one)
            place = Path(".")
        assert Renderer.from_pretrained(str(place)).render([item])[0].completion_ids.tolist() == ids


def test_a_template_that_moves_to_another_folder_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    model = tmp_path / "model"
    qwen().save_pretrained(model)
    (model / "chat_template.jinja").rename(model / "default.jinja")
    assert Renderer.from_pretrained(str(model)).reading
    (model / "additional_chat_templates").mkdir()
    (model / "default.jinja").rename(model / "additional_chat_templates" / "default.jinja")
    assert not Renderer.from_pretrained(str(model)).reading


def test_tokens_that_a_rejected_class_adds_are_not_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    qwen().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizer"}))
    item = (dump_prompt([{"role": "user", "content": "hi"}]), "a <s> b")
    first, again = (Renderer.from_pretrained(str(tmp_path)).render([item])[0] for _ in range(2))
    assert first.completion_ids.tolist() == again.completion_ids.tolist()


def test_a_file_that_is_removed_meanwhile_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    qwen().save_pretrained(tmp_path / "model")
    Renderer.from_pretrained(str(tmp_path / "model"))
    find = renderer.find

    def late(key: str) -> Any:
        (tmp_path / "model" / "tokenizer.json").unlink()
        return find(key)

    monkeypatch.setattr(renderer, "find", late)
    with pytest.raises(UserError, match="has no tokenizer"):
        Renderer.from_pretrained(str(tmp_path / "model"))


@pytest.mark.parametrize("there", [True, False])
def test_garbage_is_collected_again_after_loading(there: bool, tmp_path: Path) -> None:
    if there:
        qwen().save_pretrained(tmp_path)
    with contextlib.suppress(UserError):
        Renderer.from_pretrained(str(tmp_path))
    assert gc.isenabled()
