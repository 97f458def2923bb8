"""Row shapes: explicit and implicit prompts, repeated conversations, K-wise rows, mapped columns."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, dump_prompt, parse_prompt, read_pairs

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> PairTable:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_pairs(str(path), **options)


def only(table: PairTable) -> tuple[Any, str, str]:
    [pair] = table.frame.select("prompt", "chosen", "rejected").rows()
    return parse_prompt(pair[0]), pair[1], pair[2]


CHAT = [SYSTEM, user("Hi"), assistant("Hello"), user("Tea?")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        # explicit prompts
        ({"prompt": "Tea?", "chosen": "yes", "rejected": "no"}, "Tea?"),
        ({"prompt": CHAT, "chosen": [assistant("yes")], "rejected": [assistant("no")]}, CHAT),
        ({"prompt": CHAT, "chosen": "yes", "rejected": "no"}, CHAT),
        ({"prompt": "Tea?", "chosen": [assistant("yes")], "rejected": [assistant("no")]}, [user("Tea?")]),
        # the complete conversation repeated
        ({"prompt": CHAT, "chosen": [*CHAT, assistant("yes")], "rejected": [*CHAT, assistant("no")]}, CHAT),
        ({"prompt": "Tea?", "chosen": [*CHAT, assistant("yes")], "rejected": [*CHAT, assistant("no")]}, CHAT),
        ({"prompt": "Hi", "chosen": [*CHAT, assistant("yes")], "rejected": [*CHAT, assistant("no")]}, CHAT),
        ({"prompt": " Tea?\n", "chosen": [user("Tea?"), assistant("yes")], "rejected": [user("Tea?"), assistant("no")]},
         [user("Tea?")]),
        ({"prompt": CHAT, "chosen": [*CHAT, assistant("yes")], "rejected": [assistant("no")]}, CHAT),
        ({"prompt": "\n\nHuman: Tea?\n\nAssistant: ", "chosen": "\n\nHuman: Tea?\n\nAssistant: yes",
          "rejected": "\n\nHuman: Tea?\n\nAssistant: no"}, "\n\nHuman: Tea?\n\nAssistant: "),
        # implicit prompts
        ({"chosen": [*CHAT, assistant("yes")], "rejected": [*CHAT, assistant("no")]}, CHAT),
        ({"prompt": None, "chosen": [user("Tea?"), assistant("yes")], "rejected": [user("Tea?"), assistant("no")]},
         [user("Tea?")]),
        # content in parts
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Te"}, {"type": "text", "text": "a?"}]}],
          "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "yes", "image": None}]}],
          "rejected": [assistant("no")]}, [user("Tea?")]),
    ],
)  # fmt: skip
def test_prompt_and_completions_are_found(tmp_path: Path, row: dict[str, Any], prompt: Any) -> None:
    table = read(tmp_path, row)
    assert only(table) == (prompt, "yes", "no")
    assert table.notices == ()


@pytest.mark.parametrize(
    ("shared", "chosen", "rejected"),
    [
        ("\n\nHuman: Tea?\n\nAssistant:", " Yes, tea.", " Yes, milk."),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d", " e"),
        ("Human: Tea?\nAssistant:", " The sky", " The sea"),
        ("A chat. USER: Tea? ASSISTANT:", " yes</s>", " no</s>"),
        ("### Human: Tea?\n### Assistant:", " yes", " no"),
        ("Below is a task.\n\n### Instruction:\nTea?\n\n### Response:", "\nyes", "\nno"),
        # a heading of another family in the shared words of the answer is content
        ("\n\nHuman: a template\n\nAssistant:", " Sure:\n### Response:\nx", " Sure:\n### Response:\ny"),
        # a word in the text is not a marker
        ("\n\nHuman: q\n\nAssistant:", " My Assistant: Bob", " My Assistant: Eve"),
    ],
)
def test_a_transcript_is_split_at_the_last_shared_assistant_marker(
    tmp_path: Path, shared: str, chosen: str, rejected: str
) -> None:
    # Both answers begin with the same words, which a plain common prefix would move into the prompt.
    assert only(read(tmp_path, {"chosen": shared + chosen, "rejected": shared + rejected})) == (
        shared,
        chosen,
        rejected,
    )


def test_a_marker_on_one_side_does_not_end_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt"):
        read(tmp_path, {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssist: b"})


def test_completions_that_repeat_a_raw_prompt_keep_it_with_a_notice(tmp_path: Path) -> None:
    table = read(tmp_path, {"prompt": "Hello", "chosen": "Hello! How are you?", "rejected": "Hello there"})
    assert only(table) == ("Hello", "Hello! How are you?", "Hello there")
    assert len(table.notices) == 1
    assert "1 row: every completion begins with the prompt string" in table.notices[0]


def test_a_repeated_prompt_is_removed_once(tmp_path: Path) -> None:
    prompt = "\n\nHuman: echo\n\nAssistant:"
    row = {"prompt": prompt, "chosen": prompt + prompt + "a", "rejected": prompt + "b"}
    assert only(read(tmp_path, row)) == (prompt, prompt + "a", "b")
    chat = [user("x"), assistant("y"), user("z")]
    row = {"prompt": chat, "chosen": [*chat, *chat, assistant("a")], "rejected": [*chat, assistant("b")]}
    with pytest.raises(UserError, match=r"several messages: `chosen` holds 4 messages"):
        read(tmp_path, row)


def test_the_last_message_of_the_shorter_side_is_never_prompt(tmp_path: Path) -> None:
    short = [user("a"), assistant("b")]
    with pytest.raises(UserError, match=r"several messages: `rejected` holds 3 messages"):
        read(tmp_path, {"chosen": short, "rejected": [*short, user("c"), assistant("d")]})


def test_strings_messages_reads_a_user_turn_and_an_assistant_turn(tmp_path: Path) -> None:
    row = {"prompt": "Tea?", "chosen": "yes", "rejected": "no"}
    assert only(read(tmp_path, row, strings="messages")) == ([user("Tea?")], "yes", "no")
    as_text, as_chat = read(tmp_path, row), read(tmp_path, row, strings="messages")
    assert as_text.frame["pair_id"][0] != as_chat.frame["pair_id"][0]
    marked = read(tmp_path, {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, strings="messages")
    assert "holds an assistant marker" in marked.notices[0]


@pytest.mark.parametrize(
    "columns",
    [{"ranks": [3, 1, 7, 2, 6, 5, 4]}, {"scores": [0.5, 9, -7, 8.5, -6, -5, 0]}],
    ids=["ranks: lower is better", "scores: higher is better"],
)
@pytest.mark.parametrize("form", ["strings", "lists", "messages", "conversations"])
def test_seven_strict_completions_make_21_pairs(tmp_path: Path, columns: dict[str, Any], form: str) -> None:
    texts = [f"answer {index}" for index in range(7)]
    completions: list[Any] = {
        "strings": texts,
        "lists": [[assistant(text)] for text in texts],
        "messages": [assistant(text) for text in texts],
        "conversations": [[user("Q"), assistant(text)] for text in texts],
    }[form]
    frame = read(tmp_path, {"prompt": "Q", "completions": completions, **columns, "id": 7}).frame
    assert frame["pair_in_row"].to_list() == list(range(21))
    assert set(frame["row"]) == {0}
    assert set(frame["id"]) == {"7"}
    assert set(frame["prompt"]) == {dump_prompt("Q" if form == "strings" else [user("Q")])}
    best_first = [1, 3, 0, 6, 5, 4, 2]  # by hand, from the ranks; the scores say the same
    expected = []
    for one, other in combinations(range(7), 2):
        better, worse = sorted((one, other), key=best_first.index)
        expected.append((texts[better], texts[worse]))
    assert frame.select("chosen", "rejected").rows() == expected


def test_ties_and_equal_completions_make_no_pair(tmp_path: Path) -> None:
    row = {"prompt": "Q", "completions": ["a", "b", "c", "a"], "ranks": [1, 1, 2, 2]}
    table = read(tmp_path, row)
    # a = b > c = a: (a, c), (a, a) is not a pair, (b, c), (b, a)
    assert table.frame.select("chosen", "rejected").rows() == [("a", "c"), ("b", "c"), ("b", "a")]
    assert table.frame["pair_in_row"].to_list() == [0, 1, 2]
    assert "two equal completions" in table.notices[0]


def test_chosen_and_rejected_take_precedence_over_completions(tmp_path: Path) -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "completions": ["c", "d"], "ranks": [1, 2]}
    frame = read(tmp_path, row).frame
    assert frame.height == 1
    assert json.loads(frame["extra"][0]) == {"completions": ["c", "d"], "ranks": [1, 2]}


def test_columns_are_mapped_and_the_rest_is_kept(tmp_path: Path) -> None:
    row = {"instruction": "Q", "output_a": "a", "output_b": "b", "prompt": "other", "key": 3, "score": {"x": [1, None]}}
    columns = {"prompt": "instruction", "chosen": "output_a", "rejected": "output_b", "id": "key"}
    table = read(tmp_path, row, columns=columns)
    assert only(table) == ("Q", "a", "b")
    assert table.frame["id"][0] == "3"
    assert json.loads(table.frame["extra"][0]) == {"prompt": "other", "score": {"x": [1, None]}}


def test_a_mapped_column_that_no_row_has_is_named_with_its_nearest(tmp_path: Path) -> None:
    row = {"instruction": "Q", "chosen": "a", "rejected": "b"}
    with pytest.raises(
        UserError, match=r"'instructions', to which `columns` maps 'prompt'; did you mean 'instruction'"
    ):
        read(tmp_path, row, columns={"prompt": "instructions"})
    with pytest.raises(UserError, match=r"not a column of pairs; did you mean 'prompt'"):
        read(tmp_path, row, columns={"promt": "instruction"})
    with pytest.raises(UserError, match=r"available: 'instruction', 'chosen', 'rejected'"):
        read(tmp_path, row, columns={"prompt": "zzzz"}, on_bad_row="skip")


def test_an_identity_mapping_requires_nothing(tmp_path: Path) -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    columns = {name: name for name in ("prompt", "chosen", "rejected", "id")}
    assert read(tmp_path, row, columns=columns).frame["id"].to_list() == [None]


def test_a_mapped_column_may_come_late(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b"}] * 5000 + [{"q": "P", "chosen": "a", "rejected": "b"}]
    table = read(tmp_path, *rows, columns={"prompt": "q"}, on_bad_row="skip")
    assert table.frame["row"].to_list() == [5000]


def test_repeated_pairs_are_kept_and_counted(tmp_path: Path) -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    table = read(tmp_path, row, row, {**row, "chosen": "c"})
    assert table.frame.height == 3
    assert table.frame["pair_id"].n_unique() == table.frame.height - 1
