"""Imports between packages, and the modules at the root (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "mrpo_pipeline"

# Layers, lowest first: a package imports only from those before its own.
LAYERS = (
    ("errors", "terminal", "settings_base"),
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
LOOSE = {"__init__.py", "errors.py", "terminal.py", "settings_base.py"}
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}


def package_of(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and package of every import from this package, including those inside functions."""
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


def test_every_package_has_a_layer() -> None:
    packages = {path.name for path in LIBRARY.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert packages == set(LAYER_OF) - {name.removesuffix(".py") for name in LOOSE}


@pytest.mark.parametrize("package", sorted(LAYER_OF))
def test_a_package_imports_only_from_lower_layers(package: str) -> None:
    files = [*(LIBRARY / package).rglob("*.py")] or [LIBRARY / f"{package}.py"]
    wrong = [
        f"{path.relative_to(LIBRARY)}:{line} imports {other}"
        for path in files
        for line, other in imports(path)
        if other != package and other in LAYER_OF and LAYER_OF[other] >= LAYER_OF[package]
    ]
    assert not wrong
