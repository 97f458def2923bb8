"""Model folders without a usable or fitting model: detected before any of their numbers is used."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from malformed.case import Case, Place

Change = Callable[[Place, Path], object]
SCORE = ("score-refs", "recipe.yaml")
WEIGHTS = "model/model.safetensors"


class Gotcha:
    """Unpickling it creates a file."""

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, ("gotcha", "w")


def cases(seed: int) -> list[Case]:
    """All of them; random ones are drawn from the seed."""
    found = [
        Case(name, _model(change), SCORE, ("base", *named), number % 20 == 0)
        for number, (name, change, named) in enumerate([*_files(), *_configs(), *_weights(), *_tokenizers()])
    ]
    found += [
        Case(f"policy: {name}", _policy(change), ("train", "recipe.yaml"), named)
        for name, change, named in [*_policies(), *((n, c, ("model",)) for n, c, _ in _weights()[:4])]
    ]
    found += [
        Case(f"planned: {name}", _model(change), ("plan", "recipe.yaml"), ("base",))
        for name, change, _ in [*_configs()[:6], *_tokenizers()[1:5]]
    ]
    return [*found, *_adapters(), *_random(seed)]


def _model(change: Change) -> Callable[[Place], None]:
    """The reference base is the case's own model, changed."""

    def make(place: Place) -> None:
        change(place, place.model())
        place.recipe({"references.base.model": "model"})

    return make


def _policy(change: Change) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.cache()
        change(place, place.model())
        place.recipe({"policy.model": "model"})

    return make


def _put(name: str, data: bytes | str) -> Change:
    return lambda place, model: place.write(f"model/{name}", data)


