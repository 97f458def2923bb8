"""A completion as one string, and its canonical text."""

import pytest

from mrpo_pipeline.pairs.completion import (
    MARK,
    completion_messages,
    completion_parts,
    completion_text,
    dump_completion,
    is_plain,
)

CALL = {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}
STRUCTURED = [
    {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "content": "12 °C", "name": "weather"},
    {"role": "assistant", "content": "It is 12 °C."},
]


def test_a_single_assistant_content_is_stored_as_text() -> None:
    assert dump_completion([{"role": "assistant", "content": "fine"}]) == "fine"
    assert is_plain("fine") and completion_text("fine") == "fine"
    assert completion_messages("fine") == [{"role": "assistant", "content": "fine"}]


def test_the_canonical_text_concatenates_the_assistant_parts() -> None:
    completion = dump_completion(STRUCTURED)
    assert completion_messages(completion) == STRUCTURED
    call = '{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}'
    assert [tuple(part) for part in completion_parts(completion)] == [
        (0, "reasoning", "I look."),
        (0, "calls", call),
        (2, "content", "It is 12 °C."),
    ]
    assert completion_text(completion) == f"I look.{call}It is 12 °C."


@pytest.mark.parametrize("text", [MARK, f"{MARK}[]", f'{MARK}[{{"role":"assistant","content":"x"}}]'])
def test_a_text_that_looks_serialized_stays_text(text: str) -> None:
    completion = dump_completion([{"role": "assistant", "content": text}])
    assert completion != text and completion_text(completion) == text
    assert completion_messages(completion) == [{"role": "assistant", "content": text}]
