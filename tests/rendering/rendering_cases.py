"""Shared texts and templates of the rendering tests."""

from hypothesis import strategies as st
from tiny_tokenizers import CHATML, GEMMA, KINDS, LLAMA2, LLAMA3, MISTRAL, PHI3, QWEN3, VICUNA

from mrpo_pipeline.pairs.identity import dump_prompt
from mrpo_pipeline.rendering import PLAIN_TEMPLATE

# Output of each template after the last answer, up to and including the end-of-turn token.
TURN_ENDS = {
    CHATML: "<|im_end|>",
    QWEN3: "<|im_end|>",
    LLAMA2: " </s>",
    LLAMA3: "<|eot_id|>",
    GEMMA: "<end_of_turn>",
    MISTRAL: "</s>",
    PHI3: "<|end|>",
}
TRIMMING = {LLAMA2, LLAMA3, GEMMA}

TEXTS = [
    "fine",
    "How are you today? I am fine, thank you!",
    "日本語のテキスト 中文",
    "👨‍👩‍👧‍👦🎉 party 👍🏽!",
    "🎉",
    "e\u0301clair n\u0303o é",
    "½ cup ﬁne Ｆｕｌｌ ㌔ ﷺ",
    "a\tb\r\nc\n\n\nd",
    " leading",
    "trailing ",
    "  two spaces  ",
    "\n\nnew lines first\n",
    "\ttab first",
    "\u0301mark first",
    "<think>\nhm\n</think>\n\nyes",
    "a  b   c    d",
    "x\u00a0y\u3000z\u200bw",
]

PIECES = ["fine", "How", " are", "日本", "中", "🎉", "👨‍👩‍👧‍👦", "👍🏽", "e\u0301", "\u0301", "é", "½", "ﬁ", "Ｆ"]
PIECES += [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    ".",
    ",",
    "?",
    "12",
    "'s",
    "\u00a0",
    "ß",
    "İ",
    "\U00100000",
    "각",
    "\u1100\u1161",
]
CONTROLS = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<|eot_id|>",
    "<bos>",
    "<eos>",
]
CONTROLS += [
    "<|start_header_id|>",
    "<|begin_of_text|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<|user|>",
    "<|end|>",
    "[INST]",
]

plain_text = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)
hostile_text = st.lists(st.sampled_from(PIECES + CONTROLS), min_size=1, max_size=12).map("".join)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat(*texts: str) -> str:
    """Canonical prompt of alternating user and assistant messages."""
    roles = ("user", "assistant")
    return dump_prompt([{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)])


def templated_kinds() -> list[str]:
    return [kind for kind in KINDS if KINDS[kind]().chat_template]


__all__ = ["CONTROLS", "KINDS", "PLAIN_TEMPLATE", "TEXTS", "TRIMMING", "TURN_ENDS", "VICUNA"]
