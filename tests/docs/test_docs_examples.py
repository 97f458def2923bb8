"""Runnable examples of the docs are run, and their numbers are recomputed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from tiny_methods import settings_of
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.pairs import completion_id, dump_prompt
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.scoring import score_references
from mrpo_pipeline.targets.compute import compute_targets

DOCS = Path(__file__).parents[2] / "docs"
ROOT = DOCS.parent


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    base = reference(folder / "models" / "base", "llama", "qwen")
    other = reference(folder / "models" / "other", "gpt_neox", "gpt2", seed=1)
    document = {
        "pairs": {"train": str(write_pairs(folder / "pairs.jsonl", plain_pairs(6)))},
        "policy": {"model": str(base)},
        "references": {"base": {"model": str(base)}, "other": {"model": str(other)}},
        "cache": str(folder / "cache"),
        "scoring": {"engine": "transformers"},
    }
    score_references(parse_recipe(document))
    return folder


def test_the_reader_on_the_cache_page_gives_the_sums_that_training_takes(
    scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mrpo_pipeline.cache import ReferenceCache

    monkeypatch.chdir(scored)
    reader, sql, _ = blocks("cache.md")
    space: dict[str, object] = {}
    exec(reader, space)
    found = space["base"]
    assert isinstance(found, pl.DataFrame) and found.height == 12
    wanted = found.select("completion_id", cut=pl.lit(None, dtype=pl.Int64))
    ours = ReferenceCache.open("cache", "base").sums(wanted)
    np.testing.assert_allclose(ours["logps"].to_numpy(), found["logps"].to_numpy(), atol=1e-6)
    assert "difference" in capsys.readouterr().out
    exec(sql, {})
    assert "12" in capsys.readouterr().out


def test_the_completion_id_on_the_cache_page_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, object] = {}
    exec(blocks("cache.md")[2], space)
    theirs = space["completion_id"]
    assert callable(theirs)
    messages = [{"role": "user", "content": "Wie geht's? \"\\\n\u2028 日本語"}]
    for prompt in (messages, "raw text\t👍"):
        assert theirs(prompt, "Gut – und dir?") == completion_id(dump_prompt(prompt), "Gut – und dir?")
    assert len(capsys.readouterr().out.strip()) == 32


def test_the_worked_pair_on_the_concepts_page_is_what_is_computed() -> None:
    page = (DOCS / "concepts.md").read_text(encoding="utf-8")
    text = " ".join(page.split())
    chosen, rejected = np.array([[-60.0, -48.0]]), np.array([[-58.0, -53.0]])
    for aggregate in ("harmonic", "geometric", "arithmetic"):
        settings = settings_of(
            reference_names=["base", "big"], aggregate=aggregate, weights="uniform", trust_region="off"
        )
        targets = compute_targets(chosen, rejected, *settings)
        sides = float(targets.target_chosen[0]), float(targets.target_rejected[0])
        row = next(line for line in page.splitlines() if line.startswith(f"| {aggregate} |"))
        told = [float(text) for text in row.replace("−", "-").replace("*", "").split("|")[2:5]]
        assert told == pytest.approx([*sides, sides[0] - sides[1]], abs=0.006)
        if aggregate == "harmonic":
            assert f"(here {targets.diagnostics['refs/effective_k']:.2f} of 2)" in text
    clipped = compute_targets(chosen, rejected, *settings_of(reference_names=["base", "big"]))
    moved = clipped.clipped_chosen[0, 1], clipped.clipped_rejected[0, 1]
    assert f"from −48 to −{-moved[0]:.2f}" in text and f"+5 to −{moved[1] - moved[0]:.2f}" in text


def test_the_worked_units_on_the_concepts_page_are_what_is_computed() -> None:
    import torch

    from mrpo_pipeline.losses.preference import References, preference_loss
    from mrpo_pipeline.losses.settings import LossSettings

    page = (DOCS / "concepts.md").read_text(encoding="utf-8").replace("−", "-").replace("*", "")
    section = page[page.index("### The unit") : page.index("## Weights")]
    base, big = np.array([[-60.0, -48.0]]) / 100, np.array([[-58.0, -53.0]]) / 140
    settings = settings_of(reference_names=["base", "big"], weights="uniform", trust_region="off")
    harmonic = compute_targets(base, big, *settings).target_chosen[0]
    assert f"and the harmonic mean is {harmonic:.2f}." in " ".join(section.split())
    units: dict[str, tuple[float, float] | None] = {"sum": None, "token": (25, 35), "byte": (100, 140)}
    for unit, counts in units.items():
        row = next(line for line in section.splitlines()[-20:] if line.startswith(f"| `{unit}` |"))
        told = [float(cell) if cell.strip() else 1.0 for cell in row.split("|")[2:9]]
        divided = {} if counts is None else {
            f"{side}_units": torch.tensor([count]) for side, count in zip(("chosen", "rejected"), counts, strict=True)
        }  # fmt: skip
        zero, one = torch.zeros(1, 1), torch.ones(1, 1)
        sides = []
        for beta in (1.0, 0.1, told[5]):
            references = References(zero, zero, one, **divided)
            loss = preference_loss(torch.tensor([3.0]), torch.tensor([-3.0]), references, LossSettings(beta=beta))
            sides.append((loss.chosen_rewards.item(), loss.rejected_rewards.item()))
        expected = [*sides[0], sides[0][0] - sides[0][1], sides[1][0] - sides[1][1]]
        assert told[:4] == pytest.approx(expected, abs=5e-5)
        assert told[6] == pytest.approx(sides[2][0] - sides[2][1], abs=5e-4)
        assert told[4:6] == ([sum(counts) / 2, 0.1 * sum(counts) / 2] if counts else [1.0, 0.1])


def test_the_concepts_page_has_every_loss() -> None:
    from mrpo_pipeline.losses.functional import LOSSES

    page = (DOCS / "concepts.md").read_text(encoding="utf-8")
    table = page[page.index("## Losses") : page.index("### What a cache cannot serve")]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(LOSSES)


def test_the_costs_on_the_cluster_page_are_the_plans() -> None:
    import torch
    from transformers import LlamaConfig

    from mrpo_pipeline.plan.architecture import Architecture, describe, empty_model, training_flops
    from mrpo_pipeline.plan.gpus import EFFICIENCY, GPUS

    def llama(hidden: int, middle: int, layers: int, heads: int) -> Architecture:
        sizes = {"hidden_size": hidden, "intermediate_size": middle, "num_hidden_layers": layers}
        config = LlamaConfig(vocab_size=128256, num_attention_heads=heads, num_key_value_heads=8, **sizes)
        return describe(empty_model(config, dtype=torch.bfloat16))

    small, large = llama(4096, 14336, 32, 32), llama(8192, 28672, 80, 64)
    pairs, prompt, side, runs = 60_000, 300, 350, 15
    an_hour = GPUS["h100"].peak_tflops * 1e12 * EFFICIENCY * 3600
    tokens, squares = 2 * pairs * (prompt + side), 2 * pairs * (prompt + side) ** 2
    once = [each.forward_flops(tokens, squares, tokens) / an_hour for each in (small, small, large)]
    in_memory = sum(each.forward_flops(tokens, squares, 2 * pairs * side) for each in (small, small, large)) / an_hour
    lora, ends = 42_000_000, 2 * pairs * side  # rank 16 on every linear layer
    both = pairs * (prompt + 2 * side), pairs * (2 * (prompt + side) ** 2 - prompt**2)
    twice = training_flops(small, lora, tokens, squares, ends, recomputed=True) / an_hour
    shared = training_flops(small, lora, *both, ends, recomputed=True) / an_hour
    page = (DOCS / "cluster.md").read_text(encoding="utf-8")
    for row in (
        f"| an 8B reference | 1.2e18 | {once[0]:.2f} |",
        f"| the 70B reference | 1.1e19 | {once[2]:.2f} |",
        f"| all three | 1.3e19 | **{sum(once):.1f}** |",
        f"as most trainers do | {twice:.1f} |",
        f"(`share_prompt`) | **{shared:.1f}** |",
        f"| + {in_memory:.1f}, *each epoch, each run* |",
        f"| **{sum(once) + runs * shared:.0f}** |",
        f"| {runs * (shared + in_memory):.0f} |",
    ):
        assert row in page, row


def commands() -> list[tuple[str, str]]:
    """(page, command) of every `mrpo` line in the shell blocks of docs and README."""
    found = []
    for page in [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("mrpo "):
                    found.append((page.name, line.split("#")[0]))
    return found


def test_every_option_in_the_docs_exists() -> None:
    script = (
        "import sys, typer\nfrom mrpo_cli.commands import app\nroot = typer.main.get_command(app)\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    words, command = line.split()[1:], root\n"
        "    while words and hasattr(command, 'commands') and words[0] in command.commands:\n"
        "        command = command.get_command(None, words.pop(0))\n"
        "    known = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {'--help', '-h'}\n"
        "    unknown = [w for w in words if w.startswith('-') and w.split('=')[0] not in known]\n"
        "    assert not hasattr(command, 'commands') and not unknown, (line, unknown)\n"
    )
    lines = "\n".join(line for _, line in commands())
    assert lines.count("\n") > 15
    done = subprocess.run([sys.executable, "-c", script], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere() -> None:
    for page in [
        *DOCS.glob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    ]:
        for target in re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), (page.name, target)


def test_recipes_in_the_docs_are_recipes() -> None:
    import yaml

    for page in ("references.md", "cluster.md"):
        for block in blocks(page, "yaml"):
            parse_recipe(yaml.safe_load(block), page)


@pytest.mark.slow
def test_the_chains_page_runs(tmp_path: Path) -> None:
    """With a tiny model instead of the page's, and two steps instead of an epoch."""
    base = reference(tmp_path / "models" / "base", "llama", "qwen")
    (tmp_path / "data").mkdir()
    write_pairs(tmp_path / "data/demo_eval.jsonl", plain_pairs(26)[20:])
    for at, name in enumerate(("data/demo_train", "part-1", "part-2", "helpful", "safe")):
        write_pairs(tmp_path / f"{name}.jsonl", plain_pairs(20)[at : 16 + at])
    script = "\n".join(blocks("chains.md", "sh"))
    for written, here in (
        ("Qwen/Qwen2.5-0.5B-Instruct", str(base)),
        ("2.0e-5, num_train_epochs: 1", "1.0e-2, max_steps: 2, save_strategy: no"),
        ("--rounds 3", "--rounds 2"),
        ("rounds/round-3", "rounds/round-2"),
    ):
        assert written in script
        script = script.replace(written, here)
    # One process instead of one per command, to import the libraries only once.
    runner = "from typer.testing import CliRunner; from mrpo_cli.commands import app; import subprocess, sys, shlex\n"
    runner += "for part in sys.stdin.read().split('\\0'):\n"
    runner += "    if not part.startswith('mrpo '): subprocess.run(['bash', '-e'], input=part, text=True, check=True); continue\n"
    runner += "    done = CliRunner().invoke(app, shlex.split(part, comments=True)[1:])\n"
    runner += "    assert done.exit_code == 0, (part, done.output, done.exception)\n"
    parts = re.sub(r"^(mrpo .*)$", "\\0\\1\\0", script, flags=re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", runner], input=parts, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name in ("rounds/round-2", "guide", "pre-dpo", "part-2", "safe"):
        assert (tmp_path / name / "complete.json").is_file(), name
    for name, start in (("part-2", "part-1"), ("safe", "helpful")):
        recipe = yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())
        assert (
            recipe["policy"]["adapter"] == start
            and "their log-probs agreed" in (tmp_path / name / "README.md").read_text()
        )
    assert (tmp_path / "measured/evaluation.json").is_file()


