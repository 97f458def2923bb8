"""Changes to a scored reference between two commands: those that alter its numbers, and those that do not."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stale_worlds import COMMITS, World, edited_in_place, make_adapter, weights_that_count


@dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        what: in words.
        world: the name of its world.
        make: makes the change.
        fields: fields of the fingerprint that a refusal names; empty if the change must be accepted.
        says: instead of fields: words of a refusal for another reason.
        before: called before the last command that reads the unchanged world; its result is passed to ``make``.
        moves: whether this machine can score the changed reference, so that the change of the numbers is measured.
        train_only: the references' files are missing: nothing can be scored, but training must work.
    """

    what: str
    world: str
    make: Callable[..., None]
    fields: tuple[str, ...] = ()
    says: str = ""
    before: Callable[[World], Any] | None = None
    moves: bool = True
    train_only: bool = False


def _replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} does not hold {old!r}"
    path.write_text(text.replace(old, new))


def _jinja(world: World, old: str, new: str) -> None:
    _replace_text(world.base / "chat_template.jinja", old, new)


def _tokenizer(world: World, edit: Callable[[dict[str, Any]], None]) -> None:
    path = world.base / "tokenizer.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def _reference(world: World, **keys: Any) -> None:
    world.references["base"] |= keys
    world.references["base"] = {key: value for key, value in world.references["base"].items() if value is not None}


def _scoring(world: World, **options: Any) -> None:
    world.more["scoring"] = {**world.more.get("scoring", {}), **options}


def _weights(world: World) -> Path:
    return world.base / "model.safetensors"


def _same_times(path: Path, make: Callable[[], None]) -> None:
    found = path.stat()
    make()
    assert path.stat().st_size == found.st_size
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def _replaced(world: World) -> None:
    """Replace it by another file of the same size and time."""
    new = world.folder / "new.safetensors"
    shutil.copyfile(world.folder / "other" / "model.safetensors", new)
    _same_times(_weights(world), lambda: os.replace(new, _weights(world)))


def _map(world: World) -> mmap.mmap:
    """The weights mapped for writing, by a program that has already written to them."""
    with _weights(world).open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    place = weights_that_count(_weights(world))
    for at in range(place.start, place.start + 1024):
        mapped[at] = mapped[at]
    return mapped


def _through_the_map(world: World, mapped: mmap.mmap) -> None:
    place = weights_that_count(_weights(world))
    for at in range(place.start + 3, place.start + 1024, 4):
        mapped[at] ^= 0x80
    mapped.flush()


def _shard_swapped(world: World) -> None:
    name = sorted(world.base.glob("model-*.safetensors"))[1].name
    shutil.copyfile(world.folder / "swapped" / name, world.base / name)


def _exchanged(world: World) -> None:
    world.references["base"], world.references["other"] = world.references["other"], world.references["base"]


def _adapter_setting(world: World, **changes: Any) -> None:
    path = world.folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _merge_dropped(document: dict[str, Any]) -> None:
    del document["model"]["merges"][::3]


def _token_added(document: dict[str, Any]) -> None:
    """A word becomes a separate token, in place of an unused one."""
    unused = next(token for token in document["added_tokens"] if token["content"] == "<think>")
    unused["content"] = "answer"


def _no_bos(document: dict[str, Any]) -> None:
    document["post_processor"] = None


def _hub_files_gone(world: World) -> None:
    shutil.rmtree(world.folder / "hub")
    _reference(world, revision=COMMITS[1])


def _rope(path: Path) -> None:
    document = json.loads(path.read_text())
    settings = document.get("rope_parameters")
    (document if settings is None else settings)["rope_theta"] = 5.0
    path.write_text(json.dumps(document))


def _other_tokenizer(folder: Path) -> None:
    import tiny_tokenizers

    tiny_tokenizers.KINDS["gemma"]().save_pretrained(folder)


def _sharded(world: World) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world.base)
    _weights(world).unlink()
    model.save_pretrained(world.base, max_shard_size="100KB")


