"""What decides a renderer's ids, as fields of a reference's fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering.escaped_tokenizer import CloneSet, text_pieces
from mrpo_pipeline.rendering.prompt_frame import prompt_frame
from mrpo_pipeline.rendering.template_text import TEMPLATE_DATE, uses_date
from mrpo_pipeline.rendering.templates import ChatTemplate

if TYPE_CHECKING:
    from mrpo_pipeline.rendering.renderer import Renderer
    from mrpo_pipeline.rendering.split import Splitter

# Goes into the identity: raise it when a change gives other ids for the same text. A change that gives other ids for models
# with some trait alone adds the trait's name for those (`_traits`): the caches of other models stay readable.
RULES = "1"

# Parts of a tokenizer's JSON that do not change how text becomes ids here.
_NOT_IDS = ("version", "truncation", "padding", "post_processor", "decoder")

_USER = {"role": "user", "content": "question"}
_SYSTEM = {"role": "system", "content": "systemprobe"}
# Ends of completions behind which a tokenizer may go on with what follows.
_ENDS = ("", ".", "!", "?", "1", ")", "}", '"', "`", ":", ";", ",", "-", "*", ">", " ", "\n", "。", "é", "🎉")


def identity(
    renderer: Renderer,
    tokenizer: Any,
    backend: dict[str, Any],
    template: ChatTemplate,
    clones: CloneSet,
    splitter: Splitter,
) -> dict[str, str]:
    """The fields (see ``Renderer.identity``)."""
    kept = {key: value for key, value in backend.items() if key not in _NOT_IDS}
    named = {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items()) if k in template.text}
    arguments = template.arguments
    text = text_pieces(backend, clones.controls)
    probe = renderer.render([(json.dumps([_USER]), "answer")])[0]
    traits = []
    if splitter.prepended and probe.prompt_ids[: len(splitter.prepended)].tolist() != splitter.prepended:
        traits.append("white space before BOS")
    traits += _traits(renderer, template, clones, splitter)
    return {
        "tokenizer": _hash([kept, clones.controls, *([text] if text else [])]),
        "template": ("plain:" if template.is_plain else "")
        + _hash([template.text, named, *([arguments] if arguments else [])]),
        "template_date": TEMPLATE_DATE if uses_date(template.text) else "",
        "end_of_turn": tokenizer.convert_ids_to_tokens(int(probe.completion_ids[-1])),
        "end_of_text": str(tokenizer.eos_token or ""),
        "prepended": " ".join(tokenizer.convert_ids_to_tokens(splitter.prepended)),
        "rendering": "+".join([RULES, *traits]),
    }


def _traits(renderer: Renderer, template: ChatTemplate, clones: CloneSet, splitter: Splitter) -> list[str]:
    """What of this model is read in another way than by the first rules, so that older numbers are not taken for these."""
    traits = []
    clone = clones.clone_for()
    if not clone.characters.match(clone.rename(template.frame([_USER]).suffix)):
        with contextlib.suppress(UserError):
            renderer.render([(json.dumps([_USER]), "x" + end) for end in _ENDS])
        traits += ["content ends apart"] if splitter.swallowed else []
    if template.system_fault:
        traits.append("empty system message left out")
    else:
        with contextlib.suppress(UserError):
            traits += ["system as asked"] if prompt_frame(template, [_SYSTEM, _USER]).reasons else []
    return traits


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
