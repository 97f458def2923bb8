"""Names that point outside their folder, or that file systems, terminals and readers handle differently."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from malformed.case import Case, Place

COMMANDS = ("audit", "score-refs", "plan", "train", "targets")

# Names of references, which name folders of the cache.
REFERENCES: dict[str, str] = {
    "parent": "..",
    "self": ".",
    "empty": "",
    "up and out": "../x",
    "far up": "../../../../../../tmp/x",
    "in and out again": "a/../../x",
    "absolute": "/tmp/x",
    "absolute twice": "//tmp/x",
    "below": "a/b",
    "ends in a slash": "a/",
    "backslash": "a\\b",
    "up by backslash": "..\\x",
    "drive": "C:x",
    "share": "\\\\host\\share",
    "stream": "a:b",
    "home": "~",
    "another's home": "~root",
    "variable": "$HOME",
    "command": "$(touch gotcha)",
    "backticks": "`touch gotcha`",
    "semicolon": "a;touch gotcha",
    "pipe": "a|b",
    "glob": "*",
    "question mark": "a?",
    "bracket": "[a]",
    "quote": "a'b",
    "double quote": 'a"b',
    "space": "a b",
    "space before": " a",
    "space behind": "a ",
    "space alone": " ",
    "tab": "a\tb",
    "line feed": "a\nb",
    "line feed behind": "a\n",
    "a second paragraph": "a\n\nmrpo: all is well",
    "carriage return": "a\rb",
    "NUL": "a\0b",
    "escape": "\x1b[31mred",
    "bell": "a\x07",
    "backspace": "abc\x08\x08\x08xyz",
    "delete": "a\x7f",
    "leading dash": "-a",
    "an option": "--cache",
    "leading dot": ".hidden",
    "trailing dot": "a.",
    "dots": "...",
    "a partial file's": ".partial",
    "percent": "%2e%2e%2fx",
    "URL": "s3://bucket/x",
    "file URL": "file:///tmp/x",
    "at sign": "a@b",
    "hash": "a#b",
    "equals": "a=b",
    "plus": "a+b",
    "65 characters": "a" * 65,
    "255 characters": "a" * 255,
    "5,000 characters": "a" * 5000,
    "Cyrillic a": "b\u0430se",
    "Greek omicron": "m\u03bfdel",
    "full width": "\uff42\uff41\uff53\uff45",
    "full-width dots": "\uff0e\uff0e",
    "two-dot leader": "\u2025",
    "division slash": "a\u2215b",
    "fraction slash": "..\u2044x",
    "zero-width space": "ba\u200bse",
    "zero-width joiner": "ba\u200dse",
    "soft hyphen": "ba\u00adse",
    "right to left": "\u202eesab",
    "mark of order": "\ufeffbase",
    "combining mark": "bas\u0065\u0301",
    "composed": "bas\u00e9",
    "ligature": "\ufb01ne",
    "mathematical": "\U0001d41a\U0001d41b",
    "digits of another script": "\u0661\u0662",
    "emoji": "\U0001f600",
    "Chinese": "\u6a21\u578b",
    "private use": "\ue000",
    "line separator": "a\u2028b",
    "no-break space": "a\u00a0b",
    "aux": "aux",
    "CON": "CON",
    "nul with a suffix": "nul.txt",
    "com1": "com1",
    "LPT9": "lpt9",
    "prn": "Prn",
}  # fmt: skip

# Settings with paths, and what the message names.
SETTINGS: dict[str, tuple[str, Any, str, str]] = {
    "cache with a NUL": ("cache", "a\0b", "audit", "cache"),
    "cache that is a file": ("cache", "pairs.jsonl", "audit", "pairs.jsonl"),
    "cache below a file": ("cache", "pairs.jsonl/cache", "score-refs", "pairs.jsonl"),
    "cache that is a device": ("cache", "/dev/null", "score-refs", "/dev/null"),
    "cache of a long name": ("cache", "c" * 400, "score-refs", "ccc"),
    "cache of a long path": ("cache", "c/" * 3000, "score-refs", "c/c/"),
    "cache at no kind of URL": ("cache", "gopher://host/x", "audit", "gopher"),
    "cache at a URL without a host": ("cache", "s3://", "audit", "s3"),
    "cache at half a URL": ("cache", "s3:bucket/x", "audit", "s3"),
    "cache at a web page": ("cache", "https://example.com/cache", "audit", "https"),
    "cache at a closed port": ("cache", "http://127.0.0.1:9/cache", "audit", "http"),
    "cache in nobody's home": ("cache", "~nobody-at-all/cache", "score-refs", "nobody-at-all"),
    "model above": ("references.base.model", "../../nowhere", "score-refs", "nowhere"),
    "model of a long name": ("references.base.model", "m" * 5000, "score-refs", "mmm"),
    "model that is an option": ("references.base.model", "--help", "score-refs", "--help"),
    "model with a line feed": ("references.base.model", "a\nb", "score-refs", "base"),
    "model with an escape": ("references.base.model", "\x1b]0;title\x07", "score-refs", "base"),
    "model with a NUL": ("references.base.model", "a\0b", "score-refs", "references.base.model"),
    "model by URL": ("references.base.model", "https://example.com/model", "score-refs", "example.com"),
    "model of three parts": ("references.base.model", "a/b/c", "score-refs", "a/b/c"),
    "model of dots": ("references.base.model", "a/..", "score-refs", "a/.."),
    "model of nobody's home": ("references.base.model", "~nobody-at-all/m", "score-refs", "nobody-at-all"),
    "model on the hub, with no network": ("references.base.model", "some-organisation/some-model", "score-refs", "some-organisation"),
    "policy nowhere": ("policy.model", "./nowhere", "train", "nowhere"),
    "policy on the hub, with no network": ("policy.model", "some-organisation/some-model", "train", "some-organisation"),
    "adapter nowhere": ("references.base.adapter", "./nowhere", "score-refs", "nowhere"),
    "adapter that is a file": ("references.base.adapter", "pairs.jsonl", "score-refs", "pairs.jsonl"),
    "policy's adapter nowhere": ("policy.adapter", "./nowhere", "train", "nowhere"),
    "tokenizer nowhere": ("references.base.tokenizer", "./nowhere", "score-refs", "nowhere"),
    "tokenizer with an escape": ("references.base.tokenizer", "a\x1b[2Jb", "score-refs", "base"),
    "tokenizer of a long name": ("policy.tokenizer", "t" * 5000, "score-refs", "ttt"),
    "template nowhere": ("references.base.template", "nowhere.jinja", "score-refs", "nowhere.jinja"),
    "template that is a folder": ("references.base.template", ".", "score-refs", "template"),
    "template of a long name": ("references.base.template", "t" * 5000, "score-refs", "ttt"),
    "single of nobody": ("method.aggregate", "single:nobody", "train", "nobody"),
    "single of a path": ("method.aggregate", "single:../x", "train", "../x"),
    "objective tuned by nobody": (
        "method", {"loss": "modpo", "modpo": {"help": {"weight": 0.5, "tuned": "nobody", "base": "base"}}}, "train", "nobody"
    ),
    "objective in no column": (
        "method", {"loss": "modpo", "modpo": {"help": {"weight": 0.5, "chosen": "a", "rejected": "b"}}}, "train", "help"
    ),
    "method above": ("compare.methods", {"../x": {"beta": 0.2}}, "compare", "../x"),
    "method absolute": ("compare.methods", {"/tmp/x": {"beta": 0.2}}, "compare", "/tmp/x"),
    "method of dots": ("compare.methods", {"..": {"beta": 0.2}}, "compare", ".."),
    "method of nothing": ("compare.methods", {"": {"beta": 0.2}}, "compare", "compare.methods"),
    "method of a long name": ("compare.methods", {"m" * 300: {"beta": 0.2}}, "compare", "mmm"),
    "method with a line feed": ("compare.methods", {"a\nb": {"beta": 0.2}}, "compare", "compare.methods"),
    "method with a slash": ("compare.methods", {"a/b": {"beta": 0.2}}, "compare", "a/b"),
    "method that is a folder of ours": ("compare.methods", {"start": {"beta": 0.2}}, "compare", "start"),
}  # fmt: skip


def cases(seed: int) -> list[Case]:
    """All of them; random ones are drawn from the seed."""
    found = [
        _reference(name, value, COMMANDS[number % len(COMMANDS)], number % 25 == 3)
        for number, (name, value) in enumerate(REFERENCES.items())
    ]
    for name, (key, value, command, named) in SETTINGS.items():
        found.append(Case(name, _changed(key, value), (command, "recipe.yaml"), (named,)))
    found.append(Case("names that differ in case", _twins, ("score-refs", "recipe.yaml"), ("Base",)))
    for name in ("../x", "a/b", "..", "", "a\nb", "x" * 300):
        shown = name if len(name) < 9 else f"{name[:5]}…"
        given: dict[str, tuple[str, ...]] = {
            "reference": ("score-refs", "recipe.yaml", "--reference", f"{name}=model"),
            "only": ("score-refs", "recipe.yaml", "--only", name),
            "prune": ("cache", "prune", "--cache", "cache", "--reference", name, "--all"),
        }
        for what, line in given.items():
            named = "only" if what == "only" else "reference"
            found.append(Case(f"option {what} {shown!r}", _good, line, (named,)))
    chance = random.Random(seed)
    for number in range(20):
        letters = [
            chr(chance.choice([chance.randint(1, 44), chance.randint(0x80, 0xD7FF), 0x2F, 0x5C])) for _ in range(6)
        ]
        found.append(_reference(f"random {number}", "".join(letters), chance.choice(COMMANDS), False))
    return found


def _good(place: Place) -> None:
    place.cache()
    place.recipe()


def _reference(name: str, value: str, command: str, started: bool) -> Case:
    def make(place: Place) -> None:
        place.cache()
        model = {"model": str(place.world / "model")}
        place.recipe({"references": {"base": model, value: model}})

    return Case(f"reference: {name}", make, (command, "recipe.yaml"), ("references",), started)


def _changed(key: str, value: Any) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        if not key.startswith("references"):
            place.cache()
        place.write("pairs.jsonl", (place.world / "pairs.jsonl").read_bytes())
        place.recipe({key: value})

    return make


def _twins(place: Place) -> None:
    model = {"model": str(place.world / "model")}
    place.recipe({"references": {"base": model, "Base": model}})
