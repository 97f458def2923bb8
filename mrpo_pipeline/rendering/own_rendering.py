"""Prompts that a model's own chat template has rendered already: read as text, they would be templated twice or lose their
control tokens."""

from collections.abc import Callable

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.identity import Prompt, parse_prompt
from mrpo_pipeline.rendering.renderer import Renderer

_SHORTEST = 4  # characters of a marker that no text begins or ends with by chance


def own_rendering_test(renderer: Renderer) -> Callable[[str], bool]:
    """Whether a canonical prompt is a rendering by this model's template, as a function.

    Raw text is one where it holds the control tokens that the template writes round a user's message; a single user's message
    also where these are plain words. Both begin and end of a message count, so that a text about a template is none.
    """
    try:
        before, after = renderer.round_user_message()
    except UserError:  # rendering the pairs says what is wrong with the template
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
        # What the template writes first may change from run to run (a date), its first control token does not.
        return text.startswith(openings) if openings else len(before) >= _SHORTEST and text.startswith(before)

    return is_rendered
