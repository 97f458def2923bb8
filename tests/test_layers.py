"""The arrows between rooms, and the files at the root (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "mrpo_pipeline"

# From the ground up: a room imports only from rooms above it in this list.
FLOORS = (
    ("errors", "terminal", "settings"),
    ("files", "targets", "losses"),
    ("models", "pairs", "cache"),
    ("rendering", "engines", "recipe"),
    ("dataset",),
    ("policy", "verify", "exports"),
    ("scoring", "evaluation", "audit", "plan"),
    ("report",),
    ("compare", "iterate"),
    ("demo",),
)
LOOSE = {"__init__.py", "errors.py", "terminal.py", "settings.py"}
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import from this package, including those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mrpo_pipeline":
            parts = node.module.split(".")
            names = [alias.name for alias in node.names] if len(parts) == 1 else [parts[1]]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mrpo_pipeline.")]
        else:
            continue
        yield from ((node.lineno, name) for name in names)


def test_nothing_is_loose_at_the_root() -> None:
    assert {path.name for path in LIBRARY.glob("*.py")} == LOOSE


def test_every_room_is_on_a_floor() -> None:
    rooms = {path.name for path in LIBRARY.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(FLOOR_OF) - {name.removesuffix(".py") for name in LOOSE}


@pytest.mark.parametrize("room", sorted(FLOOR_OF))
def test_a_room_imports_only_from_rooms_above_it(room: str) -> None:
    files = [*(LIBRARY / room).rglob("*.py")] or [LIBRARY / f"{room}.py"]
    wrong = [
        f"{path.relative_to(LIBRARY)}:{line} imports {other}"
        for path in files
        for line, other in imports(path)
        if other != room and other in FLOOR_OF and FLOOR_OF[other] >= FLOOR_OF[room]
    ]
    assert not wrong
