"""Columns of well-known preference data sets.

A layout names the columns of the prompt and the answers, and the meaning of a label, rank or score as the data set
documents it. Paths follow `field_paths.get_path`; `a|b` is the first of the two that the file has.
"""

from dataclasses import dataclass, field

from mrpo_pipeline.pairs.labels import HigherScore, Label, NamedLabel, OneHotLabel, SignedLabel


@dataclass(frozen=True)
class Sides:
    """One column with the better answer, and one with the worse."""

    chosen: str = "chosen"
    rejected: str = "rejected"


@dataclass(frozen=True)
class Choice:
    """Two answers and a label."""

    first: str
    second: str
    label: Label


@dataclass(frozen=True)
class Ranked:
    """A list of answers: objects that hold text and rank or score (`text` is the key of the text), or parallel lists.

    `ranks`: lower is better; `scores`: higher is better.
    """

    answers: str
    text: str = ""
    ranks: str = ""
    scores: str = ""


@dataclass(frozen=True)
class Layout:
    """Columns of one data set.

    Attributes:
        needs: columns that must hold values; they identify the layout.
        without: columns that must be absent or empty.
        prompt: columns joined by a blank line; empty if the answers are complete conversations. A part with braces is a
            format string with one path; it is omitted if that value is empty.
        closing: last line of the prompt.
        history: earlier turns as [user text, assistant text] pairs.
        answer_prefix: column with the beginning of both answers, prepended to each.
        turns: prompt and answers are lists of texts, one per turn.
        turn_marks: regular expression of the marker before every turn of a prompt string except the first; its group is the role.
        expected_errors: (error reason, reason to count the row under) for rows that the data set contains by design.
        notice: information for the user.
    """

    name: str
    about: str
    needs: tuple[str, ...]
    answers: Sides | Choice | Ranked = field(default_factory=Sides)
    prompt: tuple[str, ...] = ("prompt",)
    closing: str = ""
    system: str = ""
    history: str = ""
    answer_prefix: str = ""
    without: tuple[str, ...] = ()
    turns: bool = False
    turn_marks: str = ""
    expected_errors: tuple[tuple[str, str], ...] = ()
    notice: str = ""


AS_IS = "as-is"
_SIDES = ("chosen", "rejected")
_ARENA = NamedLabel(
    "winner",
    ("model_a", "response_a", "a", "A"),
    ("model_b", "response_b", "b", "B"),
    ("tie", "tie (bothbad)", "both_bad", "bothbad"),
)
_EARLIER_TURNS = (("several messages", "earlier turns differ"), ("no prompt", "first messages differ"))
_TIED = (("no strict preference", "tie"), ("too few completions", "fewer than two answers"))

