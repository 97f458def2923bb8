"""The promises of SECURITY.md about this source, the network and telemetry. Those about checkpoints from elsewhere are
tested in policy/test_safe_resume.py, those about templates in rendering/test_template_sandbox.py."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.recipe.plain_yaml import _Loader

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "mrpo_pipeline").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pty", "telnetlib"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.spawnl", "torch.load", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "joblib.load", "pandas.read_pickle", "pd.read_pickle", "jinja2.Template", "Template", "asyncio.create_subprocess_shell",
}  # fmt: skip
ARGUMENTS = {
    ("shell", True),
    ("allow_pickle", True),
    ("weights_only", False),
    ("trust_remote_code", True),
    ("verify", False),
}
# The only module that uses pickle is the one that restricts it; its own tests cover what it may load.
ALLOWED = {("mrpo_pipeline/policy/safe_resume.py", "import pickle")}


def dangers(source: str) -> Iterator[str]:
    """Parts of a source file that could run input as code, or call a shell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            loader = [ast.unparse(k.value) for k in node.keywords if k.arg == "Loader"]
            if name in CALLS or (name == "yaml.load" and loader not in (["yaml.SafeLoader"], ["_Loader"])):
                yield name
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in ARGUMENTS:
                    yield f"{keyword.arg}={keyword.value.value}"


def test_our_source_reads_no_pickle_runs_no_text_and_asks_no_shell():
    found = {
        (path.relative_to(ROOT).as_posix(), danger) for path in SOURCES for danger in dangers(path.read_text("utf-8"))
    }
    assert len(SOURCES) > 150
    assert found - ALLOWED == set()


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle", "from dill import loads", "import cloudpickle as c", "torch.load(p)", "eval(text)", "exec(text)",
        "subprocess.run(c, shell=True)", "np.load(p, allow_pickle=True)", "yaml.load(t)", "yaml.load(t, Loader=yaml.Loader)",
        "os.system(c)", "f(trust_remote_code=True)", "torch.load(p, weights_only=False)", "jinja2.Template(t)",
    ],
)  # fmt: skip
def test_each_of_them_would_be_found(planted):
    assert list(dangers(f"def f():\n    {planted}\n"))


def test_the_recipes_loader_builds_no_objects():
    assert issubclass(_Loader, yaml.SafeLoader)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("!!python/object/apply:os.getpid []", Loader=_Loader)


def may_leave_the_network() -> bool:
    """Whether a process without any network can be started."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def test_the_main_commands_ask_no_network_for_models_and_pairs_on_the_disk(tmp_path):
    """Connections are refused, and if the system allows it there is no network at all."""
    base = reference(tmp_path / "base", "llama", "qwen")
    other = reference(tmp_path / "other", "gpt2", "t5", seed=1)
    write_pairs(tmp_path / "pairs.jsonl", plain_pairs(12))
    recipe = {
        "pairs": {"train": "pairs.jsonl", "eval_fraction": 0.2},
        "policy": {"model": str(base), "lora": {"target_modules": "all-linear"}},
        "references": {"base": {"model": str(base)}, "other": {"model": str(other)}},
        "cache": "cache",
        "limits": {"max_length": 200},
        "scoring": {"engine": "transformers"},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
        "output_dir": "out",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    alone = ["unshare", "-rn"] if may_leave_the_network() else []
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_proxy")}
    environment |= {"MRPO_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name("offline_run.py"))
    done = subprocess.run(
        [*alone, sys.executable, program, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert (tmp_path / "asked.json").is_file(), done.stderr[-3000:]
    found = json.loads((tmp_path / "asked.json").read_text())
    assert set(found["codes"].values()) == {0}, (found, done.stderr[-3000:])
    assert len(found["codes"]) == 8
    assert found["asked"] == []
    assert (tmp_path / "merged" / "model.safetensors").is_file()


SAYS = """
import json, os, sys
sys.argv = ["mrpo", "recipes"]
from mrpo_cli.main import main
try:
    main()
except SystemExit:
    pass
import huggingface_hub.constants as hub
print(json.dumps([hub.HF_HUB_DISABLE_TELEMETRY, {k: v for k, v in os.environ.items() if "USAGE_STATS" in k or "TRACK" in k}]))
"""


def test_usage_reports_of_libraries_are_off_unless_the_user_has_turned_them_on():
    plain = {name: value for name, value in os.environ.items() if "USAGE" not in name and "TRACK" not in name}
    plain.pop("HF_HUB_DISABLE_TELEMETRY", None)

    def said(**more: str) -> list[object]:
        run = [sys.executable, "-c", SAYS]
        done = subprocess.run(run, env=plain | more, capture_output=True, text=True, check=True)
        return list(json.loads(done.stdout.splitlines()[-1]))

    assert said() == [True, {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}]
    assert said(HF_HUB_DISABLE_TELEMETRY="0", DO_NOT_TRACK="0")[0] is False


def test_the_switches_are_those_that_the_libraries_look_at():
    """A variable of another name would have no effect."""
    from importlib.util import find_spec

    for package, file, name in (
        ("ray", "_common/usage/usage_constants.py", "RAY_USAGE_STATS_ENABLED"),
        ("vllm", "envs.py", "VLLM_NO_USAGE_STATS"),
        ("huggingface_hub", "constants.py", "HF_HUB_DISABLE_TELEMETRY"),
    ):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None and (path := Path(spec.origin).parent / file).is_file():
            assert name in path.read_text(encoding="utf-8"), package
