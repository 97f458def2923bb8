"""Arguments of a chat template in a recipe: valid ones, and the errors for others."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import load_recipe


def recipe_of(folder: Path, arguments: object) -> Any:
    path = folder / "r.yaml"
    models = {"base": {"model": "m", "template_kwargs": arguments}}
    path.write_text(yaml.safe_dump({"policy": {"model": "m"}, "references": models}))
    return load_recipe(path)


def test_each_model_has_its_own(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"enable_thinking": False, "documents": [{"title": "a"}]})
    [source] = recipe.sources()
    assert source.template_kwargs == {"enable_thinking": False, "documents": [{"title": "a"}]}
    assert recipe.policy.template_kwargs == {}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tools": []}, "not 'tools', which rendering itself decides"),
        ({"add_generation_prompt": True}, "not 'add_generation_prompt'"),
        ({"bos_token": ""}, "not 'bos_token'"),
        ({"a-b": 1}, "no name that a template can use"),
        ({"x": float("nan")}, "references.base.template_kwargs"),
        ([1], "references.base.template_kwargs"),
    ],
)
def test_what_is_no_argument_of_a_user_is_refused_by_name(tmp_path: Path, arguments: object, named: str) -> None:
    with pytest.raises(UserError, match=named) as refused:
        recipe_of(tmp_path, arguments)
    assert "references.base.template_kwargs" in str(refused.value)