LAYOUTS = (
    # Chosen and rejected, and the prompt in other columns.
    Layout("truthy_dpo", "system, prompt, chosen, rejected", ("system", "prompt", *_SIDES), system="system"),
    Layout("system_prompt", "system_prompt or system_message, prompt, chosen, rejected",
           ("system_prompt|system_message", "prompt", *_SIDES), system="system_prompt|system_message"),
    Layout("intel_orca_dpo", "system, question, chosen, rejected", ("system", "question", *_SIDES),
           prompt=("question",), system="system", without=("prompt",)),
    Layout("question", "question (or query), chosen, rejected", ("question|query", *_SIDES), prompt=("question|query",),
           without=("prompt", "system", "initial_reason_steps")),
    Layout("distilabel_orca", "system, input, chosen, rejected", ("system", "input", *_SIDES), prompt=("input",),
           system="system", without=("prompt", "instruction", "question")),
    Layout("input", "input, chosen, rejected", ("input", *_SIDES), prompt=("input",),
           without=("prompt", "instruction", "question|query", "system")),
    Layout("llamafactory_alpaca", "instruction, input, chosen, rejected; also system and history",
           ("instruction", *_SIDES), prompt=("instruction", "input"), system="system", history="history",
           without=("prompt",)),
    Layout("llamafactory_output", "instruction, input, output: a list of the better and the worse answer",
           ("instruction", "output[0]", "output[1]"), Sides("output[0]", "output[1]"), prompt=("instruction", "input"),
           system="system", history="history", without=("prompt", "output[2]", "chosen")),
    Layout("llamafactory_sharegpt", "conversations (from, value), chosen, rejected; also system",
           ("conversations", *_SIDES), prompt=("conversations",), system="system", without=("prompt", "chosen[1]")),
    Layout("axolotl_chat_template", "messages, and one message in chosen and rejected", ("messages", *_SIDES),
           prompt=("messages",), system="system", without=("prompt", "chosen[1]")),
    Layout("ultrainteract", "trajectory, chosen, rejected", ("trajectory", *_SIDES), prompt=("trajectory",),
           without=("prompt",)),
    Layout("code_preference", "input, accepted, rejected", ("input", "accepted", "rejected"),
           Sides("accepted", "rejected"), prompt=("input",), without=("chosen", "prompt")),
    Layout("argilla", "instruction, chosen_response, rejected_response",
           ("instruction|prompt", "chosen_response", "rejected_response"), Sides("chosen_response", "rejected_response"),
           prompt=("instruction|prompt",)),
    Layout("stack_exchange_paired", "question, response_j (better), response_k", ("question", "response_j", "response_k"),
           Sides("response_j", "response_k"), prompt=("question",)),
    Layout("step_dpo", "prompt, initial_reason_steps: how both answers begin, chosen, rejected",
           ("prompt|question", "initial_reason_steps", *_SIDES), prompt=("prompt|question",),
           answer_prefix="initial_reason_steps",
           notice="both answers begin with `initial_reason_steps`"),
    # Two answers and a label.
    Layout("shp", "history, human_ref_A, human_ref_B, labels", ("history", "human_ref_A", "human_ref_B", "labels"),
           Choice("human_ref_A", "human_ref_B", NamedLabel("labels", ("1",), ("0",))), prompt=("history",)),
    Layout("pku_saferlhf", "prompt, response_0, response_1, better_response_id (the more helpful one)",
           ("prompt", "response_0", "response_1", "better_response_id"),
           Choice("response_0", "response_1", NamedLabel("better_response_id", ("0",), ("1",)))),
    Layout("pku_saferlhf_safety", "prompt, response_0, response_1, safer_response_id (the safer one)",
           ("prompt", "response_0", "response_1", "safer_response_id"),
           Choice("response_0", "response_1", NamedLabel("safer_response_id", ("0",), ("1",))),
           without=("better_response_id",)),
    Layout("helpsteer2_preference", "prompt, response_1, response_2, preference_strength (-3 to 3)",
           ("prompt", "response_1", "response_2", "preference_strength"),
           Choice("response_1", "response_2", SignedLabel("preference_strength")),
           turn_marks=r"\n?<extra_id_1>(User|Assistant)\n"),
    Layout("helpsteer3", "context, response1, response2, overall_preference (-3 to 3)",
           ("context", "response1", "response2", "overall_preference"),
           Choice("response1", "response2", SignedLabel("overall_preference")), prompt=("context",)),
    Layout("arena", "conversation_a, conversation_b, winner (model_a, model_b, tie)",
           ("conversation_a", "conversation_b", "winner"), Choice("conversation_a", "conversation_b", _ARENA), prompt=(),
           expected_errors=_EARLIER_TURNS),
    Layout("arena_responses", "prompt, response_a, response_b, winner (model_a, model_b, tie)",
           ("prompt", "response_a", "response_b", "winner"), Choice("response_a", "response_b", _ARENA)),
    Layout("arena_55k", "prompt, response_a, response_b as lists of turns; winner_model_a, winner_model_b, winner_tie",
           ("prompt", "response_a", "response_b", "winner_model_a"),
           Choice("response_a", "response_b", OneHotLabel("winner_model_a", "winner_model_b", "winner_tie")),
           turns=True, expected_errors=_EARLIER_TURNS),
    Layout("summarize_feedback", "info (post or article), summaries, choice",
           ("info", "summaries[0].text", "summaries[1].text", "choice"),
           Choice("summaries[0].text", "summaries[1].text", NamedLabel("choice", ("0",), ("1",))),
           prompt=("SUBREDDIT: r/{info.subreddit}", "TITLE: {info.title}", "POST: {info.post}", "{info.article}"),
           closing="TL;DR:"),
    Layout("webgpt", "question, answer_0, answer_1, score_0, score_1",
           ("question", "answer_0", "answer_1", "score_0", "score_1"),
           Choice("answer_0", "answer_1", HigherScore("score_0", "score_1")), prompt=("question.full_text|question",)),
    Layout("alpaca_farm", "instruction, input, output_1, output_2, preference (1 or 2)",
           ("instruction", "output_1", "output_2", "preference"),
           Choice("output_1", "output_2", NamedLabel("preference", ("1",), ("2",))), prompt=("instruction", "input")),
    Layout("llmbar", "input (or instruction), output_1, output_2, label (1 or 2)",
           ("input|instruction", "output_1", "output_2", "label"),
           Choice("output_1", "output_2", NamedLabel("label", ("1",), ("2",))), prompt=("instruction", "input")),
    Layout("preference_collection", "orig_instruction, orig_response_A, orig_response_B, orig_preference (A or B)",
           ("orig_instruction", "orig_response_A", "orig_response_B", "orig_preference"),
           Choice("orig_response_A", "orig_response_B", NamedLabel("orig_preference", ("A",), ("B",))),
           prompt=("orig_instruction",)),
    Layout("unified_feedback", "conv_A, conv_B, conv_A_rating, conv_B_rating",
           ("conv_A", "conv_B", "conv_A_rating", "conv_B_rating"),
           Choice("conv_A", "conv_B", HigherScore("conv_A_rating", "conv_B_rating")), prompt=(), expected_errors=_EARLIER_TURNS),
    # Several answers with ranks or scores.
    Layout("nectar", "prompt, answers: objects with answer and rank", ("prompt", "answers[0].answer", "answers[0].rank"),
           Ranked("answers", text="answer", ranks="rank"), expected_errors=_TIED),
    Layout("ultrafeedback", "instruction, completions: objects with response and overall_score",
           ("completions[0].response", "completions[0].overall_score"),
           Ranked("completions", text="response", scores="overall_score"), prompt=("instruction|prompt",), expected_errors=_TIED,
           notice="the `custom_system_prompt` of single answers is dropped: a pair shares the instruction only"),
    Layout("nemo_rl", "context (or prompt), completions: objects with completion and rank",
           ("completions[0].completion", "completions[0].rank"), Ranked("completions", text="completion", ranks="rank"),
           prompt=("context|prompt",), expected_errors=_TIED),
    Layout("stack_exchange_preferences", "question, answers: objects with text and pm_score",
           ("question", "answers[0].text", "answers[0].pm_score"), Ranked("answers", text="text", scores="pm_score"),
           prompt=("question",), expected_errors=_TIED),
    Layout("armorm", "prompt, all_generated_responses, all_rm_scores",
           ("prompt", "all_generated_responses", "all_rm_scores"),
           Ranked("all_generated_responses", scores="all_rm_scores"), expected_errors=_TIED),
    Layout("openhermes_preferences", "prompt, candidates_completions, ranks",
           ("prompt", "candidates_completions", "ranks"), Ranked("candidates_completions", ranks="ranks"), expected_errors=_TIED),
    Layout("distilabel_ratings", "instruction (or input), generations, ratings (or rating)",
           ("instruction|input", "generations[1]", "ratings[1]|rating[1]"),
           Ranked("generations", scores="ratings|rating"), prompt=("instruction|input",), expected_errors=_TIED),
    Layout("hhh_alignment", "input, targets: choices and labels",
           ("input", "targets.choices", "targets.labels"), Ranked("targets.choices", scores="targets.labels"),
           prompt=("input",), expected_errors=_TIED),
)  # fmt: skip
BY_NAME = {layout.name: layout for layout in LAYOUTS}


