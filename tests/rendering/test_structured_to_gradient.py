"""A tool row and a one-sided thinking row with a real template: rendering, scoring, verification, training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from structured_templates import QWEN3_TOOLS
from tiny_recipes import recipe
from tiny_references import pair, write_pairs
from tiny_tokenizers import qwen
from tokenizers import AddedToken
from transformers import AutoTokenizer

from mrpo_pipeline.dataset.pair_targets import training_examples
from mrpo_pipeline.dataset.prepare import wanted_completions
from mrpo_pipeline.dataset.reference_logps import join_references, open_caches
from mrpo_pipeline.dataset.shared_prompt import own_prompts
from mrpo_pipeline.dataset.truncate import prepare
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.models.input_layouts import plain_rows, shared_row
from mrpo_pipeline.models.shared_prompt_attention import SharedPromptAttention
from mrpo_pipeline.pairs import PairTable, dump_prompt
from mrpo_pipeline.pairs.completion import dump_completion
from mrpo_pipeline.pairs.table import SCHEMA
from mrpo_pipeline.policy.collate import lay_out_pairs
from mrpo_pipeline.policy.forward import PolicyForward
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.scoring.scorer import Assignment, Scorer
from mrpo_pipeline.verify import check_numbers

CALL = {"name": "look", "arguments": {"city": "Zürich"}}
USED = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "21 degrees, and a light wind.", "name": "look"},
    {"role": "assistant", "content": "It is warm."},
]
THOUGHT = [{"role": "assistant", "content": "It is fine.", "reasoning_content": "Let me think."}]
PLAIN = [{"role": "assistant", "content": "I do not know."}]


def policy_of(folder: Path) -> Path:
    tokenizer = copy.deepcopy(qwen(QWEN3_TOOLS))
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    tiny_models.build("llama", folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


def text_of(renderer: Renderer, ids: np.ndarray) -> str:
    return b"".join(renderer.token_bytes(ids.tolist())).decode()


def table(rows: list[tuple[list[Any], list[Any]]]) -> PairTable:
    prompt = dump_prompt([{"role": "user", "content": "How is the weather?"}])
    places = [("rows", at, 0, None, f"{at:032x}", prompt) for at in range(len(rows))]
    sides = [(dump_completion(chosen), dump_completion(rejected), None) for chosen, rejected in rows]
    entries = [(*place, *both) for place, both in zip(places, sides, strict=True)]
    return PairTable(pl.DataFrame(entries, schema=SCHEMA, orient="row"))


def masked_sums(model: Any, frame: pl.DataFrame) -> torch.Tensor:
    """(2N,) of the template's own text of each conversation: full logits, and a mask of what is scored."""
    sums = []
    for side in ("chosen", "rejected"):
        columns = ("prompt_ids", f"{side}_ids", f"{side}_scored")
        for prompt, ids, scored in frame.select(columns).iter_rows():
            row = torch.tensor([*prompt, *ids])
            mask = torch.tensor([False] * len(prompt) + (scored or [True] * len(ids)))[1:]
            logps = model(input_ids=row[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
            sums.append((logps.gather(-1, row[1:, None])[:, 0] * mask).sum())
    return torch.stack(sums)


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def test_tools_and_thinking_are_scored_and_trained_on(tmp_path: Path) -> None:
    path = policy_of(tmp_path / "model")
    run = recipe(tmp_path, {"base": path}, write_pairs(tmp_path / "pairs.jsonl", [pair("x", "y", "z")]))
    source = run.sources()[0]
    renderer, tokenizer = Renderer.of(source), AutoTokenizer.from_pretrained(path)
    prepared = prepare(table([(USED, PLAIN), (THOUGHT, PLAIN), (PLAIN, USED)]), renderer, run.limits)
    frame = prepared.frame
    used = np.array(frame["chosen_ids"][0].to_list())
    scored = np.array(frame["chosen_scored"][0].to_list())
    assert "21 degrees" in text_of(renderer, used[~scored]) and "21 degrees" not in text_of(renderer, used[scored])
    assert "<tool_call>" in text_of(renderer, used[scored]) and "It is warm." in text_of(renderer, used[scored])
    prompts = {side: text_of(renderer, np.array(own_prompts(frame, side)[1])) for side in ("chosen", "rejected")}
    assert prompts["chosen"].endswith("<|im_start|>assistant\n") and prompts["rejected"].endswith("</think>\n\n")
    wanted = wanted_completions([prepared])
    with Scorer(Assignment(source, run.cache, run.scoring)) as scorer:
        assert sum(counts.scored for counts in scorer.score(wanted)) == wanted.height == 3
    assert check_numbers(run, "base", wanted, 3).passed
    examples, _ = training_examples(join_references(open_caches(run), prepared), run.method)
    base = tiny_models.make("llama", vocab_size=len(tokenizer))
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(base, lora).eval()
    with torch.no_grad(), model.disable_adapter():
        anchor = masked_sums(model, frame).chunk(2)
    np.testing.assert_allclose(examples.anchor_chosen, anchor[0], atol=1e-3)
    np.testing.assert_allclose(examples.anchor_rejected, anchor[1], atol=1e-3)
    head = Head.of(model.get_base_model())
    model.double()
    weights = torch.linspace(-1, 2, 6, dtype=torch.float64)
    expected = masked_sums(model, frame)
    by_expected = gradient(model, (expected * weights).sum())
    batch = examples.__getitems__([0, 1, 2])
    for layout, attention in ((plain_rows, None), (shared_row, SharedPromptAttention(head.model))):
        forward = PolicyForward(head, attention)
        found = forward(**lay_out_pairs(batch, layout))
        by_found = gradient(model, (found * weights).sum())
        forward.release()
        assert float((found - expected).detach().abs().max() / expected.detach().abs().max()) <= 1e-6
        assert float((by_found - by_expected).norm() / by_expected.norm()) <= 1e-6