ALTERING = [
    Change("weights edited in place, size and times restored", "plain", lambda w: edited_in_place(_weights(w)), ("weights",)),
    Change("weights written to through an open memory map", "plain", _through_the_map, ("weights",), before=_map),
    Change("weights file replaced, size and times the same", "plain", _replaced, ("weights",)),
    Change("one shard of the weights swapped", "sharded", _shard_swapped, ("weights",)),
    Change("two references exchange their models", "plain", _exchanged, ("weights",)),
    Change("another revision in the recipe", "on_hub", lambda w: _reference(w, revision="v2"), ("weights",)),
    Change("another revision, and no files here", "on_hub", _hub_files_gone, ("revision",), moves=False, train_only=True),
    Change("an adapter added", "plain", lambda w, _: _reference(w, adapter="@/adapter"), ("adapted", "adapter"),
           before=lambda w: make_adapter(w.base, w.folder / "adapter", 0)),
    Change("the adapter's weights edited in place", "adapted",
           lambda w: edited_in_place(w.folder / "adapter" / "adapter_model.safetensors"), ("adapter",)),
    Change("another adapter", "adapted", lambda w: _reference(w, adapter="@/adapter-2"), ("adapter",)),
    Change("the adapter left out", "adapted", lambda w: _reference(w, adapter=None), ("adapted", "adapter")),
    Change("the adapter's lora_alpha", "adapted", lambda w: _adapter_setting(w, lora_alpha=16), ("adapter",)),
    Change("the adapter's use_rslora", "adapted", lambda w: _adapter_setting(w, use_rslora=True), ("adapter",)),
    Change("tokenizer.json: a merge taken out", "plain", lambda w: _tokenizer(w, _merge_dropped), ("tokenizer",)),
    Change("tokenizer.json: a token added", "plain", lambda w: _tokenizer(w, _token_added), ("tokenizer",)),
    Change("tokenizer.json: no BOS any more", "with_bos", lambda w: _tokenizer(w, _no_bos), ("prepended",)),
    Change("tokenizer_config.json: another eos_token", "plain",
           lambda w: w.edit_json("tokenizer_config.json", eos_token="<|endoftext|>"), ("end_of_text",), moves=False),
    Change("another tokenizer in the recipe", "with_bos", lambda w, _: _reference(w, tokenizer="@/tokenizer"), ("tokenizer",),
           before=lambda w: _other_tokenizer(w.folder / "tokenizer")),
    Change("chat_template.jinja: other words", "plain", lambda w: _jinja(w, "m['role'] + '\\n'", "m['role'] + ':\\n'"),
           ("template",)),
    Change("chat_template.jinja: a system prompt of its own", "plain",
           lambda w: _jinja(w, "{% for m", "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% for m"), ("template",)),
    Change("chat_template.jinja: another end-of-turn token", "plain",
           lambda w: _jinja(w, "<|im_end|>", "<|endoftext|>"), ("template", "end_of_turn")),
    Change("chat_template.jinja: broken", "plain", lambda w: (w.base / "chat_template.jinja").write_text("{% for"), (),
           "chat template", moves=False),
    Change("the template in tokenizer_config.json", "template_in_config",
           lambda w: _replace_text(w.base / "tokenizer_config.json", "m['role'] + '\\\\n'", "m['role'] + ':\\\\n'"), ("template",)),
    Change("template: plain in the recipe", "plain", lambda w: _reference(w, template="plain"), ("template",)),
    Change("the recipe's template file edited", "template_file",
           lambda w: _replace_text(w.folder / "template.jinja", "m['role'] + '\\n'", "m['role'] + ':\\n'"), ("template",)),
    Change("config.json: rope_theta", "plain", lambda w: _rope(w.base / "config.json"), ("weights",)),
    Change("config.json: rms_norm_eps", "plain", lambda w: w.edit_json("config.json", rms_norm_eps=0.5), ("weights",)),
    # If the file has both matrices, transformers reads both and vLLM one: here they are unchanged.
    Change("config.json: tie_word_embeddings", "plain", lambda w: w.edit_json("config.json", tie_word_embeddings=True),
           ("weights",), moves=False),
    Change("config.json: sliding_window", "windowed", lambda w: w.edit_json("config.json", sliding_window=2), ("weights",)),
    Change("config.json: hidden_act", "plain", lambda w: w.edit_json("config.json", hidden_act="gelu"), ("weights",)),
    Change("dtype in the recipe", "plain", lambda w: _reference(w, dtype="bfloat16"), ("dtype",)),
    Change("quantization in the recipe", "plain", lambda w: _reference(w, quantization="int8"), ("quantization",), moves=False),
    Change("config.json: quantization_config", "plain",
           lambda w: w.edit_json("config.json", quantization_config={"quant_method": "fp8"}), ("weights", "quantization"), moves=False),
    Change("the model's own code edited", "own_code", lambda w: _replace_text(w.base / "modeling_tiny.py", "1e-5", "0.5"), ("weights",)),
    Change("the model's own code not run any more", "own_code", lambda w: _reference(w, trust_remote_code=None), ("weights",), moves=False),
    Change("engine option: hf_overrides", "plain", lambda w: _scoring(w, engine="auto", hf_overrides={"rope_theta": 5.0}),
           ("engine_options",), moves=False),
    Change("engine option: kv_cache_dtype, of one reference", "plain",
           lambda w: _reference(w, scoring={"engine": "auto", "kv_cache_dtype": "fp8"}), ("engine_options",), moves=False),
    Change("engine option that nobody knows yet", "plain", lambda w: _scoring(w, engine="auto", attention_in_4_bits=True),
           ("engine_options",), moves=False),
    Change("the same tensors in other files (on the safe side)", "plain", _sharded, ("weights",), moves=False),
]  # fmt: skip


def _moved(world: World, name: str, to: str) -> None:
    (world.folder / to).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(world.folder / name, world.folder / to)


def _model_moved(world: World) -> None:
    _moved(world, "base", "elsewhere/models/base")
    _reference(world, model="@/elsewhere/models/base")


