"""Ids depend on content only: independent of file and order, different for different content."""

import hashlib
import json
import struct

from hypothesis import given
from hypothesis import strategies as st

from mrpo_pipeline.pairs import completion_id, dump_prompt, pair_id, parse_prompt

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def by_hand(*parts: str) -> str:
    data = b"".join(struct.pack("<Q", len(part.encode())) + part.encode() for part in parts)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def test_ids_do_not_change_between_releases() -> None:
    # Caches are keyed by these ids: a change here orphans every cache.
    prompt = dump_prompt([{"role": "user", "content": "Tea? \u00e9"}])
    assert prompt == '[{"role":"user","content":"Tea? \u00e9"}]'
    assert completion_id(prompt, "yes") == by_hand("completion", prompt, "yes") == "83ddbbcfd536b5b8f45edee30076e754"
    assert pair_id(prompt, "yes", "no") == by_hand("pair", prompt, "yes", "no") == "6c436dfe6e1eda9390a06d54458551e5"


def test_key_order_and_other_keys_of_a_message_do_not_matter() -> None:
    one = dump_prompt([{"role": "user", "content": "a"}])
    assert dump_prompt([{"content": "a", "weight": 1, "role": "user"}]) == one


def test_raw_text_and_messages_have_different_forms() -> None:
    chat = dump_prompt([{"role": "user", "content": "a"}])
    raw = dump_prompt(chat)
    assert raw != chat
    assert parse_prompt(raw) == chat
    assert completion_id(raw, "x") != completion_id(chat, "x")


def test_ids_distinguish_kinds_and_sides() -> None:
    assert pair_id('"p"', "a", "b") != pair_id('"p"', "b", "a")
    assert completion_id("ab", "c") != completion_id("a", "bc")
    assert pair_id("p", "ab", "c") != pair_id("p", "a", "bc")


@given(st.one_of(TEXT, st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}))))
def test_a_prompt_round_trips(prompt: str | list[dict[str, str]]) -> None:
    text = dump_prompt(prompt)
    ordered = prompt if isinstance(prompt, str) else [{"role": m["role"], "content": m["content"]} for m in prompt]
    assert text == json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
    assert parse_prompt(text) == prompt
    assert dump_prompt(parse_prompt(text)) == text


@given(st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=3) | TEXT)
def test_the_canonical_form_is_what_json_writes(prompt: str | list[dict[str, str]]) -> None:
    ordered = prompt if isinstance(prompt, str) else [{"role": m["role"], "content": m["content"]} for m in prompt]
    assert dump_prompt(prompt) == json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
