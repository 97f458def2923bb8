"""Arguments of a chat template: validation, and which ones the template reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.template_arguments import reserved


def check_arguments(arguments: Mapping[str, Any], name: str) -> None:
    """Raise UserError for reserved arguments."""
    if fault := reserved(arguments):
        raise UserError(
            f"The template arguments of {name} contain {fault}; expected arguments of its chat template such as enable_thinking. "
            "Remove it from `template_kwargs`, or from `chat_template_kwargs` of the row."
        )


def undeclared(text: str) -> str:
    """Variables that a template reads, as a JSON list. It compiles the template, so call it with a time limit."""
    from jinja2.meta import find_undeclared_variables
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template(text).environment
    return json.dumps(sorted(find_undeclared_variables(environment.parse(text))))
