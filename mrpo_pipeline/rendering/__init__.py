"""Text to token ids: prompt and completion through a model's own tokenizer and chat template."""

from mrpo_pipeline.rendering.own_rendering import own_rendering_test
from mrpo_pipeline.rendering.renderer import Renderer
from mrpo_pipeline.rendering.split import Rendered
from mrpo_pipeline.rendering.template_text import PLAIN_TEMPLATE, TEMPLATE_DATE
from mrpo_pipeline.rendering.truncation import cut_offset, cut_prompt, tokens_counted, tokens_to_score

__all__ = [
    "PLAIN_TEMPLATE",
    "TEMPLATE_DATE",
    "Rendered",
    "Renderer",
    "cut_offset",
    "cut_prompt",
    "own_rendering_test",
    "tokens_counted",
    "tokens_to_score",
]
