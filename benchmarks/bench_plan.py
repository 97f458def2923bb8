"""The peak memory of stage two that `mrpo plan` predicts, against the measured peak on a CPU.

    python benchmarks/bench_plan.py [--quick]

Small Llamas made on the spot (hidden 256 to 768, vocabularies of 8k to 32k) are trained for a few steps by the code that `mrpo train`
runs (policy/train.py), each in its own process; pairs of up to 256 to 1,024 tokens, batches of 2 to 8, with and without
gradient checkpointing, with the fast paths and without. The measure is the process's peak resident memory beyond that at rest,
with imports done and the model not loaded.

Every case runs twice: with glibc returning freed blocks at once (MALLOC_MMAP_THRESHOLD_), which shows what is needed,
and with its defaults, for which the plan adds the memory that malloc was measured to keep.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import claim, describe_machine, environment, machine, run_script, table, write_results

SETTLED = {"MALLOC_MMAP_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Case:
    """One training run. `fast` False: two padded rows for each pair, a fixed number of pairs, no fused adapters."""

    hidden: int
    layers: int
    vocabulary: int
    length: int
    batch: int
    checkpointing: bool = False
    fast: bool = True

    @property
    def name(self) -> str:
        parts = [
            f"h{self.hidden} L{self.layers} v{self.vocabulary // 1000}k",
            f"len {self.length}",
            f"batch {self.batch}",
        ]
        parts += ["checkpointing"] if self.checkpointing else []
        return ", ".join(parts + ([] if self.fast else ["fast paths off"]))

    @property
    def training(self) -> dict[str, Any]:
        off = {"share_prompt": False, "micro_batch_tokens": "off", "fused_lora": False}
        return {
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": 1,
            "max_steps": 3,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "gradient_checkpointing": self.checkpointing,
            **({} if self.fast else off),
        }


CASES = (
    Case(256, 4, 8192, 256, 2),
    Case(256, 4, 8192, 1024, 8),
    Case(512, 6, 16384, 512, 4),
    Case(512, 6, 16384, 512, 4, checkpointing=True),
    Case(512, 6, 16384, 512, 4, fast=False),
    Case(512, 6, 16384, 512, 4, checkpointing=True, fast=False),
    Case(768, 8, 32000, 1024, 2),
    Case(768, 8, 32000, 1024, 2, checkpointing=True),
    Case(768, 8, 32000, 512, 4, fast=False),
)


def lengths_of(case: Case) -> Any:
    """Lengths of pairs up to the case's length, a third of it prompt, and one of exactly that length."""
    import numpy as np

    from mrpo_pipeline.plan.worst_batch import PairLengths

    draw = np.random.default_rng(0)
    whole = draw.integers(case.length // 4, case.length + 1, 3 * case.batch)
    whole[0] = case.length
    prompts = whole // 3
    chosen = whole - prompts
    return PairLengths(prompts, chosen, np.maximum(1, (chosen * draw.uniform(0.3, 1, len(whole))).astype(int)))


def make_model(case: Case, folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    where = folder / f"{case.hidden}-{case.layers}-{case.vocabulary}"
    if where.is_dir():
        return where
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocabulary, hidden_size=case.hidden, intermediate_size=case.hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=case.layers, num_attention_heads=case.hidden // 64, num_key_value_heads=case.hidden // 128,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(where)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, case.vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    ).save_pretrained(where)
    return where


def status(name: str) -> int:
    """Bytes of an entry of ``/proc/self/status`` (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("This benchmark reads /proc/self/status, which Linux has.")


def train(case: Case, model: str) -> dict[str, float]:
    """Peak memory beyond that at rest, of a training run in this process."""
    import numpy as np
    import peft.tuners.lora  # noqa: F401 - imports are no part of what is measured
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from mrpo_pipeline.plan.worst_batch import examples_of
    from mrpo_pipeline.policy import anchor_check, arguments, trainer  # noqa: F401
    from mrpo_pipeline.policy.train import train_policy
    from mrpo_pipeline.recipe import Lora, Method, Policy

    torch.set_num_threads(1)
    examples = examples_of(lengths_of(case))
    draw = np.random.default_rng(0)
    # Tokens from the entire vocabulary, so that the embedding table is really read.
    for side in (examples.prompt_ids, examples.chosen_ids, examples.rejected_ids):
        side[:] = [draw.integers(3, case.vocabulary, len(ids)).astype(np.int32) for ids in side]
    rest = status("VmRSS")
    with tempfile.TemporaryDirectory() as output:
        settings = Policy(model=model, lora=Lora(target_modules="all-linear"))
        train_policy(settings, examples, None, Method(), case.training, output)
    return {"measured_bytes": status("VmHWM") - rest}


def plan(case: Case, model: str) -> dict[str, float]:
    """The plan's estimate for the same run, without the memory of the process at rest."""
    from transformers import AutoConfig

    from mrpo_pipeline.plan.architecture import architecture_of
    from mrpo_pipeline.plan.scoring_memory import process_bytes
    from mrpo_pipeline.plan.training_memory import training_memory
    from mrpo_pipeline.recipe import Lora, Policy

    architecture = architecture_of(AutoConfig.from_pretrained(model))
    policy = Policy(model=model, lora=Lora(target_modules="all-linear"))
    memory = training_memory(policy, architecture, case.training, lengths_of(case), dtype="float32", device="cpu")
    if memory.resident_bytes is None:
        raise SystemExit(f"{case.name}: {memory.untraced}")
    return {"plan_bytes": memory.resident_bytes - process_bytes(architecture.vocabulary, "cpu")}


def in_process_of_its_own(work: str, case: Case, model: Path, **variables: str) -> dict[str, float]:
    with environment(OMP_NUM_THREADS="1", **variables):
        found: dict[str, float] = run_script([__file__, "--work", work, json.dumps(asdict(case)), str(model)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the three smallest cases")
    parser.add_argument("--work", nargs=3, metavar=("WHAT", "CASE", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        what, case, model = given.work
        print(json.dumps({"train": train, "plan": plan}[what](Case(**json.loads(case)), model)))
        return
    found, body = machine(), []
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES[:3] if given.quick else CASES:
            model = make_model(case, Path(folder))
            cells = []
            for variables in (SETTLED, {}):
                planned = in_process_of_its_own("plan", case, model, **variables)["plan_bytes"]
                measured = in_process_of_its_own("train", case, model, **variables)["measured_bytes"]
                ratios.append(planned / measured)
                cells += [f"{planned / 1e6:,.0f}", f"{measured / 1e6:,.0f}", f"{planned / measured:.2f}"]
            body.append([case.name, *cells])
            print(" | ".join(body[-1]), flush=True)
    header = ["run", "blocks given back: plan MB", "measured MB", "ratio", "as it is: plan MB", "measured MB", "ratio"]
    as_it_is = ratios[1::2]
    claims = [
        claim("mrpo plan ÷ measured, peak memory of training on a CPU, lowest case", min(as_it_is)),
        claim("mrpo plan ÷ measured, peak memory of training on a CPU, highest case", max(as_it_is)),
    ]
    text = table(header, body) + f"\n\nglibc {platform.libc_ver()[1]}. {describe_machine(found)}"
    write_results(
        "plan",
        {"machine": found, "claims": claims, "cases": [dict(zip(header, line, strict=True)) for line in body]},
        text,
    )


if __name__ == "__main__":
    main()