def _model_linked(world: World) -> None:
    (world.folder / "link").symlink_to(world.base)
    _reference(world, model="@/link")


def _model_copied(world: World) -> None:
    shutil.copytree(world.base, world.folder / "copy")
    _reference(world, model="@/copy")


def _cache_moved(world: World) -> None:
    _moved(world, "cache", "elsewhere/cache")
    world.more["cache"] = "@/elsewhere/cache"


def _unrelated(world: World) -> None:
    (world.base / "README.md").write_text("# A model")
    (world.base / "training_args.bin").write_bytes(b"x")
    (world.base / "convert.py").write_text("print('no code of the model')")
    (world.base / ".git").mkdir()
    (world.base / ".git" / "HEAD").write_text("ref: refs/heads/main")


def _touched(world: World) -> None:
    for path in world.base.rglob("*"):
        os.utime(path)


def _files_gone(world: World) -> None:
    for name in world.references:
        shutil.rmtree(world.folder / name)


def _tokenizer_habits(world: World) -> None:
    world.edit_json("tokenizer_config.json", model_max_length=77, padding_side="left", name_or_path="elsewhere")

    def pad(document: dict[str, Any]) -> None:
        document["truncation"] = {"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0}

    _tokenizer(world, pad)


def _order_turned(world: World) -> None:
    world.references = dict(reversed(world.references.items()))


def _another_reference(world: World) -> None:
    world.references["third"] = {"model": "@/other"}


HARMLESS = [
    # With `dtype: auto` the cache's own dtype applies, and its numbers are those of the weights.
    Change("config.json: dtype, with auto", "plain", lambda w: w.edit_json("config.json", dtype="bfloat16")),
    Change("library versions", "plain",
           lambda w: w.edit_manifest(versions={"mrpo": "0.0.1", "torch": "1.0", "transformers": "3.0", "vllm": "0.1"})),
    Change("engine (recorded: vllm)", "plain",
           lambda w: w.edit_manifest(engine="vllm", options={"tensor_parallel_size": 8, "gpu_memory_utilization": 0.5})),
    Change("machine and time", "plain", lambda w: w.edit_manifest(machine="Plan 9 on a toaster", created="1970-01-01T00:00:00+00:00")),
    Change("limits.max_length", "plain", lambda w: w.more.update(limits={"max_length": 200})),
    Change("limits.max_prompt_length", "plain", lambda w: w.more.update(limits={"max_prompt_length": 100})),
    Change("batch size and threads", "plain", lambda w: _scoring(w, max_batch_tokens=64, threads=2)),
    Change("vLLM's memory, batches, devices, lengths", "plain",
           lambda w: _scoring(w, engine="auto", gpu_memory_utilization=0.3, tensor_parallel_size=4, max_num_batched_tokens=512,
                              max_model_len=400, enforce_eager=True, max_num_seqs=3)),
    Change("rows_per_shard, seconds_per_shard, unit", "plain", lambda w: _scoring(w, rows_per_shard=1, seconds_per_shard=1.0, unit=2)),
    Change("the cache folder moved", "plain", _cache_moved),
    Change("the model folder moved", "plain", _model_moved),
    Change("the model through a symbolic link", "plain", _model_linked),
    Change("a copy of the model", "plain", _model_copied),
    Change("the references' files are on another machine", "plain", _files_gone, train_only=True),
    Change("files that are no part of the model", "plain", _unrelated),
    Change("every file touched", "plain", _touched),
    Change("generation_config.json", "plain", lambda w: w.edit_json("generation_config.json", temperature=0.1, do_sample=True)),
    Change("config.json written by another version", "plain",
           lambda w: w.edit_json("config.json", transformers_version="3.0.0", use_cache=False, _name_or_path="elsewhere")),
    Change("dtype: auto spelled out", "plain", lambda w: _reference(w, dtype="fp32")),
    Change("model_max_length, padding, truncation of the tokenizer", "plain", _tokenizer_habits),
    Change("adapter_config.json: its base and version", "adapted",
           lambda w: _adapter_setting(w, base_model_name_or_path="elsewhere", peft_version="0.1", inference_mode=False)),
    Change("the commit by its branch", "on_hub", lambda w: _reference(w, revision="main")),
    Change("the order of the references", "plain", _order_turned),
    Change("another reference beside it", "plain", _another_reference),
    Change("learning rate, β, method, seed", "plain",
           lambda w: w.more.update(method={"name": "mrpo", "beta": 0.5}, training={"learning_rate": 1e-3, "seed": 9})),
    Change("MRPO_HOME elsewhere", "plain", lambda w: w.environment.update(MRPO_HOME="@/home")),
    Change("OMP_NUM_THREADS", "plain", lambda w: w.environment.update(OMP_NUM_THREADS="2")),
    Change("code beside a model that runs none", "code_not_run",
           lambda w: _replace_text(w.base / "modeling_tiny.py", "1e-5", "0.5")),
]  # fmt: skip
