"""Caches that this program did not write: manifests and shards from elsewhere, each with a correct checksum."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from malformed.case import Case, Place

COMMANDS = (("audit", "recipe.yaml"), ("train", "recipe.yaml"), ("targets", "recipe.yaml"), ("score-refs", "recipe.yaml"),
            ("plan", "recipe.yaml"), ("cache", "stats", "--cache", "cache"))  # fmt: skip
# Commands that read every number.
READERS = (
    ("audit", "recipe.yaml"),
    ("train", "recipe.yaml"),
    ("targets", "recipe.yaml"),
    ("cache", "stats", "--cache", "cache"),
)

Document = dict[str, Any]


class Gotcha:
    """Unpickling it creates a file."""

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, ("gotcha", "w")


def cases(seed: int) -> list[Case]:
    """All of them; random ones are drawn from the seed."""
    found = []
    for number, (name, data) in enumerate(_manifests()):
        command = COMMANDS[number % len(COMMANDS)]
        found.append(Case(f"manifest: {name}", _manifest(data), command, ("manifest",), number % 20 == 0))
    for number, (name, change) in enumerate(_fingerprints()):
        command = COMMANDS[number % (len(COMMANDS) - 1)]
        found.append(Case(f"fingerprint: {name}", _refingered(change), command, ("base",)))
    for number, (name, change) in enumerate(_shards()):
        command = READERS[number % len(READERS)]
        found.append(Case(f"shard: {name}", _shard(change), command, ("shards/",), number % 15 == 0))
    for name in ("ids in capitals", "ids that are too short"):  # for a lookup it does not exist
        at = next(i for i, case in enumerate(found) if case.name == f"shard: {name}")
        found[at] = replace(found[at], command=READERS[3])
    for number, (name, bytes_of) in enumerate(_raw_shards()):
        command = READERS[number % len(READERS)]
        found.append(Case(f"shard: {name}", _raw_shard(bytes_of), command, ("shards/",)))
    return [*found, *_folders(), *_random(seed)]


def _manifest(change: Callable[[Document], Any]) -> Callable[[Place], None]:
    """The manifest of base, changed; bytes and text are written as they are."""

    def make(place: Place) -> None:
        path = place.cache() / "base" / "manifest.json"
        made = change(json.loads(path.read_bytes()))
        path.unlink()
        place.write("cache/base/manifest.json", made if isinstance(made, bytes | str) else json.dumps(made))
        place.recipe()

    return make


def _manifests() -> list[tuple[str, Callable[[Document], Any]]]:
    def key(name: str, value: Any) -> Callable[[Document], Any]:
        return lambda document: {**document, name: value}

    def without(name: str) -> Callable[[Document], Any]:
        return lambda document: {k: v for k, v in document.items() if k != name}

    def field(name: str, value: Any) -> Callable[[Document], Any]:
        return lambda document: {**document, "fingerprint": {**document["fingerprint"], name: value}}

    return [
        ("empty", lambda d: ""),
        ("cut short", lambda d: json.dumps(d)[:-30]),
        ("no JSON", lambda d: "hello"),
        ("a list", lambda d: [d]),
        ("null", lambda d: None),
        ("a number", lambda d: 7),
        ("a text", lambda d: '"manifest"'),
        ("an empty object", lambda d: {}),
        ("not UTF-8", lambda d: b'{"format": "\xff"}'),
        ("UTF-16 of something else", lambda d: "{'a': 1}".encode("utf-16")),
        ("NULs", lambda d: bytes(1000)),
        ("a pickle", lambda d: pickle.dumps(Gotcha())),
        ("a Git LFS pointer", lambda d: "version https://git-lfs.github.com/spec/v1\n"),
        ("100,000 lists", lambda d: "[" * 100_000),
        ("100,000 objects", lambda d: '{"a":' * 100_000),
        ("100 MB of spaces", lambda d: json.dumps(d) + " " * 100_000_000 + "x"),
        ("100 MB of text", lambda d: '{"format": 1, "reference": "' + "x" * 100_000_000 + '"}'),
        ("a million fields", lambda d: json.dumps({**d, "fingerprint": {f"f{i}": "x" for i in range(1_000_000)}})),
        ("something behind it", lambda d: json.dumps(d) + "}"),
        ("a newer format", key("format", 2)),
        ("a far newer format", key("format", 10**30)),
        ("an older format", key("format", 0)),
        ("a negative format", key("format", -1)),
        ("a format of a word", key("format", "one")),
        ("a format of null", key("format", None)),
        ("a format of a list", key("format", [1])),
        ("a format of a half", key("format", 1.5)),
        ("a huge format", lambda d: '{"format": ' + "9" * 5000 + "}"),
        ("a format of NaN", key("format", float("nan"))),
        ("no format", without("format")),
        ("no reference", without("reference")),
        ("no fingerprint", without("fingerprint")),
        ("no hash", without("fingerprint_hash")),
        ("no record", without("recorded")),
        ("a fingerprint that is a list", key("fingerprint", ["weights"])),
        ("a fingerprint that is a text", key("fingerprint", "abc")),
        ("a fingerprint that is null", key("fingerprint", None)),
        ("a fingerprint of numbers", field("weights", 7)),
        ("a fingerprint of nulls", field("dtype", None)),
        ("a fingerprint of lists", field("tokenizer", ["x"])),
        ("an empty fingerprint", key("fingerprint", {})),
        ("a hash that is a number", key("fingerprint_hash", 7)),
        ("a hash of zeros", key("fingerprint_hash", "0" * 64)),
        ("a field changed, the hash not", field("dtype", "float16")),
        ("a field more, the hash not", field("extra", "x")),
        ("a record that is a number", key("recorded", 7)),
        ("a record that is a text", key("recorded", "x")),
        ("a record that is null", key("recorded", None)),
        ("safetensors' index", lambda d: {"weight_map": {"a": "b"}}),
        ("a recipe", lambda d: "pairs:\n  train: x\n"),
    ]  # fmt: skip


def _refingered(change: Callable[[Document], object]) -> Callable[[Place], None]:
    """A manifest whose hash agrees with its fingerprint, which is not that of the recipe's reference."""

    def changed(document: Document) -> Document:
        change(document["fingerprint"])
        text = json.dumps(document["fingerprint"], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return {**document, "fingerprint_hash": hashlib.sha256(text.encode()).hexdigest()}

    return _manifest(changed)


def _fingerprints() -> list[tuple[str, Callable[[Document], object]]]:
    return [
        ("other weights", lambda f: f.update(weights="sha256:" + "0" * 64)),
        ("weights with an escape", lambda f: f.update(weights="\x1b[2J\x07")),
        ("weights in two paragraphs", lambda f: f.update(weights="a\n\nmrpo: all is well")),
        ("weights of a megabyte", lambda f: f.update(weights="w" * 1_000_000)),
        ("another dtype", lambda f: f.update(dtype="float16")),
        ("another tokenizer", lambda f: f.update(tokenizer="0" * 32)),
        ("another template", lambda f: f.update(template="0" * 32)),
        ("another end of turn", lambda f: f.update(end_of_turn="</s>")),
        ("an adapter", lambda f: f.update(adapted="yes", adapter="sha256:" + "0" * 64)),
        ("a quantization", lambda f: f.update(quantization="nf4")),
        ("nothing of the weights", lambda f: f.pop("weights")),
        ("nothing of the tokenizer", lambda f: f.pop("tokenizer")),
        ("nothing at all", lambda f: f.clear()),
        ("everything empty", lambda f: f.update(dict.fromkeys(f, ""))),
        ("a look-alike's dtype", lambda f: f.update(dtype="flo\u0430t32")),
    ]


def _shard(change: Callable[[Any], Any]) -> Callable[[Place], None]:
    """The shard of base as a table, changed and written with a correct checksum: intact, but with wrong content."""

    def make(place: Place) -> None:
        import pyarrow.parquet as pq

        shards = place.cache() / "base" / "shards"
        [path] = shards.glob("*.parquet")
        table = change(pq.read_table(path, use_threads=False))
        path.unlink()
        pq.write_table(table, shards / "made")
        data = (shards / "made").read_bytes()
        (shards / "made").rename(shards / f"{hashlib.sha256(data).hexdigest()}.parquet")
        shutil.rmtree(place.here / "cache" / "base" / "sums", ignore_errors=True)
        place.recipe()

    return make


def _shards() -> list[tuple[str, Callable[[Any], Any]]]:
    import pyarrow as pa

    def column(name: str, change: Callable[[list[Any]], list[Any]], kind: Any = None) -> Callable[[Any], Any]:
        def changed(table: Any) -> Any:
            at = table.column_names.index(name)
            made = pa.array(change(table.column(name).to_pylist()), kind or table.schema.field(name).type)
            return table.set_column(at, pa.field(name, made.type), made)

        return changed

    def without(name: str) -> Callable[[Any], Any]:
        return lambda table: table.drop_columns([name])

    def first(value: Any) -> Callable[[list[Any]], list[Any]]:
        """The first row's value replaced; a function is applied to it."""
        return lambda rows: [value(rows[0]) if callable(value) else value, *rows[1:]]

    def numbers(value: float) -> Callable[[list[Any]], list[Any]]:
        return first(lambda row: [value, *row[1:]])

    def bare(table: Any) -> Any:
        for name in ("logprobs", "token_ids", "byte_ends"):
            table = column(name, first([]))(table)
        return table

    floats, ints, text = pa.list_(pa.float32()), pa.list_(pa.int32()), pa.string()
    return [
        ("no rows' ids", without("completion_id")),
        ("no log-probs", without("logprobs")),
        ("no token ids", without("token_ids")),
        ("no byte ends", without("byte_ends")),
        ("no word on completeness", without("complete")),
        ("no prompt tokens", without("prompt_tokens")),
        ("other columns altogether", lambda table: pa.table({"a": [1], "b": ["x"]})),
        ("columns of other names", lambda table: table.rename_columns([name.upper() for name in table.column_names])),
        ("a column twice", lambda table: table.append_column("logprobs", table.column("logprobs"))),
        ("NaN", column("logprobs", numbers(float("nan")), floats)),
        ("-inf", column("logprobs", numbers(float("-inf")), floats)),
        ("+inf", column("logprobs", numbers(float("inf")), floats)),
        ("a log-prob above zero", column("logprobs", numbers(3.5), floats)),
        ("probabilities", column("logprobs", lambda rows: [[0.5] * len(row) for row in rows], floats)),
        ("a log-prob of a masked token", column("logprobs", numbers(-3.4e38), floats)),
        ("log-probs that are texts", column("logprobs", lambda rows: [["x"] * len(row) for row in rows], pa.list_(text))),
        ("log-probs that are one number", column("logprobs", lambda rows: [-1.0] * len(rows), pa.float32())),
        ("log-probs that are binary", column("logprobs", lambda rows: [pickle.dumps(row) for row in rows], pa.binary())),
        ("log-probs that are null", column("logprobs", first(None))),
        ("a log-prob that is null", column("logprobs", first(lambda row: [None, *row[1:]]))),
        ("fewer log-probs than tokens", column("logprobs", first(lambda row: row[1:]))),
        ("more log-probs than tokens", column("logprobs", first(lambda row: [*row, -1.0]))),
        ("rows without tokens", bare),
        ("ids that are numbers", column("completion_id", lambda rows: list(range(len(rows))), pa.int64())),
        ("ids that are null", column("completion_id", first(None))),
        ("ids in capitals", column("completion_id", lambda rows: [row.upper() for row in rows])),
        ("ids that are too short", column("completion_id", lambda rows: [row[:8] for row in rows])),
        ("ids with an escape", column("completion_id", first("\x1b[31m" + "0" * 27))),
        ("ids that are binary", column("completion_id", lambda rows: [b"\xff" * 32 for _ in rows], pa.binary())),
        ("token ids that are negative", column("token_ids", first(lambda row: [-1, *row[1:]]), ints)),
        ("token ids beyond 32 bits", column("token_ids", first(lambda row: [2**40, *row[1:]]), pa.list_(pa.int64()))),
        ("token ids that are texts", column("token_ids", lambda rows: [["x"] * len(row) for row in rows], pa.list_(text))),
        ("token ids that are halves", column("token_ids", lambda rows: [[0.5] * len(row) for row in rows], pa.list_(pa.float64()))),
        ("byte ends that fall", column("byte_ends", lambda rows: [row[::-1] if row[0] != row[-1] else row for row in rows], ints)),
        ("byte ends that are negative", column("byte_ends", lambda rows: [[-5] * len(row) for row in rows], ints)),
        ("byte ends that are null", column("byte_ends", first(None))),
        ("completeness of a word", column("complete", lambda rows: ["perhaps"] * len(rows), text)),
        ("completeness of null", column("complete", first(None))),
        ("prompt tokens that are negative", column("prompt_tokens", first(-7))),
        ("prompt tokens beyond 32 bits", column("prompt_tokens", first(2**40), pa.int64())),
        ("prompt tokens that are texts", column("prompt_tokens", lambda rows: ["many"] * len(rows), text)),
        ("prompt tokens that are null", column("prompt_tokens", first(None))),
        ("lists of lists", column("token_ids", lambda rows: [[row] for row in rows], pa.list_(ints))),
    ]  # fmt: skip


def _raw_shard(change: Callable[[bytes], bytes]) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        shards = place.cache() / "base" / "shards"
        [path] = shards.glob("*.parquet")
        data = change(path.read_bytes())
        path.unlink()
        (shards / f"{hashlib.sha256(data).hexdigest()}.parquet").write_bytes(data)
        shutil.rmtree(place.here / "cache" / "base" / "sums", ignore_errors=True)
        place.recipe()

    return make


def _raw_shards() -> list[tuple[str, Callable[[bytes], bytes]]]:
    return [
        ("empty", lambda data: b""),
        ("a text", lambda data: b"hello"),
        ("marks alone", lambda data: b"PAR1PAR1"),
        ("cut in half", lambda data: data[: len(data) // 2]),
        ("cut by a byte", lambda data: data[:-1]),
        ("a footer of 4 GB", lambda data: data[:-8] + b"\xff\xff\xff\xff" + data[-4:]),
        ("a footer of zeros", lambda data: data[:-300] + bytes(292) + data[-8:]),
        ("pages of ones", lambda data: data[:4] + b"\xff" * 400 + data[404:]),
        ("JSON", lambda data: b'{"completion_id": "a"}\n'),
        ("a pickle", lambda data: pickle.dumps(Gotcha())),
        ("gzip", lambda data: b"\x1f\x8b\x08\x00" + bytes(100)),
        ("Arrow", lambda data: b"ARROW1\0\0" + bytes(100)),
    ]  # fmt: skip


def _folders() -> list[Case]:
    """Folders, links and locations."""

    def cached(change: Callable[[Path], object]) -> Callable[[Place], None]:
        def make(place: Place) -> None:
            change(place.cache())
            place.recipe()

        return make

    def out_of_folder(cache: Path) -> None:
        secret = cache.parent.parent / "elsewhere"
        secret.mkdir()
        [shard] = (cache / "base" / "shards").glob("*.parquet")
        (secret / "data").write_bytes(b"secret")
        shard.unlink()
        shard.symlink_to(secret / "data")

    def manifest_link(target: str) -> Callable[[Path], None]:
        def change(cache: Path) -> None:
            (cache / "base" / "manifest.json").unlink()
            (cache / "base" / "manifest.json").symlink_to(target)

        return change

    def shard_link(target: str) -> Callable[[Path], None]:
        def change(cache: Path) -> None:
            [shard] = (cache / "base" / "shards").glob("*.parquet")
            shard.unlink()
            shard.symlink_to(target)

        return change

    def at_place(name: str, put: Callable[[Path], object]) -> Callable[[Path], None]:
        def change(cache: Path) -> None:
            path = cache / name
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()
            put(path)

        return change

    def shard_as(put: Callable[[Path], object]) -> Callable[[Path], None]:
        def change(cache: Path) -> None:
            [shard] = (cache / "base" / "shards").glob("*.parquet")
            shard.unlink()
            put(shard)

        return change

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    audit, stats, score = (
        ("audit", "recipe.yaml"),
        ("cache", "stats", "--cache", "cache"),
        ("score-refs", "recipe.yaml"),
    )
    found = [
        Case("a shard that is a link out of the folder", cached(out_of_folder), audit, ("shards/",)),
        Case("a shard that is a link to the passwords", cached(shard_link("/etc/passwd")), audit, ("shards/",)),
        Case("a shard that is a link to a device", cached(shard_link("/dev/zero")), audit, ("shards/",)),
        Case("a shard that is a link to itself", cached(shard_as(lambda p: p.symlink_to(p.name))), audit, ("shards/",)),
        Case("a shard that is a FIFO", cached(shard_as(os.mkfifo)), audit, ("shards/",)),
        Case("a shard that is a FIFO, counted", cached(shard_as(os.mkfifo)), stats, ("shards/",)),
        Case("a shard that is a folder", cached(shard_as(os.mkdir)), audit, ("shards/",)),
        Case("a manifest that is a link to a device", cached(manifest_link("/dev/zero")), audit, ("manifest",)),
        Case("a manifest that is a link to the passwords", cached(manifest_link("/etc/passwd")), audit, ("manifest",)),
        Case("a manifest that is a link to itself", cached(manifest_link("manifest.json")), audit, ("manifest",)),
        Case("a manifest that is a FIFO", cached(at_place("base/manifest.json", os.mkfifo)), audit, ("manifest",), started=True),
        Case("a manifest that is a folder", cached(at_place("base/manifest.json", os.mkdir)), audit, ("manifest",)),
        Case("a manifest that is missing", cached(lambda c: (c / "base" / "manifest.json").unlink()), audit, ("manifest",)),
        Case("a manifest that is missing, scored", cached(lambda c: (c / "base" / "manifest.json").unlink()), score, ("manifest",)),
        Case("a reference that is a file", cached(at_place("base", empty)), audit, ("cache/base",)),
        Case("a reference that is a file, scored", cached(at_place("base", empty)), score, ("cache/base",)),
        Case("a reference that is missing", cached(lambda c: shutil.rmtree(c / "other")), audit, ("other",)),
        Case("shards that are a file", cached(at_place("base/shards", empty)), audit, ("base",)),
        Case("no shards", cached(lambda c: shutil.rmtree(c / "base" / "shards")), audit, ("base",)),
        Case("an empty cache", cached(shutil.rmtree), audit, ("base",)),
        Case("an empty cache, counted", cached(shutil.rmtree), stats, ("cache",)),
        Case("two references in each other's place", cached(_swapped), audit, ("base",)),
    ]  # fmt: skip
    return found


def _swapped(cache: Path) -> None:
    """Manifests of other models, as if folders had been renamed."""
    path = cache / "base" / "manifest.json"
    document = json.loads(path.read_bytes())
    document["fingerprint"]["weights"] = "sha256:" + "1" * 64
    text = json.dumps(document["fingerprint"], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    document["fingerprint_hash"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(document))


def _random(seed: int) -> list[Case]:
    """Manifests with one punctuation mark of their JSON changed, or one letter of the fingerprint."""
    chance = random.Random(seed)
    found = []
    for number in range(20):
        at, mark = chance.random(), chance.choice("}{][,:")

        def change(document: Document, at: float = at, mark: str = mark) -> str:
            text = json.dumps(document)
            marks = [i for i, char in enumerate(text) if char in '{}:"' and char != mark]
            cut = marks[int(at * len(marks))]
            broken = text[:cut] + mark + text[cut + 1 :]
            try:
                json.loads(broken)
            except ValueError:
                return broken
            return text[:cut] + "\x00" + text[cut + 1 :]  # a mark inside a string, where it stays valid JSON

        command = chance.choice(COMMANDS)
        found.append(Case(f"random manifest {number}", _manifest(change), command, ("manifest",)))
    return found
