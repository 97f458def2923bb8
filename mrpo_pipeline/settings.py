"""What every setting of a recipe is made of: strict pydantic models whose keys are described by the strings under them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=4096)]
"""Of a file, a folder or a model: an empty one would be the folder that the command is run in; none is longer on any system."""


class Settings(BaseModel):
    """A part of the recipe. The string under a key describes it: docs/recipes.md is made of them."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
    )
