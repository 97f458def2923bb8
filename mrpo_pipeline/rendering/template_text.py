"""The Jinja text of a model's chat template, and the plain template for a model that has none."""

import re
import stat
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.checks import reason_of

TEMPLATE_DATE = "2024-07-26"
"""The date every template that asks for one is told (`strftime_now`): the default Llama 3.1's own template prints."""

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
"""What a tokenizer without a template of its own gets. The newline after a role keeps tokens from reaching across."""

# The longest templates in use have some 20 kB.
MAX_TEMPLATE_BYTES = 1 << 20


def template_text(tokenizer: Any, template: str, owner: str, beside: str | None) -> tuple[str, str]:
    """The Jinja text, and what to call it in messages."""
    if template == "plain":
        return PLAIN_TEMPLATE, f"The plain template (for {owner})"
    if template == "auto":
        if not tokenizer.chat_template and beside:
            return beside, f"The chat template of {owner}"
        if not tokenizer.chat_template:
            return PLAIN_TEMPLATE, f"The plain template (for {owner}, which has none)"
        try:
            return str(tokenizer.get_chat_template()), f"The chat template of {owner}"
        except ValueError as error:  # several named templates, none of them the default
            raise UserError(
                f"The chat template of {owner} cannot be chosen ({reason_of(error)}): expected one, or one called `default`. Give a "
                "Jinja file as `template`."
            ) from error
    try:
        path = Path(template)
        state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_TEMPLATE_BYTES:  # a pipe would wait for ever
            raise OSError(f"no file, or one of more than {MAX_TEMPLATE_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8"), f"The template {template} (for {owner})"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The template {template!r} for {owner} cannot be read ({error}): expected `auto`, `plain` or the path of "
            "a Jinja file in UTF-8. Correct `template`."
        ) from error


def tool_template(tokenizer: Any) -> str | None:
    """The template that the tokenizer has for conversations with tools; None where it is the same one."""
    named = tokenizer.chat_template
    return str(named["tool_use"]) if isinstance(named, dict) and "tool_use" in named else None


def uses_date(template: str) -> bool:
    return re.search(r"\bstrftime_now\b", template) is not None
