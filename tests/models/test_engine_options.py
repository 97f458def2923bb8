"""Engine options that may change a reference's numbers are part of its cache's fingerprint; the others never are."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import recipe
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline import engines
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.engines import start_engine
from mrpo_pipeline.engines.base import TRANSFORMERS_OPTIONS
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.engine_options import HARMLESS, NO_OPTIONS, altering, describe_altering
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.scoring import score_references


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "none"),
        ({"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "max_num_seqs": 4, "threads": 2}, "none"),
        (
            {
                "hf_overrides": {},
                "kv_cache_dtype": "auto",
                "load_format": "safetensors",
                "disable_sliding_window": False,
            },
            "none",
        ),
        ({"hf_overrides": None}, "none"),
        ({"kv_cache_dtype": "fp8", "max_model_len": 512}, '{"kv_cache_dtype":"fp8"}'),
        ({"hf_overrides": {"b": 1, "a": 2}}, '{"hf_overrides":{"a":2,"b":1}}'),
        ({"load_format": "dummy"}, '{"load_format":"dummy"}'),
        ({"disable_sliding_window": True}, '{"disable_sliding_window":true}'),
        ({"of_next_year": False}, '{"of_next_year":false}'),
    ],
)
def test_what_is_not_known_to_be_harmless_counts(options: dict[str, Any], said: str) -> None:
    assert describe_altering(options) == said
    assert altering(dict(reversed(options.items()))) == altering(options)


def test_every_option_that_is_called_harmless_is_one() -> None:
    """With a misspelt name the option would count as harmful, and a cache would be refused needlessly."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(spec.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    body = source.split("class EngineArgs", 1)[1].split("def __post_init__", 1)[0]
    fields = set(re.findall(r"^    (\w+) *:", body, re.MULTILINE))
    assert len(fields) > 100
    assert {*TRANSFORMERS_OPTIONS} <= HARMLESS
    # `swap_space` existed in earlier releases.
    assert HARMLESS - fields - {*TRANSFORMERS_OPTIONS} == {"swap_space"}


def test_each_reference_has_its_own_options() -> None:
    document = {
        "references": {"base": {"model": "m"}, "other": {"model": "m", "scoring": {"kv_cache_dtype": "fp8"}}},
        "scoring": {"max_num_seqs": 3, "hf_overrides": {"rope_theta": 5.0}},
    }
    base, other = parse_recipe(document).sources()
    assert base.engine_options == '{"hf_overrides":{"rope_theta":5.0}}'
    assert other.engine_options == '{"hf_overrides":{"rope_theta":5.0},"kv_cache_dtype":"fp8"}'


def test_a_manifest_that_says_nothing_of_options_means_none() -> None:
    old, new = Manifest("base", {"weights": "w"}), Manifest("base", {"weights": "w", "engine_options": '{"a":1}'})
    assert old.differences({"weights": "w", "engine_options": NO_OPTIONS}) == []
    assert old.differences({"engine_options": '{"a":1}'}) == [("engine_options", "(not recorded)", '{"a":1}')]
    assert new.differences({"engine_options": NO_OPTIONS}) == [("engine_options", '{"a":1}', NO_OPTIONS)]


def test_auto_does_not_go_on_without_an_option_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engines, "engine_available", lambda kind: None if kind == "transformers" else "it is not installed"
    )
    source = ModelSource(model=str(reference(tmp_path / "base", "llama", "qwen"))).named("base")
    start_engine("auto", source, {"gpu_memory_utilization": 0.5}).ready().close()
    with pytest.raises(UserError, match=r"scoring\.kv_cache_dtype may change its numbers"):
        start_engine("auto", source, {"kv_cache_dtype": "fp8"}).ready()


def test_files_that_change_while_an_engine_reads_them_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrpo_pipeline.engines import EngineStart

    base = reference(tmp_path / "base", "llama", "qwen")
    other = reference(tmp_path / "other", "llama", "qwen", seed=1)
    ready = EngineStart.ready

    def while_it_starts(self: EngineStart) -> Any:
        (base / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
        return ready(self)

    monkeypatch.setattr(EngineStart, "ready", while_it_starts)
    small = recipe(tmp_path, {"base": base}, write_pairs(tmp_path / "pairs.jsonl", plain_pairs(2)))
    with pytest.raises(RunError, match="files of base were changed while they were read: `weights` was"):
        score_references(small)
    assert not (tmp_path / "cache" / "base").exists()
