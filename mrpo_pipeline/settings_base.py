"""The base class of all recipe settings: a strict pydantic model whose keys are described by the strings under them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=4096)]
"""Name of a file, folder or model. Not empty, because an empty path is the current folder; 4096 is the longest path on Linux."""


class Settings(BaseModel):
    """A part of the recipe. docs/recipes.md is generated from the strings under the keys."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
    )
