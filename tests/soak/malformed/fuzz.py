"""Good files with random bytes changed, given directly to the parsers: each must read the file, or refuse it with its own
error.

A changed byte may leave the file valid, so the check is that no parser raises anything but its own refusal.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIECES = (b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\n", b"NaN", b"-1", b"1e999",
          b"9" * 400, b"null", b"true", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"&a", b"*a", b"!!x", b"- ", b"PAR1", b"\t")  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """A good input, and the function that reads it from a file of that name."""

    name: str
    good: bytes
    file: str
    read: Callable[[Path], object]


def mutations(good: bytes, chance: random.Random) -> Iterator[bytes]:
    """Endless changes: flipped bytes, pieces inserted or removed, parts duplicated or moved, a truncated end."""
    while True:
        data = bytearray(good)
        for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
            at = chance.randrange(len(data) + 1) if data else 0
            length = chance.choice([1, 1, 2, 8, 64])
            kind = chance.randrange(6)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                data[at:at] = chance.choice(PIECES)
            elif kind == 2:
                del data[at : at + length]
            elif kind == 3:
                data[at:at] = data[at : at + length]
            elif kind == 4:
                data[at : at + length] = chance.randbytes(length)
            else:
                other = chance.randrange(len(data) + 1)
                data[at : at + length] = data[other : other + length]
        yield bytes(data[: chance.randrange(len(data) + 1)]) if chance.random() < 0.1 else bytes(data)


def parsers(folder: Path) -> list[Parser]:
    """Every parser of files that come from elsewhere, with a good input of some hundred bytes or a few thousand."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    from mrpo_pipeline.cache.manifest import Manifest
    from mrpo_pipeline.cache.schema import CompletionRow, encode_shard, rows_to_table
    from mrpo_pipeline.cache.shards import read_rows
    from mrpo_pipeline.models.checks import opened
    from mrpo_pipeline.models.files import header_dtype, read_config
    from mrpo_pipeline.pairs import read_pairs
    from mrpo_pipeline.recipe import load_recipe

    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": f"Ünï {i}?"}], "chosen": [{"role": "assistant", "content": f"Yes {i}."}],
         "rejected": [{"role": "assistant", "content": "No."}], "id": i, "score": 0.5}
        for i in range(4)
    ]  # fmt: skip
    ranked: dict[str, Any] = {
        "prompt": "a",
        "completions": ["b", "c", "d"],
        "ranks": [1, 2, 3],
        "scores": [3.0, 2.0, 1.0],
    }
    text = {"prompt": "a\n\nAssistant:", "chosen": " b", "rejected": " c"}
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, ranked, text]).encode()
    recipe = {
        "pairs": {"train": "a.jsonl", "eval_fraction": 0.1, "columns": {"prompt": "p"}}, "policy": {"model": "m", "lora": {"r": 8}},
        "references": {"base": {"model": "m"}, "other": {"model": "n", "scoring": {"engine": "vllm"}}}, "cache": "cache",
        "method": {"beta": 0.1, "weights": [0.5, 0.5], "trust_region": {"kind": "fixed", "epsilon": 0.1}},
        "training": {"learning_rate": 1e-5, "max_steps": 3}, "compare": {"seeds": [0, 1], "methods": {"a": {"beta": 0.2}}},
    }  # fmt: skip
    scored = [
        CompletionRow(f"{i:032x}", 5, np.arange(4, dtype=np.int32), np.full(4, -1.5, np.float32),
                      np.array([1, 2, 3, 3], np.int32), True)
        for i in range(8)
    ]  # fmt: skip
    manifest = Manifest(
        "base", {"weights": "sha256:aa", "dtype": "float32", "tokenizer": "bb"}, {"engine": "transformers"}
    )
    table = folder / "good.parquet"
    pq.write_table(
        pa.table({name: [json.dumps(row[name]) for row in rows] for name in ("prompt", "chosen", "rejected")}), table
    )
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + bytes(16)

    def shard(path: Path) -> None:
        for _ in read_rows(_Named(), path.name, pa.py_buffer(path.read_bytes())):  # type: ignore[arg-type]
            pass

    def weights(path: Path) -> None:
        header_dtype(path)
        with opened("base", path) as found:
            for name in found.keys():  # noqa: SIM118 (no mapping)
                found.get_tensor(name)

    return [
        Parser("JSON lines", jsonl, "pairs.jsonl", lambda path: read_pairs(str(path), on_bad_row="skip")),
        Parser("a JSON list", json.dumps(rows, indent=1).encode(), "pairs.json", lambda path: read_pairs(str(path), on_bad_row="skip")),
        Parser("Parquet pairs", table.read_bytes(), "pairs.parquet", lambda path: read_pairs(str(path), on_bad_row="skip")),
        Parser("a recipe", yaml.safe_dump(recipe, sort_keys=False).encode(), "recipe.yaml", load_recipe),
        Parser("a manifest", manifest.to_bytes(), "manifest.json", lambda path: Manifest.from_bytes(path.read_bytes(), str(path))),
        Parser("a shard", encode_shard(rows_to_table(scored)).to_pybytes(), "shard.parquet", shard),
        Parser("a configuration", json.dumps({"model_type": "llama", "dtype": "float32"}).encode(), "config.json",
               lambda path: read_config("base", path)),
        Parser("safetensors", tensors, "model.safetensors", weights),
    ]  # fmt: skip


class _Named:
    """In place of a storage, for its name in messages."""

    def __str__(self) -> str:
        return "cache/base"


def run_into(folder: str, seed: str, count: str) -> None:
    """Like ``run``, in a child of the server; results are written to ``fuzz.json`` in the folder."""
    (Path(folder) / "fuzz.json").write_text(json.dumps(run(Path(folder), int(seed), int(count))), encoding="utf-8")


def run(folder: Path, seed: int, count: int) -> list[dict[str, object]]:
    """`count` changed inputs for each parser; what raised anything but a refusal is printed.

    Returns:
        one line per parser: ``parser``, ``inputs``, ``refused``, ``read``, ``faults``.
    """
    from mrpo_pipeline.errors import RunError, UserError

    place = folder / "fuzz"
    place.mkdir(exist_ok=True)
    found: list[dict[str, object]] = []
    for parser in parsers(place):
        chance = random.Random(f"{seed} {parser.name}")
        counts = {"refused": 0, "read": 0, "faults": 0}
        path = place / parser.file
        for _, data in zip(range(count), mutations(parser.good, chance), strict=False):
            path.write_bytes(data)
            try:
                parser.read(path)
                counts["read"] += 1
            except (UserError, RunError) as error:
                counts["refused"] += 1
                if "Traceback" in str(error):
                    counts["faults"] += 1
            except Exception as error:
                counts["faults"] += 1
                print(f"fuzz {parser.name}: {type(error).__name__}: {str(error)[:300]!r} from {data[:2000]!r}")
        found.append({"parser": parser.name, "inputs": count, **counts})
    shutil.rmtree(place)
    return found
