"""Small scored worlds on which changes are tried: each a recipe with real tiny references in its own folder.

A world is made and scored once, and copied for every change. Absolute paths are only in ``World.document``, which is
rewritten for each copy.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tiny_references

COMMITS = ("a" * 40, "b" * 40)

# A model with its own code, which contains a number that affects the results.
MODEL_CODE = """from transformers import LlamaForCausalLM

EPSILON = 1e-5


class TinyForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model.norm.variance_epsilon = EPSILON
"""


@dataclass
class World:
    """A folder with pairs, models, a cache and their recipe.

    Attributes:
        folder: contains everything.
        references: keys of each reference; ``@/`` at the start of a value stands for the folder.
        more: further sections of the recipe.
    """

    folder: Path
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The files of the first reference."""
        return self.folder / "base"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def document(self) -> dict[str, Any]:
        document = {
            "pairs": {"train": "@/pairs.jsonl"},
            "policy": {"model": "@/policy", "lora": {"target_modules": "all-linear"}},
            "references": self.references,
            "cache": "@/cache",
            "limits": {"max_length": 256, "max_prompt_length": 128},
            "scoring": {"engine": "transformers"},
            "method": {"name": "dpo"},
            "training": {"max_steps": 1, "save_strategy": "no", "report_to": "none"},
            "output_dir": "@/out",
        }
        for key, value in self.more.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        return json.loads(json.dumps(document).replace("@/", f"{self.folder}/"))  # type: ignore[no-any-return]

    def write(self) -> Path:
        self.recipe.write_text(json.dumps(self.document()))
        return self.recipe

    def copy(self, folder: Path) -> World:
        shutil.copytree(self.folder, folder, symlinks=True)
        copied = json.loads(json.dumps([self.references, self.more]))
        return World(folder, *copied, dict(self.environment))

    def edit_json(self, file: str, **changes: Any) -> None:
        """Change keys of a JSON file of the first reference; None removes a key."""
        path = self.base / file
        document = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))

    def edit_manifest(self, **recorded: Any) -> None:
        path = self.folder / "cache" / "base" / "manifest.json"
        document = json.loads(path.read_text())
        document["recorded"] |= recorded
        path.write_text(json.dumps(document, indent=2))


def _start(folder: Path, kind: str = "llama", tokenizer: str = "qwen") -> World:
    folder.mkdir(parents=True)
    tiny_references.write_pairs(folder / "pairs.jsonl", tiny_references.plain_pairs(4))
    tiny_references.reference(folder / "base", kind, tokenizer)
    shutil.copytree(folder / "base", folder / "policy")
    return World(folder, {"base": {"model": "@/base"}})


def plain(folder: Path) -> World:
    """A llama with its template in ``chat_template.jinja``, and a second reference."""
    world = _start(folder)
    tiny_references.reference(folder / "other", "llama", "qwen", seed=1)
    world.references["other"] = {"model": "@/other"}
    return world


def windowed(folder: Path) -> World:
    """A mistral, whose window is shorter than the texts."""
    return _start(folder, "mistral", "mistral")


def template_in_config(folder: Path) -> World:
    """The template is in ``tokenizer_config.json``, as in older tokenizers."""
    world = _start(folder)
    template = world.base / "chat_template.jinja"
    world.edit_json("tokenizer_config.json", chat_template=template.read_text())
    template.unlink()
    return world


def template_file(folder: Path) -> World:
    """The recipe names a Jinja file."""
    world = _start(folder)
    (folder / "template.jinja").write_text((world.base / "chat_template.jinja").read_text() + "{# of my own #}")
    world.references["base"]["template"] = "@/template.jinja"
    return world


def sharded(folder: Path) -> World:
    """Weights in several files behind an index."""
    from transformers import AutoModelForCausalLM

    world = _start(folder)
    for seed, name in ((0, "base"), (1, "swapped")):
        model = AutoModelForCausalLM.from_pretrained(
            tiny_references.reference(folder / f"whole-{seed}", "llama", "qwen", seed=seed)
        )
        target = folder / name
        (target / "model.safetensors").unlink(missing_ok=True)
        model.save_pretrained(target, max_shard_size="100KB")
        shutil.rmtree(folder / f"whole-{seed}")
    assert len(list(world.base.glob("model-*.safetensors"))) > 1
    return world


def adapted(folder: Path) -> World:
    """The reference has a LoRA adapter."""
    world = _start(folder)
    for name, seed in (("adapter", 0), ("adapter-2", 1)):
        make_adapter(world.base, folder / name, seed)
    world.references["base"]["adapter"] = "@/adapter"
    return world


def make_adapter(base: Path, folder: Path, seed: int) -> None:
    """A LoRA adapter that changes the numbers: its second matrix is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)


def own_code(folder: Path) -> World:
    """The model comes with Python code, which is run."""
    world = _start(folder)
    world.edit_json("config.json", auto_map={"AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"})
    (world.base / "modeling_tiny.py").write_text(MODEL_CODE)
    world.references["base"]["trust_remote_code"] = True
    return world


def code_not_run(folder: Path) -> World:
    """A model of a usual kind has a file of Python code that is not used."""
    world = own_code(folder)
    del world.references["base"]["trust_remote_code"]
    return world


def on_hub(folder: Path) -> World:
    """The reference is named by its hub name; two commits of it are in the hub client's local cache."""
    world = _start(folder)
    repo = folder / "hub" / "models--mrpo--tiny"
    (repo / "refs").mkdir(parents=True)
    for ref, commit in zip(("main", "v2"), COMMITS, strict=True):
        (repo / "refs" / ref).write_text(commit)
    shutil.move(world.base, repo / "snapshots" / COMMITS[0])
    tiny_references.reference(repo / "snapshots" / COMMITS[1], "llama", "qwen", seed=1)
    world.references["base"] = {"model": "mrpo/tiny", "revision": COMMITS[0]}
    world.environment = {"HF_HUB_CACHE": "@/hub"}
    return world


def with_bos(folder: Path) -> World:
    """Raw text, and a tokenizer that puts a BOS token before it."""
    world = _start(folder, "llama", "llama2")
    rows = [
        {side: row[side][0]["content"] for side in ("prompt", "chosen", "rejected")}
        for row in tiny_references.plain_pairs(4)
    ]
    tiny_references.write_pairs(folder / "pairs.jsonl", rows)
    return world


WORLDS: dict[str, Callable[[Path], World]] = {
    maker.__name__: maker
    for maker in (
        plain,
        windowed,
        template_in_config,
        template_file,
        sharded,
        adapted,
        own_code,
        code_not_run,
        on_hub,
        with_bos,
    )
}


def weights_that_count(path: Path) -> range:
    """Bytes of the file with weights that affect every token: a matrix of the first layer."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    name = min(name for name in header if "layers.0" in name and ("down_proj" in name or "lora_B" in name))
    first, last = header[name]["data_offsets"]
    return range(8 + length + first, 8 + length + last)


def edited_in_place(path: Path) -> None:
    """Flip the sign of some float32 weights, keeping the file's size and modification time."""
    found = path.stat()
    place = weights_that_count(path)
    with path.open("r+b") as file:
        file.seek(place.start)
        data = bytearray(file.read(1024))
        data[3::4] = bytes(byte ^ 0x80 for byte in data[3::4])
        file.seek(place.start)
        file.write(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
