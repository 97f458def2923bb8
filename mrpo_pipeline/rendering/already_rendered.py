"""Detect prompts that the model's own chat template has already rendered. They would be templated twice or lose their control
tokens."""

from collections.abc import Callable

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Prompt, parse_prompt
from mrpo_pipeline.rendering.renderer import Renderer

_SHORTEST = 4  # characters; shorter markers occur in texts by chance


def already_rendered_test(renderer: Renderer) -> Callable[[str], bool]:
    """Function that tests whether a canonical prompt is a rendering of this model's template.

    Raw text is one if it begins or ends with the control tokens around a user message. The last message of a chat is one if it
    begins and ends as the template does, also without control tokens; text about a template does not do both.
    """
    try:
        before, after = renderer.user_message_affixes()
    except UserError:  # rendering the pairs reports the error
        return lambda prompt: False
    before, after = before.strip(), after.strip()
    openings = tuple(renderer.control_strings(before)[:1]) + ((renderer.bos,) if renderer.bos else ())
    openings = openings if renderer.control_strings(after) else ()

    def is_rendered(prompt: str) -> bool:
        value: Prompt = parse_prompt(prompt)
        if isinstance(value, str):
            text = value.strip()
            closes = bool(after and renderer.control_strings(after)) and text.endswith(after)
            return closes or (bool(before and renderer.control_strings(before)) and text.startswith(before))
        text = value[-1]["content"].strip() if value else ""
        if len(after) < _SHORTEST or not text.endswith(after):
            return False
        # The beginning of the template may vary (a date), but not its first control token.
        return text.startswith(openings) if openings else len(before) >= _SHORTEST and text.startswith(before)

    return is_rendered
