"""Prompts that the policy's own template has rendered are detected in any row."""

import json
from pathlib import Path

import pytest
from tiny_tokenizers import CHATML, LLAMA3, gpt2, llama3, qwen

from mrpo_pipeline.dataset.truncate import prepare
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import dump_prompt, read_pairs
from mrpo_pipeline.recipe import Limits
from mrpo_pipeline.rendering import Renderer, already_rendered_test

# Plain words of no known template family, with the tokenizer's control tokens.
OWN = CHATML.replace("<|im_start|>", "<|endoftext|>speaker ").replace("<|im_end|>", "<|endoftext|>")
PLAIN_WORDS = (
    "{% for m in messages %}{{ '=== ' + m['role'] + ' ===\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '=== assistant ===\\n' }}{% endif %}"
)


def rendered(tokenizer: object, text: str) -> str:
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("tokenizer", [qwen(CHATML), qwen(OWN), llama3(LLAMA3)], ids=["chatml", "own", "llama3"])
def test_raw_text_with_the_templates_control_tokens_is_a_rendering(tokenizer: object) -> None:
    is_rendered = already_rendered_test(Renderer(tokenizer))
    text = rendered(tokenizer, "Name a river.")
    assert is_rendered(dump_prompt(text))
    assert is_rendered(dump_prompt([{"role": "user", "content": text}]))
    for other in ("Name a river.", "", "Why does a template write " + text[:12] + "?", "\n\nHuman: a\n\nAssistant:"):
        assert not is_rendered(dump_prompt(other)), other
        assert not is_rendered(dump_prompt([{"role": "user", "content": other}])), other


def test_plain_word_markers_count_in_messages_only() -> None:
    tokenizer = gpt2(PLAIN_WORDS)
    is_rendered = already_rendered_test(Renderer(tokenizer))
    text = rendered(tokenizer, "Name a river.")
    assert is_rendered(dump_prompt([{"role": "user", "content": text}]))
    assert not is_rendered(dump_prompt("=== user ===\nName a river."))
    assert not already_rendered_test(Renderer(gpt2(None)))(
        dump_prompt([{"role": "user", "content": "User:\na\n\nAssistant:\n"}])
    )


def test_a_rendered_prompt_stops_the_run_or_is_skipped(tmp_path: Path) -> None:
    tokenizer = qwen(OWN)
    rows = [{"prompt": f"Q{i}", "chosen": "a", "rejected": "b"} for i in range(30)]
    rows.append({"prompt": rendered(tokenizer, "Q"), "chosen": "a", "rejected": "b"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    table, renderer = read_pairs(str(path)), Renderer(tokenizer)
    limits = Limits.model_validate({})
    with pytest.raises(
        UserError, match=r"row 30: the prompt is rendered by the policy's own chat template \(so are 1 of 31"
    ):
        prepare(table, renderer, limits)
    assert prepare(table, renderer, limits, on_bad_row="skip").counts.dropped == {
        "rendered by the policy's chat template": 1
    }
    assert prepare(table, renderer, limits, refuse_rendered=False).frame.height == 31
