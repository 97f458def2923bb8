"""Commands in a folder with modules of every name that Python programs import: none of them runs, in any process. Each
module reports that it ran, and fails. Covered are the processes of compare, a template's process, and Ray's workers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
from compared import scored

ROOT = Path(__file__).parents[2]
OTHERS = (
    "torch", "transformers", "tokenizers", "numpy", "polars", "pyarrow", "yaml", "pydantic", "peft", "psutil", "jinja2", "rich",
    "safetensors", "vllm", "ray", "tqdm", "accelerate", "datasets", "huggingface_hub", "mrpo_pipeline", "mrpo_cli", "usercustomize",
)  # fmt: skip
HOSTILE = "import os\nopen({log!r}, 'a').write({name!r} + '\\n')\nraise SystemExit('hostile ' + {name!r})\n"
AS_SCRIPT = "from mrpo_cli.main import main; main()"


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return scored(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the modules; those that ran are in ``ran.txt`` beside it."""
    made = tmp_path / "here"
    made.mkdir()
    for name in (*sys.stdlib_module_names, *OTHERS):
        (made / f"{name}.py").write_text(HOSTILE.format(log=str(tmp_path / "ran.txt"), name=name))
    return made


def run(folder: Path, document: dict[str, Any], *start: str, options: tuple[str, ...]) -> str:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**document, "output_dir": str(folder.parent / "out")}))
    path = f"{ROOT}{os.pathsep}{ROOT / 'cli'}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [*start, *options], check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    ran = folder.parent / "ran.txt"
    assert not ran.exists(), f"{ran.read_text()}\n{done.stderr}"
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_compares_workers_and_templates_run_no_module_of_the_folder(folder: Path, document: dict[str, Any]) -> None:
    start = (sys.executable, "-P", "-c", AS_SCRIPT)
    options = ("compare", "recipe.yaml", "--processes", "2", "--seeds", "0")
    said = run(folder, document, *start, options=options)
    assert "2 runs at a time" in said


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_rays_workers_run_no_module_of_the_folder(folder: Path, document: dict[str, Any]) -> None:
    start = (sys.executable, "-P", "-c", AS_SCRIPT)
    options = ("score-refs", "recipe.yaml", "--workers", "2", "--cache", str(folder.parent / "another"))
    run(folder, document, *start, options=options)


def test_pythonpath_counts_in_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrpo_pipeline.files.python_launch import child_environment

    (tmp_path / "of_mine.py").write_text("print('found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir("/")
    command = [sys.executable, "-P", "-c", "import of_mine"]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "found\n"


def test_every_python_program_is_started_by_the_one_function_that_does_it_safely() -> None:
    sources = [path for folder in ("mrpo_pipeline", "cli") for path in (ROOT / folder).rglob("*.py")]
    others = {path.name for path in sources if "sys.executable" in path.read_text(encoding="utf-8")}
    assert others == {"python_launch.py"}
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        assert "python -m" not in line and "(PYTHON) -m" not in line, f"without -P: {line}"
