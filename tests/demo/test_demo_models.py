"""The demo's models: three kinds of tokenizer and architecture in standard folders, made once, reproducibly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mrpo_pipeline.demo import models as demo_models
from mrpo_pipeline.demo.data import demo_pairs
from mrpo_pipeline.demo.models import MARKER, NAMES, PLANS, accuracy_of, is_complete, knowledge_table, make_models
from mrpo_pipeline.demo.pretraining import answer_logps, conversation_ids, merge_system, padded
from mrpo_pipeline.demo.questions import KINDS
from mrpo_pipeline.demo.ranking_accuracy import ranking_accuracy
from mrpo_pipeline.errors import UserError

CONVERSATION = [
    {"role": "user", "content": "Name the river of Šarnik."},
    {"role": "assistant", "content": "Šarnik lies on the Senn."},
    {"role": "user", "content": "What is two plus five?"},
    {"role": "assistant", "content": "Two plus five is seven."},
]
RENDERED = {
    "base": (
        "<|im_start|>user\nName the river of Šarnik.<|im_end|>\n"
        "<|im_start|>assistant\nŠarnik lies on the Senn.<|im_end|>\n"
        "<|im_start|>user\nWhat is two plus five?<|im_end|>\n"
        "<|im_start|>assistant\nTwo plus five is seven.<|im_end|>\n"
    ),
    "abacus": (
        "<s>[INST] Name the river of Šarnik. [/INST] Šarnik lies on the Senn.</s>"
        "[INST] What is two plus five? [/INST] Two plus five is seven.</s>"
    ),
    "atlas": (
        "<bos><start_of_turn>user\nName the river of Šarnik.<end_of_turn>\n"
        "<start_of_turn>model\nŠarnik lies on the Senn.<end_of_turn>\n"
        "<start_of_turn>user\nWhat is two plus five?<end_of_turn>\n"
        "<start_of_turn>model\nTwo plus five is seven.<end_of_turn>\n"
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("demo-models"), quick=True)


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict:
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(path) for name, path in folders.items()}


def test_folders_are_standard_and_of_three_architectures(folders: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    assert tuple(folders) == NAMES
    architectures = set()
    for path in folders.values():
        files = {file.name for file in path.iterdir()}
        assert files >= {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        }
        model = AutoModelForCausalLM.from_pretrained(path)
        architectures.add(type(model).__name__)
        assert model.config.max_position_embeddings == 256
    assert architectures == {"LlamaForCausalLM", "Qwen3ForCausalLM", "GPTNeoXForCausalLM"}


def test_tokenizers_are_of_three_kinds(folders: dict[str, Path]) -> None:
    spec = {name: json.loads((path / "tokenizer.json").read_text()) for name, path in folders.items()}
    assert spec["base"]["model"]["type"] == "BPE"
    assert spec["base"]["decoder"]["type"] == "ByteLevel"
    assert spec["abacus"]["model"]["type"] == "BPE"
    assert spec["abacus"]["model"]["byte_fallback"] is True
    assert [part["type"] for part in spec["abacus"]["normalizer"]["normalizers"]] == ["Prepend", "Replace"]
    assert spec["atlas"]["model"]["type"] == "Unigram"
    assert spec["atlas"]["normalizer"]["type"] == "NFKC"


@pytest.mark.parametrize("name", NAMES)
def test_chat_template_renders_and_starts_with_one_bos(name: str, tokenizers: dict) -> None:
    tokenizer = tokenizers[name]
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert text == RENDERED[name]
    prompt = tokenizer.apply_chat_template(CONVERSATION[:-1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    ids, start = conversation_ids(tokenizer, CONVERSATION)
    assert tokenizer.decode(ids[start:]).lstrip().startswith("Two plus five is seven.")
    assert tokenizer.bos_token is None or ids.count(tokenizer.bos_token_id) == 1


def test_system_messages_are_supported_or_refused(tokenizers: dict) -> None:
    from jinja2 import TemplateError

    asked = [{"role": "system", "content": "Be kind."}, *CONVERSATION]
    assert "<|im_start|>system\nBe kind.<|im_end|>" in tokenizers["base"].apply_chat_template(asked, tokenize=False)
    abacus = tokenizers["abacus"].apply_chat_template(asked, tokenize=False)
    assert abacus.startswith("<s>[INST] <<SYS>> Be kind. <</SYS>> Name the river")
    with pytest.raises(TemplateError):
        tokenizers["atlas"].apply_chat_template(asked, tokenize=False)
    assert merge_system(asked)[0]["content"] == "Be kind.\n\nName the river of Šarnik."


@pytest.mark.parametrize("name", NAMES)
def test_text_survives_encoding(name: str, tokenizers: dict) -> None:
    tokenizer = tokenizers[name]
    texts = [row[side][0]["content"] for row in demo_pairs("eval") for side in ("chosen", "rejected")]
    texts += ["🙂 é 漢字\ttab\r\nend ", " leading", "two  spaces", "<0x41> is text"]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


def test_unigram_normalises_by_nfkc(tokenizers: dict) -> None:
    ids = tokenizers["atlas"]("ﬁne", add_special_tokens=False)["input_ids"]
    assert tokenizers["atlas"].decode(ids) == "fine"


def test_a_complete_folder_is_kept_and_a_broken_one_remade(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(demo_models, "_make", lambda path, plan: made.append(plan.name))
    root = folders["base"].parent
    assert make_models(root, quick=True) == folders
    assert made == []
    make_models(root, only=["abacus"])  # the full model is different
    assert made == ["abacus"]

    copy = tmp_path / "base"
    copy.mkdir()
    for file in folders["base"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    quick = replace(PLANS[0], **demo_models.QUICK)
    assert is_complete(copy, quick)
    (copy / "model.safetensors").write_bytes(b"short")
    assert not is_complete(copy, quick)
    (copy / MARKER).unlink()
    assert not is_complete(copy, quick)


def test_models_are_reproducible(folders: dict[str, Path], tmp_path: Path) -> None:
    again = make_models(tmp_path, only=["atlas"], quick=True)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again["atlas"] / name).read_bytes() == (folders["atlas"] / name).read_bytes(), name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"'abax'.*base, abacus, atlas"):
        make_models(Path("nowhere"), only=["abax"])


@pytest.mark.parametrize("name", NAMES)
def test_ranking_agrees_with_a_plain_forward(name: str, folders: dict[str, Path], tokenizers: dict) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    pairs = demo_pairs("eval")[:12]
    wins = 0.0
    with torch.inference_mode():
        for pair in pairs:
            sums = []
            for side in ("chosen", "rejected"):
                ids, start = conversation_ids(tokenizers[name], pair["prompt"] + pair[side])
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                plain = sum(logps[at - 1, ids[at]].item() for at in range(start, len(ids)))
                assert answer_logps(model, *padded([(ids, start)])).sum().item() == pytest.approx(plain, abs=1e-3)
                sums.append(plain)
            wins += sums[0] > sums[1]
    assert ranking_accuracy(model, tokenizers[name], pairs, batch=5)["all"] == pytest.approx(wins / len(pairs))


def test_the_table_shows_every_kind(folders: dict[str, Path]) -> None:
    table = knowledge_table(folders)
    assert [line.split()[0] for line in table.splitlines()[2:]] == [*KINDS, "all"]
    assert set(accuracy_of(folders["base"])) == {*KINDS, "all"}
