"""Help, completion, and the cost of a trivial error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mrpo_cli.commands import COMMANDS, app
from mrpo_cli.recipe_options import COMMANDS as OPTIONS
from mrpo_cli.recipe_options import options_of
from rich.cells import cell_len
from typer.main import get_command
from typer.testing import CliRunner

from mrpo_pipeline.losses.functional import LOSSES
from mrpo_pipeline.recipe import Recipe

MRPO = [sys.executable, "-P", "-c", "from mrpo_cli.main import main; main()"]
_CACHE = ("list", "stats", "verify", "prune", "compact", "push", "pull", "merge")
SUBCOMMANDS = [[name] for name in COMMANDS] + [["cache", name] for name in _CACHE]


def help_of(*command: str) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", [[], *SUBCOMMANDS], ids=" ".join)
def test_help_fits_80_columns_with_an_example_and_the_options_of_all(command: list[str]) -> None:
    text = help_of(*command)
    assert max(map(cell_len, text.splitlines())) <= 80
    assert re.search(rf"Example:\s+(mkdir try .*)?mrpo {' '.join(command)}", text)
    assert "--verbose" in text and "-q" in text and not re.search(r"\w…", text)


def test_every_command_of_the_list_is_there_with_help_of_its_own() -> None:
    listed = help_of()
    for name, one in COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(one.about[:20])}", listed)
        command = get_command(app).get_command(None, name)  # type: ignore[attr-defined]
        assert command is not None and command.help


def test_types_bounds_choices_and_defaults_are_those_of_the_recipe() -> None:
    train = " ".join(re.sub("[│╭╰─╮╯]+", " ", help_of("train")).split())
    assert Recipe().method.beta == 0.1
    assert re.search(r"--beta FLOAT The KL strength.*?\(> 0; default: 0.1\)", train)
    assert f"{', '.join(LOSSES)}, mpo." in train
    assert re.search(r"--lora-r INT Rank of the adapters. \(≥ 1; default: 8\)", train)
    assert re.search(r"--learning-rate FLOAT [^-]*\(default: 1.0e-05\)", train)
    for panel in ("Pairs", "Method", "LoRA adapter", "Training", "Folders"):
        assert panel in train


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_sets_a_key_of_the_recipe(command: str) -> None:
    from mrpo_pipeline.recipe.key_help import key_help

    for option in options_of(command):
        assert key_help(option.key).about, option.key


TRIVIAL = """
import sys
from mrpo_cli.commands import app
from mrpo_pipeline.errors import UserError
heavy = {"torch", "transformers", "polars", "pyarrow", "numpy", "vllm", "scipy", "datasets"}
for line in sys.stdin.read().splitlines():
    sys.argv = ["mrpo", *line.split()]
    try:
        app(prog_name="mrpo")
    except UserError as error:
        print(error)
    except SystemExit as error:
        print("exit", error.code)
    if line.startswith(("cache", "report")):  # the last ones: they read tables
        heavy -= {"polars", "pyarrow", "numpy"}
    found = heavy & set(sys.modules)
    assert not found, (line, found)
"""
ERRORS = {
    "train absent.yaml": "absent.yaml is not there",
    "train": "names no policy",
    "score-refs": "names no reference",
    "score-refs --reference base=m": "names no pairs",
    "train recipe.yaml --no-such-option": "exit 2",
    "train recipe.yaml --learning-rate fast": "--learning-rate",
    "train recipe.yaml --set training.optim=adam": "adamw_torch",
    "train recipe.yaml --set training.learning_rat=1": "`learning_rate`",
    **{f"{command} recipe.yaml": "there is no such file" for command in ("plan", "score-refs", "render", "audit")},
    **{f"{command} recipe.yaml": "there is no such file" for command in ("train", "compare", "targets")},
    "evaluate recipe.yaml": "holds no adapter",
    "merge nowhere --output merged": "holds no adapter",
    "recipes copy nothing": "No shipped recipe",
    "cache stats --cache nowhere": "no cached reference",
    "report nowhere": "no such folder",
}


def test_a_trivial_error_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "pairs: {train: absent.jsonl}\npolicy: {model: m}\nreferences: {base: {model: m}, other: {model: m}}\n"
        "training: {learning_rate: 1.0e-5, warmup_steps: 0.1, optim: adamw_torch}\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", TRIVIAL],
        input="\n".join(ERRORS),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(ERRORS)
    for line, (command, expected) in zip(said, ERRORS.items(), strict=True):
        assert expected in line, (command, line)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MRPO, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("mrpo tr", "train"),
        ("mrpo train --loss-type si", "sigmoid"),
        ("mrpo train pap", "paper"),
        ("mrpo cache ve", "verify"),
    ],
)
def test_the_shell_completes_commands_choices_and_recipes(words: str, found: str) -> None:
    count = str(len(words.split()) - 1)
    done = run(_MRPO_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert found in done.stdout.split()


def test_verbose_and_quiet_count_before_and_behind_the_command() -> None:
    assert "Next: mrpo recipes copy small" in run("recipes").stderr
    for arguments in (["-q", "recipes"], ["recipes", "-q"], ["recipes", "layouts", "--quiet"]):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout
    for arguments in (["-v", "recipes", "copy", "none"], ["recipes", "copy", "none", "-v"]):
        assert "Traceback" in run(*arguments).stderr
    done = run("recipes", "-v", "-q")
    assert done.returncode == 2 and "expected one of them" in done.stderr