def test_the_block_of_the_readme_is_a_recipe_and_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "recipe.yaml <<" in block]
    recipe = parse_recipe(yaml.safe_load(re.search(r"<<'E'\n(.*?)\nE\n", block, re.DOTALL)[1]))  # type: ignore[index]
    assert list(recipe.references) == ["base", "big"]
    assert (ROOT / str(recipe.pairs.train)).is_file()
    commands = re.findall(r"^mrpo (.*?)(?:\s+#.*)?$", block, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        name, *words = command.split()
        run = [sys.executable, "-P", "-c", "from mrpo_cli.main import main; main()", name, "--help"]
        known = subprocess.run(
            run, check=True, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
        ).stdout
        assert all(word in known for word in words if word.startswith("--")), command


def test_the_python_page_runs(
    scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scored)
    run, compared, arrays = blocks("python.md")
    space: dict[str, object] = {}
    exec(run, space)
    exec(arrays, {})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("base 0 scored") and said[1].startswith("other 0 scored")  # scored by the fixture
    assert [line.split()[0] for line in said[2:4]] == ["base", "other"]
    metrics, evaluation = space["metrics"], space["evaluation"]
    assert metrics["eval_accuracy/policy"] == pytest.approx(evaluation.after["accuracy/policy"])  # type: ignore[index, attr-defined]
    assert (scored / "out" / "adapter_model.safetensors").is_file() and "→" in said[5]
    compile(compared, "python.md", "exec")


def test_the_package_offers_what_the_python_page_names_and_loads_it_late() -> None:
    import mrpo_pipeline

    page = (DOCS / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert named and named < set(mrpo_pipeline.__all__)
    assert all(getattr(mrpo_pipeline, name) is not None for name in mrpo_pipeline.__all__)
    code = "import sys, mrpo_pipeline; assert not {'torch', 'polars', 'pydantic', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
