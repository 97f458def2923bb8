"""The complete path on real pairs with three references of different architectures and tokenizers: score, train, evaluate, check.

    python benchmarks/real_input.py FILE.jsonl [FILE.jsonl …] [--engine vllm] [--folder runs/real] [--steps 60] [--check 60]

The references are created here (tokenizers trained on the pairs' own text, weights trained on it for a minute), so
that they are models with some knowledge of language. Every completion is scored; of each file, `--check` completions across
all lengths are compared with a plain transformers forward pass with full logits in this script.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
from mrpo_pipeline.demo.vocabularies import byte_level_bpe, sentencepiece_bpe, unigram
from mrpo_pipeline.evaluation import evaluate_recipe
from mrpo_pipeline.pairs import parse_prompt, read_pairs
from mrpo_pipeline.policy.run import train_recipe
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.scoring import score_references
from mrpo_pipeline.terminal import quiet_libraries, show_messages, track

CONTEXT = 2048
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}


def make_reference(folder: Path, kind: str, texts: Sequence[str], steps: int) -> None:
    """A model folder with tokenizer and weights trained on the texts."""
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    if (folder / "model.safetensors").is_file():
        return
    build = {"llama": byte_level_bpe, "qwen3": sentencepiece_bpe, "gpt_neox": unigram}[kind]
    tokenizer = build(texts[:600], 3000)
    more = {"head_dim": 32} if kind == "qwen3" else {}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        **({} if kind == "gpt_neox" else {"num_key_value_heads": 4}), **SIZES, **more,
    )  # fmt: skip
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    length, rows = 128, 16
    draw = np.random.default_rng(0)
    model.train()
    with track(f"making {folder.name} ({kind})", steps, "steps") as progress:
        for _ in range(steps):
            starts = draw.integers(0, len(ids) - length, rows)
            batch = torch.tensor([ids[start : start + length] for start in starts])
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            progress.advance(1)
    print(f"{folder.name}: {kind}, vocabulary {len(tokenizer):,}, training loss {loss.item():.2f} nats per token")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def texts_of(files: Sequence[str]) -> list[str]:
    frame = read_pairs(list(files)).frame
    texts = []
    for prompt, chosen in frame.select("prompt", "chosen").iter_rows():
        content = parse_prompt(prompt)
        texts += [content] if isinstance(content, str) else [message["content"] for message in content]
        texts.append(chosen)
    return list(dict.fromkeys(texts))


def check(recipe: Recipe, count: int) -> None:
    """Compare cached rows with plain forward passes, one sequence at a time, logits in full."""
    from transformers import AutoModelForCausalLM

    wanted = wanted_completions(list(prepare_splits(recipe).values())).sort(pl.col("completion").str.len_bytes())
    picked = wanted[np.linspace(0, wanted.height - 1, min(count, wanted.height)).astype(int).tolist()]
    for source in recipe.sources():
        model = AutoModelForCausalLM.from_pretrained(source.model, dtype=torch.float32).eval()
        rendered = Renderer.of(source).render(list(picked.select("prompt", "completion").iter_rows()))
        rows = {
            row["completion_id"]: row for row in ReferenceCache.open(recipe.cache, source.name).rows(picked).to_dicts()
        }
        worst_token = worst_sum = 0.0
        tokens = absent = 0
        for identifier, completion, sides in zip(picked["completion_id"], picked["completion"], rendered, strict=True):
            row = rows.get(identifier)
            if row is None:
                absent += 1
                continue
            prompt = sides.prompt_ids.tolist()
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + row["token_ids"]])).logits[0].double()
            logps = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
            expected = logps.gather(1, torch.tensor(row["token_ids"])[:, None])[:, 0].numpy()
            difference = np.abs(np.array(row["logprobs"]) - expected)
            worst_token = max(worst_token, float(difference.max()))
            worst_sum = max(worst_sum, abs(float(np.sum(row["logprobs"], dtype=np.float64) - expected.sum())))
            tokens += len(expected)
            if row["complete"] and row["byte_ends"][-1] != len(completion.encode()):
                raise SystemExit(f"{source.name}: byte_ends of {identifier} do not end at the completion's last byte")
        print(
            f"{source.name}: {len(rows):,} completions, {tokens:,} tokens against a plain forward pass: "
            f"largest difference {worst_token:.1e} nats a token, {worst_sum:.1e} a sum"
            + (f"; {absent} do not fit its context" if absent else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--folder", default="runs/real")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--steps", type=int, default=150, help="steps of making each reference")
    parser.add_argument("--train-steps", type=int, default=60)
    parser.add_argument("--check", type=int, default=60)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for the engines' processes; the Makefile sets it for this one
    show_messages()
    with quiet_libraries():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Make the references, then run the pipeline on each file."""
    folder = Path(arguments.folder)
    texts = texts_of(arguments.files)
    kinds = {"base": "llama", "second": "qwen3", "third": "gpt_neox"}
    for name, kind in kinds.items():
        make_reference(folder / "models" / name, kind, texts, arguments.steps)
    for file in arguments.files:
        place = folder / Path(file).stem
        recipe = parse_recipe(
            {
                "pairs": {"train": file, "eval_fraction": 0.15},
                "policy": {"model": str(folder / "models/base"), "lora": {"target_modules": "all-linear"}},
                "references": {name: {"model": str(folder / "models" / name)} for name in kinds},
                "cache": str(folder / "cache"),
                "limits": {"max_length": 1024},
                "scoring": {"engine": arguments.engine},
                "training": {
                    "learning_rate": 1e-3, "max_steps": arguments.train_steps, "per_device_train_batch_size": 4,
                    "gradient_accumulation_steps": 1, "save_strategy": "no",
                },
                "output_dir": str(place / "output"),
            }
        )  # fmt: skip
        print(f"\n== {file} ({arguments.engine})")
        began = time.monotonic()
        for report in score_references(recipe):
            print(json.dumps({key: value for key, value in report.as_dict().items() if value}))
        print(f"scored in {time.monotonic() - began:,.0f} s; again: ", end="", flush=True)
        began = time.monotonic()
        again = sum(report.scored for report in score_references(recipe))
        print(f"{again} completions scored in {time.monotonic() - began:.1f} s")
        check(recipe, arguments.check)
        began = time.monotonic()
        results = train_recipe(recipe)
        shown = ("train_loss", "eval_loss", "eval_accuracy/policy", "eval_accuracy/anchor", "refs/effective_k")
        print(f"trained in {time.monotonic() - began:,.0f} s:", {name: round(results[name], 4) for name in shown})
        evaluation = evaluate_recipe(recipe)
        print(
            {name: round(evaluation.after[name] - evaluation.before[name], 4) for name in ("accuracy/policy", "loss")}
        )


if __name__ == "__main__":
    main()
