"""`references.NAME.server`: both forms, keys refused beside it, and no secret in any message."""

from __future__ import annotations

from typing import Any

import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.recipe.plain_yaml import read_yaml


def parsed(**reference: Any) -> Recipe:
    return parse_recipe({"references": {"base": {"model": "m", **reference}}})


def test_an_address_alone_is_the_same_as_its_key() -> None:
    short, long = parsed(server="http://host:8000/v1/"), parsed(server={"url": "http://host:8000/v1/"})
    assert short == long == parse_recipe(read_yaml(short.dump()))
    (source,) = short.sources()
    assert source.served is not None and source.served.address == "http://host:8000"
    assert parsed().sources()[0].served is None


def test_a_served_model_is_named_by_its_tokenizer_where_it_has_no_other_name_here() -> None:
    (source,) = parse_recipe({"references": {"base": {"tokenizer": "t", "server": "http://h:1"}}}).sources()
    assert (source.model, source.tokenizer) == ("t", "t")
    with pytest.raises(UserError, match=r"`references.base.model` is missing"):
        parse_recipe({"references": {"base": {"server": "http://h:1"}}})
    with pytest.raises(UserError, match=r"`references.base.model` is missing"):
        parse_recipe({"references": {"base": {"tokenizer": "t"}}})


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("adapter", {"adapter": "a"}), ("dtype", {"dtype": "bfloat16"}), ("quantization", {"quantization": "nf4"}),
        ("trust_remote_code", {"trust_remote_code": True}), ("scoring.engine", {"scoring": {"engine": "vllm"}}),
        ("scoring.max_num_seqs", {"scoring": {"check": 3, "max_num_seqs": 4}}), ("scoring.workers", {"scoring": {"workers": 2}}),
    ],
)  # fmt: skip
def test_what_makes_no_sense_beside_a_server_is_refused_by_name(key: str, given: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=rf"`references.base.{key}` in the recipe is given beside `references.base.server`"
    ):
        parsed(server="http://h:1", **given)
    assert parsed(server="http://h:1", scoring={"check": 3, "rows_per_shard": 7}).scoring_of("base").check == 3


def test_options_of_an_engine_for_all_references_do_not_concern_a_served_one() -> None:
    document = {
        "references": {"a": {"model": "m"}, "b": {"model": "m", "server": "http://h:1"}},
        "scoring": {"hf_overrides": {"x": 1}},
    }
    loaded, served = parse_recipe(document).sources()
    assert loaded.engine_options == '{"hf_overrides":{"x":1}}' and served.engine_options == "none"


@pytest.mark.parametrize(
    "server",
    [
        "http://me:secret@host:1", {"url": "http://me:sec/ret@host:1"}, {"url": "http://secret@host"}, {"url": "http://host?key=secret"},
        {"url": "http://host:1", "api_key": "secret"}, {"url": "http://host:1", "api_key_env": "sk-secret"},
    ],
)  # fmt: skip
def test_no_message_shows_a_password_or_a_key(server: Any) -> None:
    with pytest.raises(UserError, match=r"`references\.base\.server") as caught:
        parsed(server=server)
    assert "secret" not in str(caught.value) and "ret@" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["host:8000", "ftp://host", "http://", "http://host:99999", "http://ho st", "http://host#a"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"`references.base.server.url` in the recipe is .*such as http://host:8000"):
        parsed(server={"url": url})


def test_the_error_for_a_misspelt_key_lists_those_of_a_server() -> None:
    with pytest.raises(
        UserError,
        match=r"`references.base.server.concurency` .* is `concurrency` \(valid here: url, model, api_key_env",
    ):
        parsed(server={"url": "http://h:1", "concurency": 3})
    with pytest.raises(UserError, match=r"`references.base.modle` .* is `model`"):
        parsed(modle="m")
