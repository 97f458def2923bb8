"""A change to a reference changes its fingerprint if and only if it changes its numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import read_config
from mrpo_pipeline.models.source import ModelSource, as_recorded, fetch, resolve, resolve_dtype, same_model
from mrpo_pipeline.rendering.renderer import Renderer

IDENTITY = {"tokenizer": "k", "template": "t", "end_of_turn": "</s>"}
COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub names are looked up in the test's own cache; a request would fail."""
    import huggingface_hub.constants

    monkeypatch.setenv("MRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("mrpo_pipeline.models.source.gpu_computes_in", lambda dtype: True)


def make_model(folder: Path, value: float = 1.0, **config: object) -> Path:
    folder.mkdir(parents=True)
    save_file({"model.weight": np.full(4, value, np.float32)}, folder / "model.safetensors")
    settings = {"model_type": "llama", "hidden_size": 4, "dtype": "bfloat16", "transformers_version": "5.0.0", **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def make_adapter(folder: Path, value: float = 1.0, **config: object) -> Path:
    folder.mkdir(parents=True)
    save_file({"lora_A": np.full(4, value, np.float32)}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "somewhere", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def on_hub(tmp_path: Path, name: str, commit: str, ref: str = "main", value: float = 1.0) -> Path:
    """Put a snapshot into the Hugging Face cache as its client does."""
    repo = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    return make_model(repo / "snapshots" / commit, value)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder: Path) -> None:
    save_file({"model.weight": np.full(4, 9.0, np.float32)}, folder / "model.safetensors")


CHANGES: dict[str, tuple[set[str], Callable[[Path, ModelSource], ModelSource | None]]] = {
    "weights replaced under the same path": ({"weights"}, lambda folder, _: change_weights(folder)),
    "a setting of the model": ({"weights"}, lambda folder, _: edit(folder / "config.json", rope_theta=5.0)),
    "dtype in the configuration": ({"dtype"}, lambda folder, _: edit(folder / "config.json", dtype="float32")),
    "dtype in the recipe": ({"dtype"}, lambda _, source: source.model_copy(update={"dtype": "float16"})),
    "quantization in the recipe": (
        {"quantization"},
        lambda _, source: source.model_copy(update={"quantization": "fp8"}),
    ),
    "no adapter": ({"adapter", "adapted"}, lambda _, source: source.model_copy(update={"adapter": None})),
    "another adapter": (
        {"adapter"},
        lambda folder, source: source.model_copy(update={"adapter": str(make_adapter(folder.parent / "other", 2.0))}),
    ),
    "a setting of the adapter": ({"adapter"}, lambda f, _: edit(f.parent / "adapter" / "adapter_config.json", r=4)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_the_numbers_changes_its_field(tmp_path: Path, what: str) -> None:
    folder = make_model(tmp_path / "model")
    source = ModelSource(model=str(folder), adapter=str(make_adapter(tmp_path / "adapter"))).named("base")
    before = resolve(source, IDENTITY)
    fields, change = CHANGES[what]
    after = resolve(change(folder, source) or source, IDENTITY)
    assert {field for field in before if before[field] != after[field]} == fields


def test_what_does_not_change_the_numbers_changes_no_field(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    source = ModelSource(model=str(folder), adapter=str(make_adapter(tmp_path / "adapter"))).named("base")
    before = resolve(source, IDENTITY)

    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "model")
    edit(moved / "config.json", transformers_version="6.0.0", _name_or_path="x", use_cache=False)
    edit(tmp_path / "adapter" / "adapter_config.json", peft_version="1.0", base_model_name_or_path="elsewhere")
    (moved / "README.md").write_text("a model card")
    (moved / "generation_config.json").write_text("{}")
    # The key as older configurations have it.
    config = json.loads((moved / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (moved / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert resolve(source.model_copy(update={"model": str(moved)}).named("other"), IDENTITY) == before
    assert resolve(source.model_copy(update={"dtype": "bf16"}), IDENTITY) == before
    assert resolve(source.model_copy(update={"dtype": "torch.bfloat16", "trust_remote_code": True}), IDENTITY) == before


def test_the_renderer_s_fields_stand_in_the_fingerprint_and_are_open_without_one(tmp_path: Path) -> None:
    source = ModelSource(model=str(make_model(tmp_path / "model"))).named("base")
    assert {**resolve(source, IDENTITY), **IDENTITY} == resolve(source, IDENTITY)
    assert [resolve(source)[field] for field in IDENTITY] == [None, None, None]


def test_all_of_a_sharded_model_s_files_count(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    whole = resolve(ModelSource(model=str(folder)).named("base"))["weights"]
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(2, np.float32)}, folder / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    first = resolve(ModelSource(model=str(folder)).named("base"))["weights"]
    save_file({"b": np.ones(2, np.float32)}, folder / "model-00002-of-00002.safetensors")
    second = resolve(ModelSource(model=str(folder)).named("base"))["weights"]
    assert len({whole, first, second}) == 3
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert resolve(ModelSource(model=str(folder)).named("base"))["weights"] is None
    with pytest.raises(UserError, match=r"every file that model\.safetensors\.index\.json names"):
        fetch(ModelSource(model=str(folder)).named("base"))


def test_code_that_comes_with_a_model_counts(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", auto_map={"AutoModelForCausalLM": "modeling.M"})
    (folder / "modeling.py").write_text("scale = 1")
    source = ModelSource(model=str(folder)).named("base")
    running, native = (
        resolve(source.model_copy(update={"trust_remote_code": True}))["weights"],
        resolve(source)["weights"],
    )
    assert running != native
    (folder / "modeling.py").write_text("scale = 2")
    assert resolve(source.model_copy(update={"trust_remote_code": True}))["weights"] != running
    assert resolve(source)["weights"] == native


def test_a_hub_name_is_resolved_from_the_local_cache_alone(tmp_path: Path) -> None:
    folder = on_hub(tmp_path, "org/model", COMMITS[0])
    on_hub(tmp_path, "org/model", COMMITS[1], ref="v2", value=2.0)
    main = resolve(ModelSource(model="org/model").named("base"), IDENTITY)
    assert main["revision"] == COMMITS[0]
    assert main["weights"] == resolve(ModelSource(model=str(folder)).named("base"))["weights"]
    assert resolve(ModelSource(model="org/model", revision=COMMITS[0]).named("base"), IDENTITY) == main
    other = resolve(ModelSource(model="org/model", revision="v2").named("base"))
    assert other["revision"] == COMMITS[1]
    assert other["weights"] != main["weights"]


def test_what_can_be_told_without_the_files_is(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    source = ModelSource(
        model="org/absent", revision=COMMITS[0], dtype="bf16", quantization="awq", adapter="org/adapter",
        template=str(tmp_path / "template.jinja"),
    ).named("base")  # fmt: skip
    told = resolve(source)
    assert told.pop("template_file")
    assert {field: value for field, value in told.items() if value is not None} == {
        "revision": COMMITS[0],
        "dtype": "bfloat16",
        "quantization": "awq",
        "engine_options": "none",
        "adapted": "yes",
    }
    rest = resolve(ModelSource(model=str(tmp_path / "moved" / "away")).named("base"))
    told = {field: value for field, value in rest.items() if value is not None}
    assert told == {"adapted": "no", "adapter": "none", "engine_options": "none"}


def test_a_partly_downloaded_model_tells_what_it_has(tmp_path: Path) -> None:
    folder = on_hub(tmp_path, "org/model", COMMITS[0])
    (folder / "model.safetensors").unlink()
    told = resolve(ModelSource(model="org/model").named("base"))
    assert (told["weights"], told["revision"], told["dtype"]) == (None, COMMITS[0], "bfloat16")


def test_fetch_pins_the_commit_of_what_is_here(tmp_path: Path) -> None:
    on_hub(tmp_path, "org/model", COMMITS[0])
    assert fetch(ModelSource(model="org/model").named("base")) == ModelSource(
        model="org/model", revision=COMMITS[0]
    ).named("base")
    local = ModelSource(
        model=str(make_model(tmp_path / "model")), adapter=str(make_adapter(tmp_path / "adapter"))
    ).named("base")
    assert fetch(local) == local


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-model")
    for refuse in (lambda source: resolve(source, IDENTITY), fetch):
        with pytest.raises(UserError, match="no-such-model"):
            refuse(ModelSource(model=missing).named("hermes"))
    with pytest.raises(UserError, match="could it be fetched"):
        fetch(ModelSource(model="org/absent").named("hermes"))
    with pytest.raises(UserError, match="adapter"):
        fetch(ModelSource(model=str(make_model(tmp_path / "model")), adapter="./nowhere").named("hermes"))


def test_weights_as_pickles_only_are_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickles.*save_pretrained"):
        resolve(ModelSource(model=str(folder)).named("base"), IDENTITY)
    adapter = make_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match="pickle"):
        resolve(ModelSource(model=str(make_model(tmp_path / "sound")), adapter=str(adapter)).named("base"), IDENTITY)


def test_an_adapter_in_the_place_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as `adapter`"):
        resolve(ModelSource(model=str(make_adapter(tmp_path / "adapter"))).named("base"), IDENTITY)


def test_a_broken_configuration_is_one_sentence(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    for text in ("{", "[]", "\xff"):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"config\.json"):
            resolve(ModelSource(model=str(folder)).named("base"), IDENTITY)


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        ({"dtype": "float16"}, "auto", "float16"),
        ({"dtype": None, "torch_dtype": "float16"}, "auto", "float16"),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, "auto", "float16"),
        ({"dtype": {"": "float16", "vision": "float32"}}, "auto", "float16"),
        ({"dtype": None}, "auto", "float32"),  # the weights' own
        ({"dtype": "bfloat16"}, "fp32", "float32"),
    ],
)
def test_dtype_is_the_recipe_s_else_the_configuration_s_else_the_weights(
    tmp_path: Path, config: dict[str, object], asked: str, expected: str
) -> None:
    source = ModelSource(model=str(make_model(tmp_path / "model", **config)), dtype=asked).named("base")
    assert resolve_dtype(source) == expected == resolve(source)["dtype"]


def test_auto_is_one_dtype_for_reference_and_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 on a CPU, and on a GPU that does not compute in the checkpoint's 16 bits."""
    from mrpo_pipeline.policy.model import base_dtype
    from mrpo_pipeline.recipe import Policy

    folders = {
        "bfloat16": make_model(tmp_path / "bfloat16"),
        "float16": make_model(tmp_path / "float16", dtype="float16"),
        "nested": make_model(tmp_path / "nested", dtype=None, text_config={"dtype": "bfloat16"}),
        "quantized": make_model(tmp_path / "quantized", quantization_config={"quant_method": "awq"}),
        "float64": make_model(tmp_path / "float64", dtype="float64"),
    }
    on_gpu = ["bfloat16", "float16", "bfloat16", "bfloat16", "float32"]
    on_cpu = ["float32", "float32", "float32", "bfloat16", "float32"]

    def both(device: str | None) -> list[str]:
        found = [resolve_dtype(ModelSource(model=str(folder)).named("base"), device) for folder in folders.values()]
        assert found == [base_dtype(Policy(model=str(folder)), None, device) for folder in folders.values()]
        return found

    assert both(None) == both("gpu") == on_gpu
    monkeypatch.setattr("mrpo_pipeline.models.source.gpu_computes_in", lambda dtype: dtype == "float16")
    assert both(None) == ["float32", "float16", "float32", "bfloat16", "float32"]
    monkeypatch.setattr("mrpo_pipeline.models.source.gpu_computes_in", lambda dtype: False)
    assert both(None) == both("cpu") == on_cpu


def test_auto_takes_the_dtype_that_a_cache_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache scored in 16 bits, on a GPU or by an earlier version, can be used on a machine without GPU, and is extended in 16 bits."""
    source = ModelSource(model=str(make_model(tmp_path / "model"))).named("base")
    recorded = {field: value for field, value in resolve(source, IDENTITY).items() if value is not None}
    assert recorded["dtype"] == "bfloat16"
    monkeypatch.setattr("mrpo_pipeline.models.source.gpu_computes_in", lambda dtype: False)
    assert resolve_dtype(source) == "float32"
    assert resolve_dtype(as_recorded(source, recorded)) == "bfloat16"
    assert as_recorded(source, {}) == source
    named = source.model_copy(update={"dtype": "float32"})
    assert as_recorded(named, recorded) == named


def test_dtypes_that_are_not_known_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int3"):
        resolve_dtype(ModelSource(model=str(make_model(tmp_path / "model")), dtype="int3").named("base"))
    with pytest.raises(UserError, match="dtype: auto"):
        resolve_dtype(ModelSource(model="org/absent").named("base"))


def test_weights_without_a_dtype_in_the_configuration_tell_their_own(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", dtype=None)
    save_file({"ids": np.zeros(2, np.int64), "w": np.zeros(2, np.float16)}, folder / "model.safetensors")
    assert resolve_dtype(ModelSource(model=str(folder)).named("base")) == "float16"


def test_quantization_comes_from_the_configuration_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", quantization_config={"quant_method": "awq", "bits": 4})
    assert resolve(ModelSource(model=str(folder)).named("base"))["quantization"] == "awq"
    assert resolve(ModelSource(model=str(make_model(tmp_path / "plain"))).named("base"))["quantization"] == "none"


def test_the_same_model_is_known_by_content_and_not_by_name(tmp_path: Path) -> None:
    base = make_model(tmp_path / "model")
    copy = shutil.copytree(base, tmp_path / "copy")
    other = make_model(tmp_path / "other", 2.0)
    adapter, changed = make_adapter(tmp_path / "adapter"), make_adapter(tmp_path / "changed", 3.0)
    on_hub(tmp_path, "org/model", COMMITS[0])
    policy = ModelSource(model=str(base)).named("policy")
    assert same_model(policy, ModelSource(model=str(copy), dtype="float16").named("base"))
    assert same_model(policy, ModelSource(model="org/model").named("base"))
    assert not same_model(policy, ModelSource(model=str(other)).named("base"))
    assert not same_model(policy, ModelSource(model=str(base), adapter=str(adapter)).named("base"))
    with_adapter = policy.model_copy(update={"adapter": str(adapter)})
    assert same_model(
        with_adapter, with_adapter.model_copy(update={"adapter": str(shutil.copytree(adapter, tmp_path / "again"))})
    )
    assert not same_model(with_adapter, with_adapter.model_copy(update={"adapter": str(changed)}))


def test_models_that_are_not_here_are_the_same_by_name_and_revision() -> None:
    away = ModelSource(model="org/absent", revision=COMMITS[0]).named("policy")
    assert same_model(away, away.named("base"))
    assert not same_model(away, away.model_copy(update={"revision": COMMITS[1]}))
    assert not same_model(away, away.model_copy(update={"model": "org/other"}))
    assert not same_model(away, away.model_copy(update={"adapter": "org/adapter"}))
    assert same_model(
        away.model_copy(update={"adapter": "org/adapter"}), away.model_copy(update={"adapter": "org/adapter"})
    )


@pytest.mark.parametrize("given", ["model.gguf", "model.bin", "."])
def test_a_gguf_file_is_refused_by_that_name(tmp_path: Path, given: str) -> None:
    name = "model.bin" if given == "model.bin" else "model.gguf"
    (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0")
    model = str(tmp_path / given)
    with pytest.raises(UserError, match=rf"{name} of base is a GGUF file.*Name the model that the file was made from"):
        fetch(ModelSource(model=model).named("base"))
    with pytest.raises(UserError, match=rf"{name} of base is a GGUF file"):
        Renderer.from_pretrained(model, name="base")


def test_a_configuration_with_a_name_for_each_of_many_labels_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", num_labels=10**8)
    with pytest.raises(
        UserError, match=r"config\.json of base says num_labels 100,000,000: expected 1,000,000 at most"
    ):
        read_config("base", folder / "config.json")