def _drop(*names: str) -> Change:
    def change(place: Place, model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return change


def _tokenizer_files(model: Path) -> list[Path]:
    return [
        path
        for path in model.iterdir()
        if path.name not in ("config.json", "model.safetensors", "generation_config.json")
    ]


def _json(name: str, **changes: Any) -> Change:
    """A JSON file with keys changed; ``...`` takes a key out."""

    def change(place: Place, model: Path) -> None:
        document = json.loads((model / name).read_bytes())
        for key, value in changes.items():
            document[key] = value
            if value is ...:
                del document[key]
        place.write(f"model/{name}", json.dumps(document))

    return change


def _files() -> list[tuple[str, Change, tuple[str, ...]]]:
    def empty(place: Place, model: Path) -> None:
        shutil.rmtree(model)
        model.mkdir()

    def file(place: Place, model: Path) -> None:
        shutil.rmtree(model)
        place.write("model", "hello")

    def link(place: Place, model: Path) -> None:
        shutil.rmtree(model)
        model.symlink_to("nowhere")

    def pickled(name: str) -> Change:
        def change(place: Place, model: Path) -> None:
            (model / "model.safetensors").unlink()
            (model / name).write_bytes(pickle.dumps(Gotcha()))

        return change

    def torch_pickle(place: Place, model: Path) -> None:
        import torch

        (model / "model.safetensors").unlink()
        torch.save({"weight": Gotcha()}, model / "pytorch_model.bin")

    def pickled_index(place: Place, model: Path) -> None:
        (model / "model.safetensors").unlink()
        (model / "pytorch_model-00001-of-00001.bin").write_bytes(pickle.dumps(Gotcha()))
        index = {"weight_map": {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    def index(weight_map: Any) -> Change:
        def change(place: Place, model: Path) -> None:
            (model / "model.safetensors").unlink()
            (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

        return change

    def index_as(text: str) -> Change:
        def change(place: Place, model: Path) -> None:
            (model / "model.safetensors").unlink()
            (model / "model.safetensors.index.json").write_text(text)

        return change

    def out_of_folder(place: Place, model: Path) -> None:
        os.rename(model / "model.safetensors", place.here / "elsewhere.safetensors")
        document = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(document))

    def part_missing(place: Place, model: Path) -> None:
        os.rename(model / "model.safetensors", model / "model-00001-of-00002.safetensors")
        document = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(document))

    def loop(place: Place, model: Path) -> None:
        (model / "model.safetensors").unlink()
        (model / "model.safetensors").symlink_to("model.safetensors")

    def device(place: Place, model: Path) -> None:
        (model / "model.safetensors").unlink()
        (model / "model.safetensors").symlink_to("/dev/zero")

    def fifo(name: str) -> Change:
        def change(place: Place, model: Path) -> None:
            (model / name).unlink()
            os.mkfifo(model / name)

        return change

    def folder(name: str) -> Change:
        def change(place: Place, model: Path) -> None:
            (model / name).unlink()
            (model / name).mkdir()

        return change

    model = ("model",)
    return [
        ("an empty folder", empty, model),
        ("a file in place of the folder", file, model),
        ("a broken link", link, model),
        ("no weights", _drop("model.safetensors"), ("safetensors",)),
        ("no configuration", _drop("config.json"), ("config.json",)),
        ("neither", _drop("config.json", "model.safetensors"), model),
        ("a pickle alone", pickled("pytorch_model.bin"), ("pickle", "safetensors")),
        ("a pickle of torch's", torch_pickle, ("pickle",)),
        ("a pickle called .pt", pickled("model.pt"), ("pickle",)),
        ("a pickle called .pth", pickled("consolidated.00.pth"), ("pickle",)),
        ("a pickle called .ckpt", pickled("model.ckpt"), ("pickle",)),
        ("a pickle in parts", pickled_index, ("pickle",)),
        ("a pickle called safetensors", _put("model.safetensors", pickle.dumps(Gotcha())), model),
        ("an index of nothing", index({}), model),
        ("an index of null", index(None), model),
        ("an index of a list", index([1, 2]), model),
        ("an index of numbers", index({"a": 1}), model),
        ("an index of a missing part", part_missing, model),
        ("an index that leaves the folder", out_of_folder, model),
        ("an index of an absolute path", index({"a": "/etc/passwd"}), model),
        ("an index of the folder itself", index({"a": "."}), model),
        ("an index that is no JSON", index_as("{"), model),
        ("an index that is a list", index_as("[]"), model),
        ("weights that are a link to themselves", loop, model),
        ("weights that are a device", device, model),
        ("weights that are a FIFO", fifo("model.safetensors"), model),
        ("weights that are a folder", folder("model.safetensors"), model),
        ("a configuration that is a FIFO", fifo("config.json"), ("config.json",)),
        ("a configuration that is a folder", folder("config.json"), ("config.json",)),
        ("a Git LFS pointer", _put("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 9\n"), model),
        ("an adapter in place of a model", _put("adapter_config.json", "{}"), ("adapter",)),
    ]  # fmt: skip


def _configs() -> list[tuple[str, Change, tuple[str, ...]]]:
    named = ("model",)
    return [
        ("config: empty", _put("config.json", ""), ("config.json",)),
        ("config: cut short", _put("config.json", '{"model_type": "llama", '), ("config.json",)),
        ("config: a list", _put("config.json", "[1]"), ("config.json",)),
        ("config: null", _put("config.json", "null"), ("config.json",)),
        ("config: not UTF-8", _put("config.json", b'{"model_type": "\xff"}'), ("config.json",)),
        ("config: 100,000 lists", _put("config.json", "[" * 100_000), ("config.json",)),
        ("config: 100,000 objects", _put("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000), ("config.json",)),
        ("config: nothing in it", _put("config.json", "{}"), named),
        ("config: 100 MB", _big_config, ("config.json",)),
        ("config: an unknown architecture", _json("config.json", model_type="llamma"), ("llamma",)),
        ("config: no architecture", _json("config.json", model_type=...), named),
        ("config: an architecture that is a number", _json("config.json", model_type=7), named),
        ("config: an architecture that is a list", _json("config.json", model_type=["llama"]), named),
        ("config: another architecture", _json("config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"]), named),
        ("config: an encoder", _json("config.json", model_type="bert", architectures=["BertModel"]), named),
        ("config: a translator", _json("config.json", model_type="t5", architectures=["T5Model"]), named),
        ("config: pictures", _json("config.json", model_type="vit", architectures=["ViTModel"]), named),
        ("config: layers that are not there", _json("config.json", num_hidden_layers=5), named),
        ("config: another width", _json("config.json", hidden_size=128), named),
        ("config: a width of a word", _json("config.json", hidden_size="wide"), named),
        ("config: a width of nothing", _json("config.json", hidden_size=0), named),
        ("config: a negative width", _json("config.json", hidden_size=-64), named),
        ("config: a width of a petabyte", _json("config.json", hidden_size=2**40), named),
        ("config: a million layers", _json("config.json", num_hidden_layers=10**6), named),
        ("config: heads that do not divide", _json("config.json", num_attention_heads=7), named),
        ("config: no heads", _json("config.json", num_attention_heads=0), named),
        ("config: another vocabulary", _json("config.json", vocab_size=77), named),
        ("config: a vocabulary of billions", _json("config.json", vocab_size=2**33), named),
        ("config: no vocabulary", _json("config.json", vocab_size=None), named),
        ("config: an unknown activation", _json("config.json", hidden_act="wobble"), named),
        ("config: an unknown dtype", _json("config.json", dtype="float99", torch_dtype="float99"), ("float99",)),
        ("config: a dtype that is a list", _json("config.json", dtype=[1]), named),
        ("config: positions of nothing", _json("config.json", max_position_embeddings=0), named),
        ("config: positions of a word", _json("config.json", max_position_embeddings="many"), named),
        ("config: negative positions", _json("config.json", max_position_embeddings=-5), named),
        ("config: unknown positions", _json("config.json", rope_scaling={"rope_type": "twisted", "factor": 2.0},
                                            rope_parameters={"rope_type": "twisted", "factor": 2.0, "rope_theta": 1e4}), named),
        ("config: quantization that is a word", _json("config.json", quantization_config="int4"), named),
        ("config: code of its own", _own_code, ("trust_remote_code",)),
        ("config: code of its own on the hub", _json("config.json", model_type="evil", auto_map={
            "AutoConfig": "evil/repo--c.C", "AutoModelForCausalLM": "evil/repo--m.M"}), ("trust_remote_code",)),
        ("config: code that leaves the folder", _json("config.json", model_type="evil", auto_map={
            "AutoConfig": "../../evil.C", "AutoModelForCausalLM": "../../evil.M"}), ("trust_remote_code",)),
    ]  # fmt: skip


def _big_config(place: Place, model: Path) -> None:
    place.write("model/config.json", b'{"a": "' + b"x" * 100_000_000 + b'"}')


def _own_code(place: Place, model: Path) -> None:
    code = "open('gotcha', 'w').write('x')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    place.write("model/evil.py", code)
    _json("config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(
        place, model
    )


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _packed(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _weights() -> list[tuple[str, Change, tuple[str, ...]]]:
    def bytes_of(change: Callable[[bytes], bytes]) -> Change:
        return lambda place, model: place.write(WEIGHTS, change((model / "model.safetensors").read_bytes()))

    def header_of(change: Callable[[dict[str, Any]], Any]) -> Change:
        def changed(data: bytes) -> bytes:
            header, body = _header(data)
            return _packed(change(header) or header, body)

        return bytes_of(changed)

    def first(header: dict[str, Any]) -> dict[str, Any]:
        tensor: dict[str, Any] = header[next(key for key in header if key != "__metadata__")]
        return tensor

    def filled(value: float, *, every: bool) -> Change:
        def changed(data: bytes) -> bytes:
            header, body = _header(data)
            raw = bytearray(body)
            start, end = first(header)["data_offsets"]
            for at in range(start, end, 4) if every else (start,):
                raw[at : at + 4] = struct.pack("<f", value)
            return _packed(header, bytes(raw))

        return bytes_of(changed)

    named = ("model",)
    return [
        ("weights: empty", _put("model.safetensors", b""), named),
        ("weights: cut in half", bytes_of(lambda data: data[: len(data) // 2]), named),
        ("weights: NaN all over", filled(float("nan"), every=True), ("NaN",)),
        ("weights: a header of nothing", _put("model.safetensors", struct.pack("<Q", 0)), named),
        ("weights: cut by a byte", bytes_of(lambda data: data[:-1]), named),
        ("weights: a byte too many", bytes_of(lambda data: data + b"x"), named),
        ("weights: the length alone", bytes_of(lambda data: data[:8]), named),
        ("weights: a header of 10 GB", bytes_of(lambda data: struct.pack("<Q", 10 << 30) + data[8:]), named),
        ("weights: a header of 2**64", bytes_of(lambda data: b"\xff" * 8 + data[8:]), named),
        ("weights: a header that is a list", header_of(lambda header: [1, 2]), named),
        ("weights: a header that is no JSON", bytes_of(lambda data: _packed(b"{not JSON}", _header(data)[1])), named),
        ("weights: a header not in UTF-8", bytes_of(lambda data: _packed(b'{"\xff": 1}', _header(data)[1])), named),
        ("weights: a header of 100,000 lists", bytes_of(lambda data: _packed(b"[" * 100_000, _header(data)[1])), named),
        ("weights: a header of numbers", header_of(lambda header: dict.fromkeys(header, 7)), named),
        ("weights: a header of no tensors", header_of(lambda header: {"__metadata__": {"format": "pt"}}), named),
        ("weights: offsets that overlap", header_of(lambda h: first(h).update(data_offsets=[4, first(h)["data_offsets"][1] + 4])), named),
        ("weights: offsets that run back", header_of(lambda h: first(h).update(data_offsets=first(h)["data_offsets"][::-1])), named),
        ("weights: offsets beyond the end", header_of(lambda h: first(h).update(data_offsets=[2**40, 2**41])), named),
        ("weights: negative offsets", header_of(lambda h: first(h).update(data_offsets=[-8, 8])), named),
        ("weights: offsets of words", header_of(lambda h: first(h).update(data_offsets=["a", "b"])), named),
        ("weights: a shape that disagrees", header_of(lambda h: first(h).update(shape=[1, 1])), named),
        ("weights: a negative shape", header_of(lambda h: first(h).update(shape=[-1, -1])), named),
        ("weights: a shape beyond bounds", header_of(lambda h: first(h).update(shape=[2**40, 2**40])), named),
        ("weights: an unknown dtype", header_of(lambda h: first(h).update(dtype="F99")), named),
        ("weights: no dtype", header_of(lambda h: first(h).pop("dtype") and None), named),
        ("weights: other names", header_of(lambda h: {f"x.{key}" if key != "__metadata__" else key: h[key] for key in h}), named),
        ("weights: zeros", bytes_of(lambda data: bytes(len(data))), named),
        ("weights: random bytes", bytes_of(lambda data: random.Random(0).randbytes(len(data))), named),
        ("weights: one NaN in a thousand", filled(float("nan"), every=False), ("NaN",)),
        ("weights: one infinite", filled(float("inf"), every=False), ("finite",)),
        ("weights: gzip", bytes_of(lambda data: b"\x1f\x8b" + data), named),
        ("weights: zip", bytes_of(lambda data: b"PK\x03\x04" + data), named),
    ]  # fmt: skip


def _tokenizers() -> list[tuple[str, Change, tuple[str, ...]]]:
    def larger(place: Place, model: Path) -> None:
        """Ids beyond the model's vocabulary for every word of the data."""
        document = json.loads((model / "tokenizer.json").read_bytes())
        document["model"]["vocab"] = {piece: i + 5000 for piece, i in document["model"]["vocab"].items()}
        for token in document["added_tokens"]:
            token["id"] += 10_000
        place.write("model/tokenizer.json", json.dumps(document))

    def part(name: str, value: Any) -> Change:
        return _json("tokenizer.json", **{name: value})

    def in_model(**changes: Any) -> Change:
        def change(place: Place, model: Path) -> None:
            document = json.loads((model / "tokenizer.json").read_bytes())
            document["model"].update(changes)
            place.write("model/tokenizer.json", json.dumps(document))

        return change

    def unknown_class(place: Place, model: Path) -> None:
        _json("tokenizer_config.json", tokenizer_class="MagicTokenizer")(place, model)
        (model / "tokenizer.json").unlink()

    def own_code(place: Place, model: Path) -> None:
        place.write("model/evil.py", "open('gotcha', 'w')\n")
        (model / "tokenizer.json").unlink()
        settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
        _json("tokenizer_config.json", **settings)(place, model)

    def number(place: Place, model: Path) -> None:
        _json("tokenizer_config.json", chat_template=7)(place, model)
        (model / "chat_template.jinja").unlink(missing_ok=True)

    named = ("tokenizer",)
    return [
        ("tokenizer: none", _no_tokenizer, named),
        ("tokenizer: empty", _put("tokenizer.json", ""), named),
        ("tokenizer: cut short", _put("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE"'), named),
        ("tokenizer: a list", _put("tokenizer.json", "[]"), named),
        ("tokenizer: null", _put("tokenizer.json", "null"), named),
        ("tokenizer: an empty object", _put("tokenizer.json", "{}"), named),
        ("tokenizer: not UTF-8", _put("tokenizer.json", b'{"version": "\xff"}'), named),
        ("tokenizer: 100,000 lists", _put("tokenizer.json", "[" * 100_000), named),
        ("tokenizer: a Git LFS pointer", _put("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n"), named),
        ("tokenizer: no model in it", part("model", None), named),
        ("tokenizer: an unknown model", part("model", {"type": "Magic", "vocab": {}}), named),
        ("tokenizer: an unknown normalizer", part("normalizer", {"type": "Magic"}), named),
        ("tokenizer: an unknown pre-tokenizer", part("pre_tokenizer", {"type": "Magic"}), named),
        ("tokenizer: a pattern that is none", part("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(((["},
                                                                     "behavior": "Isolated", "invert": False}), named),
        ("tokenizer: added tokens that are words", part("added_tokens", ["a", "b"]), named),
        ("tokenizer: a vocabulary of words", in_model(vocab=["a", "b"]), named),
        ("tokenizer: a vocabulary of negative ids", in_model(vocab={"a": -1}), named),
        ("tokenizer: a vocabulary of nothing", in_model(vocab={}, merges=[]), named),
        ("tokenizer: merges of nothing known", in_model(merges=[["zzzz", "yyyy"]]), named),
        ("tokenizer: merges that are numbers", in_model(merges=[1, 2]), named),
        ("tokenizer: ids beyond the model's", larger, ("vocabulary",)),
        ("tokenizer: its settings are no JSON", _put("tokenizer_config.json", "{"), named),
        ("tokenizer: its settings are a list", _put("tokenizer_config.json", "[1]"), named),
        ("tokenizer: an unknown class", unknown_class, named),
        ("tokenizer: code of its own", own_code, named),
        ("tokenizer: a template that is a number", number, ("template",)),
    ]  # fmt: skip


def _no_tokenizer(place: Place, model: Path) -> None:
    for path in _tokenizer_files(model):
        path.unlink()


def _policies() -> list[tuple[str, Change, tuple[str, ...]]]:
    return [
        (
            "another architecture",
            _json("config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"]),
            ("model",),
        ),
        ("no weights", _drop("model.safetensors"), ("model",)),
        ("no tokenizer", _no_tokenizer, ("tokenizer",)),
        ("an adapter in place of a model", _put("adapter_config.json", "{}"), ("adapter",)),
        ("layers that are not there", _json("config.json", num_hidden_layers=5), ("model",)),
        ("another vocabulary", _json("config.json", vocab_size=77), ("model",)),
        ("an encoder", _json("config.json", model_type="bert", architectures=["BertModel"]), ("model",)),
    ]


def _adapters() -> list[Case]:
    """Adapters beside a good model, on the reference and on the policy."""
    good = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}

    def weights(**shapes: tuple[int, int]) -> bytes:
        header, at = {}, 0
        for name, (rows, columns) in shapes.items():
            size = rows * columns * 4
            header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [at, at + size]}
            at += size
        return _packed(header, bytes(at))

    def layers(rank: int, width: int) -> bytes:
        shapes = {}
        for layer in range(2):
            stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            shapes[f"{stem}.lora_A.weight"] = (rank, width)
            shapes[f"{stem}.lora_B.weight"] = (width, rank)
        return weights(**shapes)

    sound = {"adapter_model.safetensors": layers(2, 64)}
    made: list[tuple[str, dict[str, bytes | str]]] = [
        ("empty", {}),
        ("no weights", {"adapter_config.json": json.dumps(good)}),
        ("no settings", {"adapter_model.safetensors": layers(2, 64)}),
        ("a pickle", {"adapter_config.json": json.dumps(good), "adapter_model.bin": pickle.dumps(Gotcha())}),
        ("settings cut short", {"adapter_config.json": "{", "adapter_model.safetensors": layers(2, 64)}),
        ("settings that are a list", {"adapter_config.json": "[]", "adapter_model.safetensors": layers(2, 64)}),
        ("no kind", {"adapter_config.json": json.dumps({"r": 2}), "adapter_model.safetensors": layers(2, 64)}),
        ("an unknown kind", {**sound, "adapter_config.json": json.dumps({**good, "peft_type": "MAGIC"})}),
        ("an unknown setting's type", {**sound, "adapter_config.json": json.dumps({**good, "r": "two"})}),
        ("weights cut short", {"adapter_config.json": json.dumps(good), "adapter_model.safetensors": layers(2, 64)[:-100]}),
        ("weights of another width", {"adapter_config.json": json.dumps(good), "adapter_model.safetensors": layers(2, 128)}),
        ("weights of another rank", {"adapter_config.json": json.dumps(good), "adapter_model.safetensors": layers(7, 64)}),
        ("weights of no layer here", {"adapter_config.json": json.dumps(good), "adapter_model.safetensors": weights(nobody=(2, 2))}),
        ("modules that are not there", {"adapter_config.json": json.dumps({**good, "target_modules": ["c_attn"]}),
                                        "adapter_model.safetensors": layers(2, 64)}),
    ]  # fmt: skip

    def maker(key: str, files: dict[str, bytes | str]) -> Callable[[Place], None]:
        def make(place: Place) -> None:
            (place.here / "adapter").mkdir()
            for name, data in files.items():
                place.write(f"adapter/{name}", data)
            if key.startswith("policy"):
                place.cache()
            place.recipe({key: "adapter"})

        return make

    found = []
    for name, files in made:
        found.append(Case(f"adapter: {name}", maker("references.base.adapter", files), SCORE, ("adapter",)))
        found.append(
            Case(f"policy's adapter: {name}", maker("policy.adapter", files), ("train", "recipe.yaml"), ("adapter",))
        )
    found.append(
        Case(
            "merge: settings cut short",
            maker("policy.adapter", made[4][1]),
            ("merge", "adapter", "-o", "out"),
            ("adapter",),
        )
    )
    found.append(
        Case(
            "merge: settings that are a list",
            maker("policy.adapter", made[5][1]),
            ("merge", "adapter", "-o", "out"),
            ("adapter",),
        )
    )
    found.append(
        Case(
            "merge: names no base", maker("policy.adapter", made[9][1]), ("merge", "adapter", "-o", "out"), ("adapter",)
        )
    )
    return found  # fmt: skip


def _random(seed: int) -> list[Case]:
    """The safetensors header with one punctuation mark changed, so that it is not JSON."""
    chance = random.Random(seed)
    found = []
    for number in range(15):
        at, mark = chance.random(), chance.choice("}{][,:")

        def change(place: Place, model: Path, at: float = at, mark: str = mark) -> None:
            header, body = _header((model / "model.safetensors").read_bytes())
            text = json.dumps(header)
            marks = [i for i, char in enumerate(text) if char in "{}[]:" and char != mark]
            cut = marks[int(at * len(marks))]
            place.write(WEIGHTS, _packed((text[:cut] + mark + text[cut + 1 :]).encode(), body))

        found.append(Case(f"random header {number}", _model(change), SCORE, ("base",)))
    return found
