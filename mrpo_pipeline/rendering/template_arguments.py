"""What a chat template is given beside the messages: which arguments it reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.template_arguments import reserved


def check_arguments(arguments: Mapping[str, Any], name: str) -> None:
    """Raises UserError: one of them is not a user's to give."""
    if fault := reserved(arguments):
        raise UserError(
            f"The template arguments of {name} hold {fault}: expected arguments of its chat template such as enable_thinking. Take it "
            "out of `template_kwargs`, or of the row's `chat_template_kwargs`."
        )


def undeclared(text: str) -> str:
    """The variables that a template expects, as a JSON list. It compiles the template: called where its time is bounded."""
    from jinja2.meta import find_undeclared_variables
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template(text).environment
    return json.dumps(sorted(find_undeclared_variables(environment.parse(text))))


def used(arguments: Mapping[str, Any], variables: Iterable[str]) -> dict[str, Any]:
    """Those that a template with these variables reads."""
    known = set(variables)
    return {key: value for key, value in arguments.items() if key in known}
