"""Jinja text of a model's chat template, and the plain template for models without one."""

import re
import stat
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.checks import reason_of

TEMPLATE_DATE = "2024-07-26"
"""Fixed date for templates that call `strftime_now`: the default date in Llama 3.1's template."""

PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Assistant:\\n' + message['content'] -}}{{- eos_token | default('') -}}{{- '\\n\\n' -}}
{%- else -%}
{{- 'User:\\n' + message['content'] + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:\\n' -}}{%- endif -%}
"""
"""Template for tokenizers without one. The newline after a role keeps tokens from crossing it."""

# The longest templates in use have about 20 kB.
MAX_TEMPLATE_BYTES = 1 << 20


def template_text(tokenizer: Any, template: str, owner: str, fallback: str | None) -> tuple[str, str]:
    """(Jinja text, name for messages)."""
    if template == "plain":
        return PLAIN_TEMPLATE, f"The plain template (for {owner})"
    if template == "auto":
        if not tokenizer.chat_template and fallback:
            return fallback, f"The chat template of {owner}"
        if not tokenizer.chat_template:
            return PLAIN_TEMPLATE, f"The plain template (for {owner}, which has none)"
        try:
            return str(tokenizer.get_chat_template()), f"The chat template of {owner}"
        except ValueError as error:  # several named templates, none of them the default
            raise UserError(
                f"{owner} has several chat templates and none is named `default` ({reason_of(error)}). Set `template` to a Jinja file."
            ) from error
    try:
        path = Path(template)
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_TEMPLATE_BYTES:  # a pipe may block forever
            raise OSError(f"not a regular file, or larger than {MAX_TEMPLATE_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8"), f"The template {template} (for {owner})"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The template {template!r} for {owner} cannot be read ({error}); expected `auto`, `plain` or the path of a Jinja file in "
            "UTF-8. Correct `template`."
        ) from error


def tool_template(tokenizer: Any) -> str | None:
    """The tokenizer's separate template for conversations with tools, or None."""
    named = tokenizer.chat_template
    return str(named["tool_use"]) if isinstance(named, dict) and "tool_use" in named else None


def uses_date(template: str) -> bool:
    return re.search(r"\bstrftime_now\b", template) is not None
