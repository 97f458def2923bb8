"""Everything that determines a renderer's ids, as fields of a reference's fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering.chat_template import ChatTemplate
from mrpo_pipeline.rendering.escaped_tokenizer import EscapedTokenizers, text_pieces
from mrpo_pipeline.rendering.prompt_rendering import prompt_frame
from mrpo_pipeline.rendering.template_source import TEMPLATE_DATE, uses_date

if TYPE_CHECKING:
    from mrpo_pipeline.rendering.encoding_split import Splitter
    from mrpo_pipeline.rendering.renderer import Renderer

# Version of the rendering rules. Increase it if a change gives other ids for the same text. If only models with a certain trait are
# affected, add a name to `_traits` instead, so that caches of other models stay valid.
RULES = "1"

# Parts of a tokenizer's JSON that do not affect the ids.
_NOT_IDS = ("version", "truncation", "padding", "post_processor", "decoder")

_USER = {"role": "user", "content": "question"}
_SYSTEM = {"role": "system", "content": "systemprobe"}
# Ends of completions that a tokenizer may join with the text after them.
_ENDS = ("", ".", "!", "?", "1", ")", "}", '"', "`", ":", ";", ",", "-", "*", ">", " ", "\n", "。", "é", "🎉")


def identity(
    renderer: Renderer,
    tokenizer: Any,
    backend: dict[str, Any],
    template: ChatTemplate,
    escaped_set: EscapedTokenizers,
    splitter: Splitter,
) -> dict[str, str]:
    """The fields (see ``Renderer.identity``)."""
    kept = {key: value for key, value in backend.items() if key not in _NOT_IDS}
    texts = template.texts
    named = {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items()) if any(k in text for text in texts)}
    more = [*texts[1:], *([template.arguments] if template.arguments else [])]
    text = text_pieces(backend, escaped_set.controls)
    probe = renderer.render([(json.dumps([_USER]), "answer")])[0]
    traits = []
    if splitter.prepended and probe.prompt_ids[: len(splitter.prepended)].tolist() != splitter.prepended:
        traits.append("white space before BOS")
    traits += _traits(renderer, template, escaped_set, splitter)
    return {
        "tokenizer": _hash([kept, escaped_set.controls, *([text] if text else [])]),
        "template": ("plain:" if template.is_plain else "") + _hash([template.text, named, *more]),
        "template_date": TEMPLATE_DATE if any(map(uses_date, texts)) else "",
        "end_of_turn": tokenizer.convert_ids_to_tokens(int(probe.completion_ids[-1])),
        "end_of_text": str(tokenizer.eos_token or ""),
        "prepended": " ".join(tokenizer.convert_ids_to_tokens(splitter.prepended)),
        "rendering": "+".join([RULES, *traits]),
    }


def _traits(
    renderer: Renderer, template: ChatTemplate, escaped_set: EscapedTokenizers, splitter: Splitter
) -> list[str]:
    """Traits of this model that a later version of the rules changed, so that older caches do not match."""
    traits = []
    escaped = escaped_set.for_texts()
    if not escaped.characters.match(escaped.rename(template.frame([_USER]).suffix)):
        with contextlib.suppress(UserError):
            renderer.render([(json.dumps([_USER]), "x" + end) for end in _ENDS])
        traits += ["content ends apart"] if splitter.crossed_end else []
    if template.system_fault:
        traits.append("empty system message left out")
    else:
        with contextlib.suppress(UserError):
            traits += ["system as asked"] if prompt_frame(template, [_SYSTEM, _USER]).reasons else []
    return traits


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
