"""One malformed input: the function that writes its files, and the command that reads them."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The folders of one case.

    Attributes:
        world: good files, shared by all cases: ``model``, ``cache``, ``pairs.jsonl``; read-only.
        root: the case's own files; only outputs may change here.
        here: the folder in it in which the command runs.
    """

    world: Path
    root: Path
    here: Path

    def write(self, name: str, data: bytes | str) -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to the world's
        path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        return path

    def document(self) -> Document:
        """A good recipe as plain data: the world's model and pairs, the case's own cache and output."""
        return {
            "pairs": {"train": str(self.world / "pairs.jsonl"), "eval_fraction": 0.25},
            "policy": {"model": str(self.world / "model"), "lora": {"r": 2, "alpha": 4}},
            "references": {
                "base": {"model": str(self.world / "model")},
                "other": {"model": str(self.world / "model")},
            },
            "cache": "cache",
            "limits": {"max_length": 64},
            "scoring": {"engine": "transformers"},
            "training": {"max_steps": 1, "report_to": "none", "use_cpu": True},
            "output_dir": "out",
        }

    def recipe(self, changes: Mapping[str, Any] | None = None) -> Path:
        """Write ``recipe.yaml``: the good one with dotted keys changed; None as a value is written as null."""
        document = self.document()
        for dotted, value in (changes or {}).items():
            put(document, dotted, value)
        return self.write("recipe.yaml", yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True))

    def rows(self) -> list[Document]:
        """The world's pairs, for changes."""
        lines = (self.world / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def model(self, name: str = "model") -> Path:
        """The case's own copy of the world's model (hard links: replace a file, never write into it)."""
        shutil.copytree(self.world / "model", self.here / name, copy_function=os.link)
        return self.here / name

    def cache(self) -> Path:
        """The case's own copy of the world's cache."""
        shutil.copytree(self.world / "cache", self.here / "cache")
        return self.here / "cache"


class _Dumper(yaml.SafeDumper):
    """Writes without aliases: a repeated value would become one, and aliases are refused."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Maker = Callable[[Place], object]


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        name: unique within its kind.
        make: writes the files.
        command: the arguments after ``mrpo``.
        names: texts that the message must contain: the file, the key, what was found.
        started: also run as a new process, not forked.
    """

    name: str
    make: Maker
    command: tuple[str, ...]
    names: tuple[str, ...]
    started: bool = False


def put(document: Document, dotted: str, value: Any) -> None:
    """Set a dotted key, creating the maps above it."""
    *parents, last = dotted.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
    document[last] = value


def without(document: Document, dotted: str) -> Document:
    """A copy without a dotted key."""
    document = copy.deepcopy(document)
    *parents, last = dotted.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    del place[last]
    return document


def lines(rows: Sequence[Any]) -> str:
    """JSON lines; strings are written as they are."""
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
