"""The `mrpo plan` command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mrpo_command import mrpo
from planned_run import made_pairs, run


def test_the_command_prints_the_plan_as_a_table_and_as_json(tmp_path: Path) -> None:
    recipe = run(tmp_path, made_pairs(30))
    recipe.write(tmp_path / "written")
    found = mrpo(
        "plan", tmp_path / "written" / "recipe.yaml", "--json", "--gpu", "l40s", "--max-steps", "7", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert document["gpu"]["name"] == "l40s" and document["training"]["steps"] == 7
    assert document["references"][0]["to_score"] > 0
    assert not (tmp_path / "cache").exists() and not (tmp_path / "output").exists()


def test_a_recipe_without_a_policy_is_one_sentence(tmp_path: Path) -> None:
    found = mrpo("plan", "--train-file", "nothing.jsonl", "--reference", "a=b", cwd=tmp_path)
    assert found.returncode == 2 and "names no policy" in found.stderr and "Traceback" not in found.stderr


def test_help_imports_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from mrpo_cli.commands import app; "
        "print(CliRunner().invoke(app, ['plan', '--help']).output); "
        "print([name for name in ('torch', 'transformers', 'polars', 'ray') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "--efficiency" in found.stdout and found.stdout.strip().endswith("[]")