@dataclass(frozen=True)
class NoPairs:
    """A common data format that has no preference pairs."""

    needs: tuple[str, ...]
    without: tuple[str, ...]
    why: str


# Checked in this order, only for files without chosen and rejected.
NO_PAIRS = (
    NoPairs(("completions", "labels"), ("ranks", "scores"), "steps of one answer with a label each (a process reward model's data)"),
    NoPairs(("prompt", "completion", "label"), (), "single answers with a label (unpaired, KTO's form)"),
    NoPairs(("messages|conversations|instruction", "kto_tag|label"), (), "single answers with a label (unpaired, KTO's form)"),
    NoPairs(("prompt", "response", "helpfulness"), (), "single answers with ratings"),
    NoPairs(("prompt", "completion"), (), "single answers (supervised fine-tuning's form)"),
    NoPairs(("instruction", "output|response"), (), "single answers (supervised fine-tuning's form)"),
    NoPairs(("messages|conversations",), (), "conversations without a second answer (supervised fine-tuning's form)"),
)  # fmt: skip
NO_PAIRS_HINT = (
    "Expected rows with chosen and rejected, two answers and a label, or several answers with ranks or scores. Pair up the "
    "answers that share a prompt, or use a preference data set."
)

PROMPT_PARTS = frozenset({
    "system", "system_prompt", "system_message", "sys_prompt", "custom_system_prompt",
    "instruction", "instructions", "input", "inputs", "question", "query",
    "history", "context", "dialogue", "dialog", "conversation", "conversations", "messages", "trajectory",
    "passage", "document", "documents", "article", "post", "background",
    "initial_reason_steps", "initial_reasoning_steps", "initial_reasoning", "prefix", "partial_response", "response_prefix",
})  # fmt: skip
"""Columns, in lower case, that well-known data sets use for a part of the prompt or the beginning of the answer."""
