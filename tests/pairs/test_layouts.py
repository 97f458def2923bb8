"""Layouts of known data sets: the better answer, worked by hand from each data set's documentation."""

import json
from pathlib import Path
from typing import Any

import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, parse_prompt, read_pairs
from mrpo_pipeline.pairs.layouts import LAYOUTS

Q, GOOD, BAD = "Name a river.", "The Loire.", "A hill."
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": Q}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def talk(text: str) -> list[dict[str, str]]:
    return [USER, answer(text)]


def read(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> PairTable:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return read_pairs(str(path), **options)


def only(table: PairTable) -> tuple[Any, str, str]:
    [pair] = table.frame.select("prompt", "chosen", "rejected").rows()
    return parse_prompt(pair[0]), pair[1], pair[2]


# layout → (row, prompt). GOOD is the better answer by the data set's documentation, BAD the other.
SIDES = {"chosen": GOOD, "rejected": BAD}
ROWS: list[tuple[str, dict[str, Any], Any]] = [
    ("truthy_dpo", {"system": "Be brief.", "prompt": Q, **SIDES}, [SYSTEM, USER]),
    ("system_prompt", {"system_prompt": "Be brief.", "prompt": [USER], **SIDES}, [SYSTEM, USER]),
    ("intel_orca_dpo", {"system": "Be brief.", "question": Q, **SIDES}, [SYSTEM, USER]),
    ("question", {"question": Q, **SIDES}, Q),
    ("distilabel_orca", {"system": "Be brief.", "input": Q, **SIDES}, [SYSTEM, USER]),
    ("input", {"input": Q, **SIDES}, Q),
    ("llamafactory_alpaca", {"instruction": "Translate.", "input": "Rain.", **SIDES}, "Translate.\n\nRain."),
    ("llamafactory_alpaca", {"instruction": Q, "input": "", "history": [["Hi", "Hello"]], "system": "Be brief.", **SIDES},
     [SYSTEM, {"role": "user", "content": "Hi"}, answer("Hello"), USER]),
    ("llamafactory_output", {"instruction": Q, "input": "", "output": [GOOD, BAD]}, Q),
    ("llamafactory_sharegpt", {"conversations": [{"from": "human", "value": Q}], "system": "Be brief.",
                               "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}},
     [SYSTEM, USER]),
    ("axolotl_chat_template", {"messages": [USER], "chosen": answer(GOOD), "rejected": answer(BAD)}, [USER]),
    ("ultrainteract", {"trajectory": [{"from": "user", "value": Q}], **SIDES}, [USER]),
    ("code_preference", {"input": Q, "accepted": GOOD, "rejected": BAD, "ID": 3}, Q),
    ("argilla", {"instruction": Q, "chosen_response": GOOD, "rejected_response": BAD, "chosen_avg_rating": 4.5}, Q),
    ("stack_exchange_paired", {"qid": 1, "question": Q, "response_j": GOOD, "response_k": BAD}, Q),
    ("step_dpo", {"prompt": Q, "initial_reason_steps": "", **SIDES}, None),  # see the test of answer prefixes
    # SHP: "labels: 1 if comment A is preferred to comment B, else 0"
    ("shp", {"history": Q, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 3, "score_B": 9}, Q),
    ("shp", {"history": Q, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_A": 9, "score_B": 3}, Q),
    # PKU-SafeRLHF: the id is the number of the better response
    ("pku_saferlhf", {"prompt": Q, "response_0": BAD, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 0}, Q),
    ("pku_saferlhf", {"prompt": Q, "response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 1}, Q),
    ("pku_saferlhf_safety", {"prompt": Q, "response_0": GOOD, "response_1": BAD, "safer_response_id": 0}, Q),
    # HelpSteer2 and 3: negative, response 1 is better; positive, response 2
    ("helpsteer2_preference", {"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": -1}, Q),
    ("helpsteer2_preference", {"prompt": Q, "response_1": BAD, "response_2": GOOD, "preference_strength": 3}, Q),
    # HelpSteer2 writes several turns as one text, with a marker before each but the first
    ("helpsteer2_preference", {"prompt": f"Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\n{Q}", "response_1": GOOD,
                               "response_2": BAD, "preference_strength": -2},
     [{"role": "user", "content": "Hi"}, answer("Hello"), USER]),
    ("helpsteer3", {"context": [USER], "response1": GOOD, "response2": BAD, "overall_preference": -3}, [USER]),
    ("helpsteer3", {"context": [USER], "response1": BAD, "response2": GOOD, "overall_preference": 1}, [USER]),
    ("arena", {"conversation_a": talk(BAD), "conversation_b": talk(GOOD), "winner": "model_b", "turn": 1}, [USER]),
    ("arena", {"conversation_a": talk(GOOD), "conversation_b": talk(BAD), "winner": "model_a", "turn": 1}, [USER]),
    ("arena_responses", {"prompt": Q, "response_a": BAD, "response_b": GOOD, "winner": "model_b"}, Q),
    ("arena_responses", {"prompt": Q, "response_a": GOOD, "response_b": BAD, "winner": "A"}, Q),
    ("arena_55k", {"prompt": json.dumps([Q]), "response_a": json.dumps([BAD]), "response_b": json.dumps([GOOD]),
                   "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, [USER]),
    # summarize_from_feedback: "choice" is the number of the better summary
    ("summarize_feedback", {"info": {"id": "t3", "post": Q, "title": "T", "subreddit": "x", "article": None},
                            "summaries": [{"text": BAD}, {"text": GOOD}], "choice": 1},
     f"SUBREDDIT: r/x\n\nTITLE: T\n\nPOST: {Q}\n\nTL;DR:"),
    ("webgpt", {"question": {"full_text": Q, "id": "1"}, "answer_0": BAD, "answer_1": GOOD, "score_0": -0.5, "score_1": 0.5}, Q),
    ("alpaca_farm", {"instruction": "Translate.", "input": "Rain.", "output_1": BAD, "output_2": GOOD, "preference": 2},
     "Translate.\n\nRain."),
    ("llmbar", {"input": Q, "output_1": GOOD, "output_2": BAD, "label": 1}, Q),
    ("preference_collection", {"orig_instruction": Q, "orig_response_A": BAD, "orig_response_B": GOOD, "orig_preference": "B"}, Q),
    ("unified_feedback", {"conv_A": talk(BAD), "conv_B": talk(GOOD), "conv_A_rating": 1.0, "conv_B_rating": 4.0}, [USER]),
    # ranks: 1 (NeMo-RL: 0) is the best; scores: the highest
    ("nectar", {"prompt": Q, "answers": [{"answer": BAD, "model": "m", "rank": 2.0}, {"answer": GOOD, "model": "n", "rank": 1.0}]}, Q),
    ("ultrafeedback", {"instruction": Q, "completions": [{"response": BAD, "overall_score": 2}, {"response": GOOD, "overall_score": 8.5}]},
     Q),
    ("nemo_rl", {"context": [USER], "completions": [{"rank": 1, "completion": [answer(BAD)]}, {"rank": 0, "completion": [answer(GOOD)]}]},
     [USER]),
    ("stack_exchange_preferences", {"question": Q, "answers": [{"text": BAD, "pm_score": -1}, {"text": GOOD, "pm_score": 3}]}, Q),
    ("armorm", {"prompt": Q, "all_generated_responses": [BAD, GOOD], "all_rm_scores": [0.1, 0.2]}, Q),
    ("openhermes_preferences", {"prompt": Q, "candidates_completions": [BAD, GOOD], "ranks": [2, 1]}, Q),
    ("distilabel_ratings", {"instruction": Q, "generations": [BAD, GOOD], "ratings": [1.0, 4.0]}, Q),
    ("hhh_alignment", {"input": Q, "targets": {"choices": [BAD, GOOD], "labels": [0, 1]}}, Q),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "prompt"), ROWS, ids=[f"{i}-{row[0]}" for i, row in enumerate(ROWS)])
def test_a_layout_is_detected_and_its_better_answer_is_chosen(
    tmp_path: Path, name: str, row: dict[str, Any], prompt: Any
) -> None:
    if prompt is None:
        return
    for options in ({}, {"layout": name}):
        table = read(tmp_path, row, **options)
        assert only(table) == (prompt, GOOD, BAD)
        assert f"layout {name} " in table.read_as[0]


def test_every_layout_has_a_row_worked_by_hand() -> None:
    assert {layout.name for layout in LAYOUTS} == {name for name, _, _ in ROWS}


def test_an_answer_prefix_is_prepended_to_both_completions(tmp_path: Path) -> None:
    answer_prefix = {"prompt": Q, "initial_reason_steps": "Step 1:", "chosen": " four.", "rejected": " five."}
    assert only(read(tmp_path, answer_prefix)) == (Q, "Step 1: four.", "Step 1: five.")
    chat = {"prompt": [USER, answer("Step 1:")], "chosen": [answer(" four.")], "rejected": [answer(" five.")]}
    table = read(tmp_path, chat)
    assert only(table) == ([USER], "Step 1: four.", "Step 1: five.")
    assert "is prepended to both answers" in table.read_as[0]
    with pytest.raises(UserError, match="prompt holds the answer"):
        read(tmp_path, {"prompt": talk(GOOD), "chosen": GOOD, "rejected": BAD})
    with pytest.raises(UserError, match="does not end in a user message"):
        read(tmp_path, chat, layout="as-is")


@pytest.mark.parametrize(
    ("row", "changes", "reasons"),
    [
        (ROWS[21][1], [{"preference_strength": 0}, {"preference_strength": None}], {"tie": 1, "no label": 1}),
        (ROWS[26][1], [{"winner": "tie"}, {"winner": "tie (bothbad)"}, {"winner": "both_bad"}, {"winner": None}],
         {"tie": 3, "no label": 1}),
        (ROWS[26][1], [{"conversation_a": [*talk("a"), *talk(GOOD)], "conversation_b": [*talk("b"), *talk(BAD)]}],
         {"earlier turns differ": 1}),
        (ROWS[30][1], [{"winner_model_b": 0, "winner_tie": 1}], {"tie": 1}),
        (ROWS[32][1], [{"score_0": 0, "score_1": 0}], {"tie": 1}),
        (ROWS[37][1], [{"answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 1}]}, {"answers": []}],
         {"tie": 1, "fewer than two answers": 1}),
    ],
)  # fmt: skip
def test_ties_and_rows_without_a_label_are_counted_by_reason(
    tmp_path: Path, row: dict[str, Any], changes: list[dict[str, Any]], reasons: dict[str, int]
) -> None:
    table = read(tmp_path, row, *({**row, **change} for change in changes))
    assert table.frame.height == 1
    assert table.skipped == reasons
    assert table.rows == 1 + len(changes)


@pytest.mark.parametrize(
    ("row", "change", "found"),
    [
        (ROWS[16][1], {"labels": 2}, "`labels` is a number (2); expected 1, 0"),
        (ROWS[21][1], {"preference_strength": -100}, "expected a number from -3 to 3"),
        (ROWS[26][1], {"winner": "model_c"}, "'model_c'"),
        (ROWS[30][1], {"winner_model_a": 1}, "expected one 1 and two 0"),
        (ROWS[33][1], {"preference": 1.5}, "expected 1, 2"),
    ],
)
def test_an_undocumented_label_is_an_error(
    tmp_path: Path, row: dict[str, Any], change: dict[str, Any], found: str
) -> None:
    with pytest.raises(UserError, match="unknown label") as caught:
        read(tmp_path, row, {**row, **change})
    assert found in str(caught.value)


def test_labels_written_as_text_are_the_same_labels(tmp_path: Path) -> None:
    for row, label in (
        (ROWS[16][1], {"labels": "0"}),
        (ROWS[16][1], {"labels": False}),
        (ROWS[22][1], {"preference_strength": "3"}),
    ):
        assert only(read(tmp_path, {**row, **label}))[1:] == (GOOD, BAD)


ARMORM = {"prompt": Q, "all_generated_responses": [GOOD, BAD, "Hm."], "all_rm_scores": [0.3, 0.2, 0.1],
          "chosen": talk(GOOD), "rejected": talk(BAD)}  # fmt: skip


def test_a_mapping_of_ranked_answers_overrides_chosen_and_rejected(tmp_path: Path) -> None:
    assert read(tmp_path, ARMORM).frame.height == 1
    assert (
        read(
            tmp_path, ARMORM, columns={"completions": "all_generated_responses", "scores": "all_rm_scores"}
        ).frame.height
        == 3
    )
    assert read(tmp_path, ARMORM, layout="armorm").frame.height == 3
    own = {"prompt": Q, "completions": [GOOD, BAD, "Hm."], "ranks": [1, 2, 3], **SIDES}
    assert read(tmp_path, own).frame.height == 1
    assert read(tmp_path, own, columns={"completions": "completions"}).frame.height == 3


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"scores": "all_rm_scores"}, {}, "no row has the column 'completions' that holds"),
        ({"completions": "all_generated_responses"}, {}, "no row has the column 'ranks' or 'scores'"),
        (
            {"completions": "all_generated_responses", "scores": "all_rm_scores", "chosen": "prompt"},
            {},
            "a row holds one or the other",
        ),
        ({"chosen": "rejected", "rejected": "chosen"}, {"layout": "armorm"}, "already defines the answer columns"),
        ({"system": "sistem"}, {}, "no row has the column 'sistem'"),
        ({"prompt": ["prompt", "contxt"]}, {}, "no row has the column 'contxt'"),
        ({"chosen": ["a", "b"]}, {}, "only `prompt` may join several columns"),
        ({}, {"layout": "armrom"}, "did you mean 'armorm'"),
        ({}, {"layout": "shp"}, "the layout shp needs `history`"),
    ],
)
def test_a_mapping_without_effect_is_an_error(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, ARMORM, columns=columns, **options)
    assert message in str(caught.value)


def test_columns_that_match_two_layouts_are_an_error(tmp_path: Path) -> None:
    row = {**ROWS[16][1], "context": [USER], "response1": GOOD, "response2": BAD, "overall_preference": -1}
    with pytest.raises(UserError, match="match the layouts shp and helpsteer3"):
        read(tmp_path, row)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": Q, "completion": GOOD, "label": True}, "KTO"),
        ({"messages": talk(GOOD), "kto_tag": True}, "KTO"),
        ({"prompt": Q, "completions": ["a", "b"], "labels": [True, False]}, "process reward"),
        ({"prompt": Q, "response": GOOD, "helpfulness": 4}, "single answers with ratings"),
        ({"instruction": Q, "output": GOOD}, "supervised fine-tuning"),
        ({"messages": talk(GOOD)}, "conversations without a second answer"),
    ],
)
def test_data_without_pairs_is_an_error_that_names_its_format(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match="Expected rows with chosen and rejected") as caught:
        read(tmp_path, row, on_bad_row="skip")
    assert why in str(caught.value)


def test_several_texts_on_one_side_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several completions: `rejected` holds 2 texts"):
        read(tmp_path, {"prompt": Q, "chosen": GOOD, "rejected": [BAD, "Hm."]})
