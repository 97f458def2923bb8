"""Unusable files of pairs: rows, and whole files."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from malformed.case import Case, Document, Place, lines

# `plan` reads rows in another way than the commands that need every row.
READERS = ("audit", "plan", "score-refs", "train", "targets")

USER = [{"role": "user", "content": "Question?"}]
YES = [{"role": "assistant", "content": "Yes."}]
NO = [{"role": "assistant", "content": "No."}]
GOOD: Document = {"prompt": USER, "chosen": YES, "rejected": NO}

MISSING: Any = object()


def _row(**changes: Any) -> Document:
    return {key: value for key, value in {**GOOD, **changes}.items() if value is not MISSING}


def _said(role: Any, content: Any, **more: Any) -> Document:
    return {"role": role, "content": content, **more}


# A row of JSON (or its text), and what the error contains besides file and row.
ROWS: dict[str, tuple[Document | str, str]] = {
    "no chosen": (_row(chosen=MISSING), "chosen"),
    "no rejected": (_row(rejected=MISSING), "rejected"),
    "no side at all": ({"prompt": USER}, "chosen"),
    "nothing": ({}, "chosen"),
    "other names": ({"question": "a", "better": "b", "worse": "c"}, "chosen"),
    "chosen is null": (_row(chosen=None), "chosen"),
    "rejected is null": (_row(rejected=None), "rejected"),
    "prompt is a number": (_row(prompt=7), "prompt"),
    "prompt is true": (_row(prompt=True), "prompt"),
    "prompt is an object": (_row(prompt={"text": "a"}), "prompt"),
    "prompt is an empty list": (_row(prompt=[]), "prompt"),
    "prompt is an empty string": (_row(prompt="", chosen="a", rejected="b"), "prompt"),
    "prompt is white space": (_row(prompt=" \n\t", chosen="a", rejected="b"), "prompt"),
    "prompt is a list of strings": (_row(prompt=["a", "b"]), "prompt[0]"),
    "prompt is a list of lists": (_row(prompt=[["user", "a"]]), "prompt[0]"),
    "prompt is a list of nulls": (_row(prompt=[None]), "prompt[0]"),
    "prompt ends by the assistant": (_row(prompt=[*USER, *YES]), "user message"),
    "prompt has a system message alone": (_row(prompt=[_said("system", "a")]), "user message"),
    "system message in the middle": (_row(prompt=[*USER, _said("system", "a"), *USER]), "system"),
    "user message is empty": (_row(prompt=[_said("user", "")]), "prompt"),
    "chosen is a number": (_row(chosen=1.5), "chosen"),
    "chosen is an object": (_row(chosen={"content": "a"}), "chosen"),
    "chosen is an empty list": (_row(chosen=[]), "chosen"),
    "chosen is an empty string": (_row(prompt="a", chosen="", rejected="b"), "empty completion"),
    "rejected is white space": (_row(prompt="a", chosen="b", rejected="\n \u3000"), "empty completion"),
    "chosen is by the user": (_row(chosen=USER), "chosen"),
    "chosen is by nobody": (_row(chosen=[_said("", "a")]), "chosen[0]"),
    "sides are equal": (_row(rejected=YES), "chosen equals rejected"),
    "sides are equal strings": (_row(prompt="a", chosen="b", rejected="b"), "chosen equals rejected"),
    "sides of two kinds": (_row(prompt="a", chosen="b", rejected=NO), "row 1"),
    "role is a number": (_row(prompt=[_said(1, "a")]), "role"),
    "role is null": (_row(prompt=[_said(None, "a")]), "role"),
    "role is a list": (_row(prompt=[_said(["user"], "a")]), "role"),
    "role is a developer": (_row(prompt=[_said("developer", "a")]), "developer"),
    "role is in capitals": (_row(prompt=[_said("User", "a")]), "User"),
    "role is Human": (_row(prompt=[_said("human", "a")]), "human"),
    "role is a tool": (_row(prompt=[*USER, _said("tool", "a"), *USER]), "tool"),
    "role is a control token": (_row(prompt=[_said("<|im_start|>", "a")]), "role"),
    "role is 1 MB": (_row(prompt=[_said("r" * 1_000_000, "a")]), "role"),
    "role ends the paragraph": (_row(prompt=[_said("user\n\nmrpo: all is well\n\n", "a")]), "role"),
    "role rings the bell": (_row(prompt=[_said("\x07\x1b[31m", "a")]), "role"),
    "message without role": (_row(prompt=[{"content": "a"}]), "role"),
    "message without content": (_row(prompt=[{"role": "user"}]), "content"),
    "content is null": (_row(prompt=[_said("user", None)]), "content"),
    "content is a number": (_row(chosen=[_said("assistant", 5)]), "content"),
    "content is an object": (_row(chosen=[_said("assistant", {"text": "a"})]), "content"),
    "content part is a string": (_row(chosen=[_said("assistant", ["a"])]), "content[0]"),
    "content part is an image": (_row(prompt=[_said("user", [{"type": "image_url", "image_url": {"url": "x"}}])]), "image"),
    "content part is sound": (_row(prompt=[_said("user", [{"type": "input_audio", "data": "x"}])]), "audio"),
    "content part is a video": (_row(prompt=[_said("user", [{"type": "video", "data": "x"}])]), "video"),
    "content part is a tool's": (_row(prompt=[_said("user", [{"type": "tool_result", "content": "x"}])]), "tool"),
    "content part of no type": (_row(chosen=[_said("assistant", [{"text": "a"}])]), "content[0]"),
    "content part of a strange type": (_row(chosen=[_said("assistant", [{"type": 7, "text": "a"}])]), "content[0]"),
    "content part without text": (_row(chosen=[_said("assistant", [{"type": "text"}])]), "content[0]"),
    "tool calls": (_row(chosen=[_said("assistant", "a", tool_calls=[{"id": 1}])]), "tool call"),
    "a function call": (_row(chosen=[_said("assistant", "a", function_call={"name": "f"})]), "tool call"),
    "reasoning apart": (_row(chosen=[_said("assistant", "a", reasoning_content="hm")]), "reasoning"),
    "thinking apart": (_row(chosen=[_said("assistant", "a", thinking="hm")]), "reasoning"),
    "an image column": (_row(images=["x.png"]), "image"),
    "a tools column": (_row(tools=[{"name": "f"}]), "tool"),
    "id is a list": (_row(id=[1]), "id"),
    "id is a float": (_row(id=1.5), "id"),
    "id is true": (_row(id=True), "id"),
    "NUL in the prompt": (_row(prompt=[_said("user", "a\0b")]), "NUL"),
    "NUL in a completion": (_row(prompt="a", chosen="b\0", rejected="c"), "NUL"),
    "no prompt, and strings that share none": ({"chosen": "The cat", "rejected": "The dog"}, "no prompt"),
    "no prompt, and nothing shared": ({"chosen": YES, "rejected": NO}, "prompt"),
    "no prompt, further turns": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "\n\nHuman: a\n\nAssistant: e"},
        "several turns",
    ),
    "no prompt, rendered by a template": (
        {"chosen": "<|im_start|>user\na<|im_end|>x", "rejected": "<|im_start|>user\na<|im_end|>y"}, "ChatML"
    ),
    "completions alone": ({"prompt": "a", "completions": ["b", "c"]}, "ranks"),
    "one completion": ({"prompt": "a", "completions": ["b"], "ranks": [1]}, "too few"),
    "completions are a string": ({"prompt": "a", "completions": "bc", "ranks": [1, 2]}, "completions"),
    "completions are empty": ({"prompt": "a", "completions": [], "ranks": []}, "too few"),
    "ranks are too few": ({"prompt": "a", "completions": ["b", "c"], "ranks": [1]}, "ranks"),
    "ranks are words": ({"prompt": "a", "completions": ["b", "c"], "ranks": ["x", "y"]}, "ranks"),
    "ranks are a number": ({"prompt": "a", "completions": ["b", "c"], "ranks": 1}, "ranks"),
    "ranks are equal": ({"prompt": "a", "completions": ["b", "c"], "ranks": [1, 1]}, "no strict preference"),
    "ranks are booleans": ({"prompt": "a", "completions": ["b", "c"], "ranks": [True, False]}, "ranks"),
    "scores are null": ({"prompt": "a", "completions": ["b", "c"], "scores": [None, 1]}, "scores"),
    "scores against ranks": ({"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2], "scores": [0, 1]}, "disagree"),
    "a completion is empty": ({"prompt": "a", "completions": ["b", ""], "ranks": [1, 2]}, "empty completion"),
    "ranked without a prompt": ({"completions": ["b", "c"], "ranks": [1, 2]}, "prompt"),
    # Rows that are not JSON, or JSON that a strict reader rejects.
    "a number": ("7", "not an object"),
    "a string": ('"hello"', "not an object"),
    "null": ("null", "not an object"),
    "a list": ("[1, 2]", "not an object"),
    "cut short": ('{"prompt": "a", "chosen": "b", "rej', "invalid JSON"),
    "single quotes": ("{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}", "invalid JSON"),
    "a comma too many": ('{"prompt": "a", "chosen": "b", "rejected": "c",}', "invalid JSON"),
    "two objects": ('{"prompt": "a"}{"chosen": "b"}', "invalid JSON"),
    "a comment": ('{"prompt": "a" /* why */}', "invalid JSON"),
    "unquoted": ("{prompt: a}", "invalid JSON"),
    "NaN": ('{"prompt": "a", "chosen": "b", "rejected": NaN}', "rejected"),
    "Infinity": ('{"prompt": "a", "chosen": "b", "rejected": -Infinity}', "rejected"),
    "a number beyond a double": ('{"prompt": "a", "chosen": "b", "rejected": 1e999}', "rejected"),
    "a number of 5,000 digits": ('{"prompt": "a", "chosen": "b", "rejected": ' + "9" * 5000 + "}", "row 1"),
    "a key twice": ('{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}', "duplicate key"),
    "a key twice below": (
        '{"prompt": [{"role": "user", "role": "system", "content": "a"}], "chosen": "b", "rejected": "c"}', "duplicate key"
    ),
    "a lone surrogate": ('{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}', "lone surrogate"),
    "a surrogate the wrong way round": ('{"prompt": "a", "chosen": "\\udc00\\ud800", "rejected": "c"}', "lone surrogate"),
    "an escape for NUL": ('{"prompt": "a", "chosen": "b\\u0000", "rejected": "c"}', "NUL"),
    "a raw control character": ('{"prompt": "a\x01", "chosen": "b", "rejected": "c"}', "invalid JSON"),
    "a raw tab": ('{"prompt": "a\t", "chosen": "b", "rejected": "c"}', "invalid JSON"),
    "an unknown escape": ('{"prompt": "\\x41", "chosen": "b", "rejected": "c"}', "invalid JSON"),
    "100,000 lists": ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "100,000 objects": ('{"prompt": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}", "nested too deep"),
    "2,000 lists": ('{"prompt": ' + "[" * 2000 + "]" * 2000 + ', "chosen": "a", "rejected": "b"}', "nested too deep"),
    "100,000 lists, open": ('{"prompt": ' + "[" * 100_000, "row 1"),
    "10 MB of nothing else": ("x" * 10_000_000, "invalid JSON"),
    "a 10 MB completion by nobody": (_row(chosen=[_said("nobody", "word " * 2_000_000)]), "nobody"),
    "a 10 MB completion of white space": (_row(chosen=[_said("assistant", " " * 10_000_000)]), "empty completion"),
    "10,000 messages, the last by nobody": (_row(prompt=[*(USER + YES) * 5000, _said("nobody", "a")]), "nobody"),
    "10,000 messages of a completion, the last by nobody": (_row(chosen=[*(YES + NO) * 5000, _said("nobody", "a")]), "nobody"),
    "10,000 keys and none of ours": ({f"k{i}": i for i in range(10_000)}, "chosen"),
    "a key of 1 MB": ('{"' + "k" * 1_000_000 + '": 1}', "chosen"),
}  # fmt: skip

# Bytes after a good row.
BYTES: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b'{"prompt": "a", "chosen": "\xff", "rejected": "c"}\n', "invalid UTF-8"),
    "Latin-1": ('{"prompt": "é", "chosen": "b", "rejected": "c"}\n'.encode("latin-1"), "invalid UTF-8"),
    "an encoded surrogate": (b'{"prompt": "a", "chosen": "\xed\xa0\x80", "rejected": "c"}\n', "invalid UTF-8"),
    "an overlong NUL": (b'{"prompt": "a", "chosen": "\xc0\x80", "rejected": "c"}\n', "invalid UTF-8"),
    "UTF-16": ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n'.encode("utf-16"), "row 1"),
    "a mark of order in the middle": (b'\xef\xbb\xbf{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "invalid JSON"),
    "NUL bytes": (b"\0" * 1000 + b"\n", "row 1"),
    "a megabyte of NULs": (b"\0" * 1_000_000, "row 1"),
    "old Mac line ends": (b'{"prompt": "a", "chosen": "b", "rejected": "c"}\r{"prompt": "a"}\r', "invalid JSON"),
    "random bytes": (random.Random(1).randbytes(5000).replace(b"\n", b"") + b"\n", "row 1"),
}  # fmt: skip

CHOICE = b'{"prompt": "a", "chosen": "b", "rejected": "c"}'

# A complete file, with a name for its kind.
FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("pairs.jsonl", b"", "empty"),
    "blank lines": ("pairs.jsonl", b"\n \n\t\n", "empty"),
    "empty JSON": ("pairs.json", b"", "empty"),
    "an empty list": ("pairs.json", b"[]", "empty"),
    "a list that is never closed": ("pairs.json", b"[" + CHOICE + b",", "never closed"),
    "a list with something behind it": ("pairs.json", b"[" + CHOICE + b"] 7", "after the end"),
    "two lists": ("pairs.json", b"[" + CHOICE + b"][" + CHOICE + b"]", "after the end"),
    "a list closed by a brace": ("pairs.json", b"[" + CHOICE + b"}", "pairs.json"),
    "a list of lists": ("pairs.json", b"[[1],[2]]", "not an object"),
    "a list with a comma too many": ("pairs.json", b"[" + CHOICE + b",,]", "pairs.json"),
    "a list of 100,000 openings": ("pairs.json", b"[" * 100_000, "never closed"),
    "one object over several lines": ("pairs.json", b'{\n "prompt": "a",\n "chosen": "b"\n}', "several lines"),
    "a string never closed in a list": ("pairs.json", b'[{"prompt": "a', "never closed"),
    "a dictionary of columns": ("pairs.json", b'{"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}', "pairs.json"),
    "a list in JSON lines": ("pairs.jsonl", b"[" + CHOICE + b"]\n", "not an object"),
    "CSV": ("pairs.csv", b"prompt,chosen\na,b\n", "rejected"),
    "text": ("pairs.txt", b"hello", ".txt"),
    "a pickle": ("pairs.pkl", b"\x80\x04}.", ".pkl"),
    "Arrow": ("pairs.arrow", b"ARROW1\0\0", "Arrow file is damaged"),
    "no suffix": ("pairs", CHOICE, "no suffix"),
    "zip": ("pairs.jsonl.zip", b"PK\x03\x04", ".zip"),
    "zstd": ("pairs.jsonl.zst", b"\x28\xb5\x2f\xfd", ".zst"),
    "CSV in JSON lines": ("pairs.jsonl", b"prompt,chosen,rejected\na,b,c\n", "invalid JSON"),
    "HTML": ("pairs.jsonl", b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "invalid JSON"),
    "Git LFS pointer": ("pairs.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "invalid JSON"),
    "Git LFS pointer for Parquet": ("pairs.parquet", b"version https://git-lfs.github.com/spec/v1\n", "pairs.parquet"),
    "Parquet under another name": ("pairs.jsonl", b"PAR1" + bytes(100) + b"PAR1", "row 0"),
    "gzip under another name": ("pairs.jsonl", gzip.compress(CHOICE), "row 0"),
    "no gzip": ("pairs.jsonl.gz", CHOICE, "gzip"),
    "an empty gzip": ("pairs.jsonl.gz", b"", "pairs.jsonl.gz"),
    "gzip of nothing": ("pairs.jsonl.gz", gzip.compress(b""), "empty"),
    "gzip cut short": ("pairs.jsonl.gz", gzip.compress(CHOICE * 1000)[:-20], "gzip"),
    "gzip cut in its head": ("pairs.jsonl.gz", gzip.compress(CHOICE)[:5], "gzip"),
    "gzip with a wrong sum": ("pairs.jsonl.gz", gzip.compress(CHOICE)[:-8] + bytes(8), "gzip"),
    "gzip with a byte changed": ("pairs.jsonl.gz", gzip.compress(CHOICE)[:12] + b"\xff\xff" + gzip.compress(CHOICE)[14:], "gzip"),
    "gzip with rubbish behind": ("pairs.jsonl.gz", gzip.compress(CHOICE + b"\n") + b"rubbish", "gzip"),
    "zlib": ("pairs.jsonl.gz", zlib.compress(CHOICE), "gzip"),
    "gzip of gzip": ("pairs.jsonl.gz", gzip.compress(gzip.compress(CHOICE)), "row 0"),
    "JSON called Parquet": ("pairs.parquet", CHOICE, "pairs.parquet"),
    "an empty Parquet": ("pairs.parquet", b"", "pairs.parquet"),
    "four bytes of Parquet": ("pairs.parquet", b"PAR1", "pairs.parquet"),
    "marks and nothing between": ("pairs.parquet", b"PAR1PAR1", "pairs.parquet"),
    "a footer of 4 GB": ("pairs.parquet", b"PAR1" + bytes(100) + b"\xff\xff\xff\xffPAR1", "pairs.parquet"),
    "a footer of nothing": ("pairs.parquet", b"PAR1" + bytes(4) + b"PAR1", "pairs.parquet"),
    "an encrypted Parquet": ("pairs.parquet", b"PARE" + bytes(40) + b"PARE", "pairs.parquet"),
}  # fmt: skip

# Settings of `pairs:`, and what the message names.
SETTINGS: dict[str, tuple[Document, str]] = {
    "no such file": ({"train": "nowhere.jsonl"}, "nowhere.jsonl"),
    "no such folder": ({"train": "no/where/pairs.jsonl"}, "no/where"),
    "a glob of nothing": ({"train": "no*.jsonl"}, "no*.jsonl"),
    "a glob that is none": ({"train": "[.jsonl"}, "[.jsonl"),
    "an empty list": ({"train": []}, "the list is empty"),
    "the same file twice": ({"train": ["good.jsonl", "good.jsonl"]}, "twice"),
    "the same file by two names": ({"train": ["good.jsonl", "./good.jsonl"]}, "twice"),
    "no kind of URL": ({"train": "gopher://host/pairs.jsonl"}, "gopher"),
    "a URL of no host": ({"train": "https:///pairs.jsonl"}, "https:///pairs.jsonl"),
    "a URL of a closed port": ({"train": "http://127.0.0.1:9/pairs.jsonl"}, "127.0.0.1:9"),
    "Parquet at a closed port": ({"train": "http://127.0.0.1:9/pairs.parquet"}, "127.0.0.1:9"),
    "a name of 5,000 characters": ({"train": "x" * 5000 + ".jsonl"}, "xxx"),
    "a name with a line feed": ({"train": "a\nmrpo: done\n.jsonl"}, "there is no such file"),
    "columns that are not there": ({"train": "good.jsonl", "columns": {"chosen": "better"}}, "better"),
    "one column for both sides": ({"train": "good.jsonl", "columns": {"chosen": "rejected"}}, "rejected"),
    "everything held out": ({"train": "one.jsonl", "eval_fraction": 0.999999}, "0.999999"),
    "held out, and a file for it": ({"train": "good.jsonl", "eval": "one.jsonl", "eval_fraction": 0.5}, "eval_fraction"),
    "held-out file is not there": ({"train": "good.jsonl", "eval": "nowhere.jsonl"}, "nowhere.jsonl"),
    "a file below a file": ({"train": "good.jsonl/pairs.jsonl"}, "good.jsonl/pairs.jsonl"),
    "a home of nobody": ({"train": "~nobody-at-all/pairs.jsonl"}, "nobody-at-all"),
}  # fmt: skip


def cases(seed: int) -> list[Case]:
    """All of them; random ones are drawn from the seed."""
    found = []
    for number, (name, (row, named)) in enumerate(ROWS.items()):
        command = "audit" if name.startswith("10") else READERS[number % len(READERS)]
        found.append(
            Case(f"row: {name}", _lines(row), (command, "recipe.yaml"), ("pairs.jsonl", named), number % 40 == 0)
        )
    for name, (data, named) in BYTES.items():
        found.append(
            Case(f"bytes: {name}", _file("pairs.jsonl", CHOICE + b"\n" + data), ("audit", "recipe.yaml"), (named,))
        )
    for number, (name, (file, data, named)) in enumerate(FILES.items()):
        command = READERS[number % len(READERS)]
        found.append(Case(f"file: {name}", _file(file, data), (command, "recipe.yaml"), (named,), number % 20 == 0))
    for number, (name, (settings, named)) in enumerate(SETTINGS.items()):
        found.append(
            Case(f"pairs: {name}", _settings(settings), (READERS[number % len(READERS)], "recipe.yaml"), (named,))
        )
    return found + _places() + _heavy() + _parquet() + _random(seed)


def _lines(row: Document | str) -> Callable[[Place], None]:
    return lambda place: _write(
        place, "pairs.jsonl", lines([GOOD, row, *place.rows()[:3]]).encode("utf-8", "surrogatepass")
    )


def _file(name: str, data: bytes) -> Callable[[Place], None]:
    return lambda place: _write(place, name, data)


def _write(place: Place, name: str, data: bytes) -> None:
    place.write(name, data)
    place.cache()
    place.recipe({"pairs.train": name})


def _settings(settings: Document) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.write("good.jsonl", lines(place.rows()))
        place.write("one.jsonl", lines(place.rows()[:1]))
        place.cache()
        place.recipe({"pairs": settings})

    return make


def _places() -> list[Case]:
    def at(make: Callable[[Path], object], name: str = "pairs.jsonl") -> Callable[[Place], None]:
        def write(place: Place) -> None:
            make(place.here / name)
            place.cache()
            place.recipe({"pairs.train": name})

        return write

    def folder_of(**files: bytes) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            path.mkdir()
            for name, data in files.items():
                (path / name.replace("__", ".")).write_bytes(data)

        return make

    def fifo_in_a_folder(path: Path) -> None:
        path.mkdir()
        os.mkfifo(path / "a.jsonl")

    audit = ("audit", "recipe.yaml")
    return [
        Case("an empty folder", at(folder_of(), "folder"), audit, ("folder",)),
        Case("a folder of other files", at(folder_of(a__txt=b"x", b__csv=b"y"), "folder"), audit, ("folder",)),
        Case("a folder of hidden files", at(folder_of(__a__jsonl=CHOICE), "folder"), audit, ("folder",)),
        Case("a folder with a broken file", at(folder_of(a__jsonl=CHOICE + b"\n", b__jsonl=b"{"), "folder"), audit, ("b.jsonl",)),
        Case("a folder called a file", at(folder_of(), "pairs.jsonl"), audit, ("pairs.jsonl",)),
        Case("a FIFO", at(os.mkfifo), audit, ("pairs.jsonl",), started=True),
        Case("a FIFO called Parquet", at(os.mkfifo, "pairs.parquet"), audit, ("pairs.parquet",)),
        Case("a FIFO, planned", at(os.mkfifo), ("plan", "recipe.yaml"), ("pairs.jsonl",)),
        Case("a FIFO in a folder", at(fifo_in_a_folder, "folder"), audit, ("folder",)),
        Case("a broken link", at(lambda path: path.symlink_to("nowhere")), audit, ("pairs.jsonl",)),
        Case("a link to itself", at(lambda path: path.symlink_to("pairs.jsonl")), audit, ("pairs.jsonl",)),
        Case("/dev/zero", at(lambda path: path.symlink_to("/dev/zero")), audit, ("pairs.jsonl",)),
        Case("/dev/zero, packed", at(lambda path: path.symlink_to("/dev/zero"), "pairs.jsonl.gz"), audit, ("pairs.jsonl.gz",)),
        Case("/dev/zero as Parquet", at(lambda path: path.symlink_to("/dev/zero"), "pairs.parquet"), audit, ("pairs.parquet",)),
        Case("/dev/full", at(lambda path: path.symlink_to("/dev/full")), audit, ("pairs.jsonl",)),
    ]  # fmt: skip


def _heavy() -> list[Case]:
    """Small files that expand, and large files without content."""

    def bomb(place: Place) -> None:
        # A gigabyte of zeros in a megabyte; as a separate member after a good row.
        packed = gzip.compress(CHOICE + b"\n")
        stream = io.BytesIO()
        with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6) as file:
            for _ in range(256):
                file.write(bytes(4 << 20))
        _write(place, "pairs.jsonl.gz", packed + stream.getvalue())

    def list_bomb(place: Place) -> None:
        stream = io.BytesIO()
        with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6) as file:
            file.write(b'[{"prompt": "')
            for _ in range(256):
                file.write(b"a" * (4 << 20))
        _write(place, "pairs.json.gz", stream.getvalue())

    def hole(name: str) -> Callable[[Place], None]:
        def make(place: Place) -> None:
            _write(place, name, b"")
            with open(place.here / name, "wb") as file:
                file.truncate(20 << 30)

        return make

    def many(place: Place) -> None:
        _write(
            place,
            "pairs.jsonl",
            lines([{"prompt": f"p{i}", "chosen": "", "rejected": i} for i in range(50_000)]).encode(),
        )

    audit = ("audit", "recipe.yaml")
    return [
        Case("a gigabyte of zeros, packed", bomb, audit, ("pairs.jsonl.gz",), started=True),
        Case("a gigabyte in a list's string, packed", list_bomb, audit, ("pairs.json.gz",)),
        Case("a hole of 20 GB", hole("pairs.jsonl"), audit, ("pairs.jsonl",)),
        Case("a hole of 20 GB in a list", hole("pairs.json"), audit, ("pairs.json",)),
        Case("a hole of 20 GB called Parquet", hole("pairs.parquet"), audit, ("pairs.parquet",)),
        Case("50,000 bad rows", many, audit, ("50000 of 50000",)),
        Case("50,000 bad rows, planned", many, ("plan", "recipe.yaml"), ("50000 of 50000",)),
    ]


def _parquet() -> list[Case]:
    def table(**columns: Any) -> Callable[[Place], None]:
        def make(place: Place) -> None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            made = {
                name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()
            }
            pq.write_table(pa.table(made), place.here / "pairs.parquet")
            place.cache()
            place.recipe({"pairs.train": "pairs.parquet"})

        return make

    def damaged(change: Callable[[bytes], bytes]) -> Callable[[Place], None]:
        def make(place: Place) -> None:
            text(place)
            path = place.here / "pairs.parquet"
            path.write_bytes(change(path.read_bytes()))

        return make

    def twins(place: Place) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"]), pa.array(["d"])]
        pq.write_table(
            pa.Table.from_arrays(columns, ["prompt", "chosen", "rejected", "chosen"]), place.here / "pairs.parquet"
        )
        place.recipe({"pairs.train": "pairs.parquet"})

    def wide(count: int) -> Callable[[Place], None]:
        return table(**{f"column{i}": [i] for i in range(count)})

    def binary(place: Place) -> None:
        import pyarrow as pa

        raw = pa.array([b"\xff\xfe", b"b"]).cast(pa.binary())
        broken = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
        table(prompt=["a", "b"], chosen=broken, rejected=["c", "d"])(place)

    many = [f"text number {i} of some length" for i in range(2000)]
    text = table(prompt=many, chosen=[f"{one} yes" for one in many], rejected=[f"{one} no" for one in many])
    audit = ("audit", "recipe.yaml")
    named = ("pairs.parquet",)
    return [
        Case("Parquet: no rows", table(prompt=[], chosen=[], rejected=[]), audit, named),
        Case("Parquet: no columns of ours", table(a=[1], b=[2]), audit, (*named, "chosen")),
        Case("Parquet: nulls", table(prompt=["a"], chosen=[None], rejected=["b"]), audit, (*named, "chosen")),
        Case("Parquet: numbers", table(prompt=[1], chosen=[2], rejected=[3]), audit, (*named, "chosen")),
        Case("Parquet: NaN for text", table(prompt=["a"], chosen=[float("nan")], rejected=["b"]), audit, (*named, "chosen")),
        Case("Parquet: binary", table(prompt=["a"], chosen=[b"x"], rejected=[b"y"]), audit, (*named, "binary")),
        Case("Parquet: text that is no UTF-8", binary, audit, (*named, "UTF-8")),
        Case("Parquet: lists of numbers", table(prompt=[[1]], chosen=[[2]], rejected=[[3]]), audit, named),
        Case("Parquet: structs", table(prompt=["a"], chosen=[{"x": 1}], rejected=[{"x": 2}]), audit, (*named, "chosen")),
        Case("Parquet: a column twice", twins, audit, (*named, "twice")),
        Case("Parquet: 5,000 columns", wide(5000), audit, (*named, "chosen")),
        Case("Parquet: 50,000 columns", wide(50_000), audit, (*named, "chosen"), started=True),
        Case("Parquet: cut in half", damaged(lambda data: data[: len(data) // 2]), audit, named),
        Case("Parquet: cut by a byte", damaged(lambda data: data[:-1]), audit, named),
        Case("Parquet: its head cut off", damaged(lambda data: data[4:]), audit, named),
        Case("Parquet: a footer that is too long", damaged(lambda d: d[:-8] + (2**31 - 1).to_bytes(4, "little") + d[-4:]), audit, named),
        Case("Parquet: a footer that is too short", damaged(lambda d: d[:-8] + (9).to_bytes(4, "little") + d[-4:]), audit, named),
        Case("Parquet: a footer of zeros", damaged(lambda d: d[:-300] + bytes(292) + d[-8:]), audit, named),
        Case("Parquet: a footer of ones", damaged(lambda d: d[:-300] + b"\xff" * 292 + d[-8:]), audit, named),
        Case("Parquet: pages of zeros", damaged(lambda d: d[:4] + bytes(len(d) // 2) + d[4 + len(d) // 2 :]), audit, named),
        Case("Parquet: pages of ones", damaged(lambda d: d[:4] + b"\xff" * 2000 + d[2004:]), audit, named),
        Case("Parquet: planned, pages of ones", damaged(lambda d: d[:4] + b"\xff" * 2000 + d[2004:]), ("plan", "recipe.yaml"), named),
        Case("Parquet: twice in a row", damaged(lambda d: d[:100] + d), audit, named),
    ]  # fmt: skip


def _random(seed: int) -> list[Case]:
    """Good rows with a piece of text removed or inserted so that they are invalid JSON."""
    chance = random.Random(seed)
    found = []
    for number in range(30):
        text = json.dumps({"prompt": f"p{number}", "chosen": "yes", "rejected": "no"})
        marks = [i for i, char in enumerate(text) if char in '{}":']
        at = chance.choice(marks)
        broken = text[:at] + text[at + 1 :] if chance.random() < 0.5 else text[:at] + chance.choice("{}[]:") + text[at:]
        try:
            json.loads(broken)
        except ValueError:
            command = READERS[number % len(READERS)]
            found.append(
                Case(f"random row {number}", _lines(broken), (command, "recipe.yaml"), ("pairs.jsonl", "row 1"))
            )
    return found
