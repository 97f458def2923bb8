"""Text to token ids: prompt and completion through each model's own tokenizer and chat template."""

from mrpo_pipeline.rendering.already_rendered import already_rendered_test
from mrpo_pipeline.rendering.encoding_split import Rendered
from mrpo_pipeline.rendering.renderer import Renderer
from mrpo_pipeline.rendering.template_source import PLAIN_TEMPLATE, TEMPLATE_DATE
from mrpo_pipeline.rendering.truncation import cut_offset, cut_prompt, tokens_counted, tokens_to_score

__all__ = [
    "PLAIN_TEMPLATE",
    "TEMPLATE_DATE",
    "Rendered",
    "Renderer",
    "already_rendered_test",
    "cut_offset",
    "cut_prompt",
    "tokens_counted",
    "tokens_to_score",
]
