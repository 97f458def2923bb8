"""`mrpo select`: scores by hand, near copies against a brute-force oracle, and the command."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from mrpo_command import mrpo
from tiny_recipes import run_of
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports.near_copies import near_copies
from mrpo_pipeline.exports.pair_advice import select_pairs, write_selection
from mrpo_pipeline.recipe import Method

GEOMETRIC = {"aggregate": "geometric", "weights": "uniform", "trust_region": {"kind": "off"}}


def made_up(margins: list[list[float]], texts: list[str] | None = None) -> CachedPairs:
    """Pairs whose references have these margins, and texts that share no three words unless given."""
    count = len(margins)
    texts = texts or [" ".join(f"w{place}x{word}" for word in range(12)) for place in range(count)]
    frame = pl.DataFrame(
        {
            "file": ["pairs.jsonl"] * count,
            "row": range(count),
            "pair_in_row": [0] * count,
            "id": [None] * count,
            "pair_id": [f"{place:032x}" for place in range(count)],
            "prompt_read": texts,
            "chosen": ["yes"] * count,
            "rejected": ["no"] * count,
        }
    )
    chosen = np.array(margins) - 30
    return CachedPairs(frame, [f"r{k}" for k in range(chosen.shape[1])], chosen, np.full_like(chosen, -30.0), {})


def test_scores_are_those_worked_out_by_hand() -> None:
    found = select_pairs(made_up([[3, 1, 2], [-3, -1, -2], [1, -4, 3.6], [9, -1, 1]]), Method(**GEOMETRIC))
    assert found["margin"].to_list() == pytest.approx([2, -2, 0.2, 3])
    assert found["certainty"].to_list() == pytest.approx([2, 2, 0.2, 3])
    # Of three pairs of references, two differ in sign if one reference disagrees with the other two.
    assert found["disagreement"].to_list() == pytest.approx([0, 0, 2 / 3, 2 / 3])
    assert found["all_wrong"].to_list() == [False, True, False, False]
    assert found["advice"].to_list() == ["keep", "read", "label", "keep"]
    assert "label may be wrong" in found["reason"][1] and found["reason"][0] == ""


def test_one_reference_never_disagrees() -> None:
    found = select_pairs(made_up([[2], [-1]]), Method(name="dpo"))
    assert found["disagreement"].to_list() == [0, 0] and found["advice"].to_list() == ["keep", "read"]


def test_a_near_copy_is_dropped_whatever_else_it_is() -> None:
    text = " ".join(f"word{place}" for place in range(80))
    found = select_pairs(
        made_up([[1, 1], [-1, -1], [-2, -2]], [text, text.upper() + "!", "another thing"]), Method(**GEOMETRIC)
    )
    assert found["near_copy_of"].to_list() == [None, found["pair_id"][0], None]
    assert found["advice"].to_list() == ["keep", "drop", "read"]


def jaccard(one: str, other: str) -> float:
    a, b = (
        {tuple(words[at : at + 3]) for at in range(max(len(words) - 2, 1))}
        for words in (re.findall(r"\w+", text.casefold()) for text in (one, other))
    )
    return len(a & b) / len(a | b)


def test_near_copies_beside_every_pair_compared() -> None:
    draw = random.Random(3)
    vocabulary = [f"v{number}" for number in range(400)]
    texts: list[str] = []
    for _ in range(120):
        words = [draw.choice(vocabulary) for _ in range(60)]
        texts.append(" ".join(words))
        for _ in range(draw.randrange(3)):
            changed = list(words)
            for place in draw.sample(range(60), draw.choice([0, 1, 1, 4, 15])):
                changed[place] = draw.choice(vocabulary)
            texts.append(" ".join(changed))
    found = near_copies([(text,) for text in texts])
    shares = {(i, j): jaccard(texts[i], texts[j]) for j, i in itertools.combinations(range(len(texts)), 2) if i > j}
    for place, one in enumerate(found):
        best = max((share for (i, j), share in shares.items() if i == place and j < place), default=0.0)
        assert one < place
        assert one == -1 or jaccard(texts[place], texts[one]) > 0.6
        assert one >= 0 or best < 0.95, (place, best)


def test_texts_of_few_words_and_none() -> None:
    assert near_copies([(text,) for text in ("Yes.", "yes", "no", "", "", "?!")]).tolist() == [-1, 0, -1, -1, 3, -1]


def test_pairs_of_one_prompt_and_contradicting_ones_are_no_copies() -> None:
    prompt, a, b, c = (
        " ".join(f"{name}{word}" for word in range(size)) for name, size in zip("pabc", (500, 60, 60, 60), strict=True)
    )
    assert near_copies([(prompt, a, b), (prompt, a, c), (prompt, b, a), (prompt, a, b)]).tolist() == [-1, -1, -1, 0]


@pytest.mark.parametrize("method", [{"name": "multi-dpo"}, {"weights": "sliding-window"}])
def test_a_method_without_a_fixed_target_is_refused(method: dict[str, str]) -> None:
    with pytest.raises(UserError, match="no fixed log π̃"):
        select_pairs(made_up([[1, 1]]), Method(**method))


def test_the_command_writes_what_is_asked_for(tmp_path: Path) -> None:
    base = reference(tmp_path / "base-model", "llama", "qwen")
    other = reference(tmp_path / "other-model", "gpt_neox", "llama2", seed=1)
    write_pairs(tmp_path / "pairs.jsonl", [*plain_pairs(11), plain_pairs(11)[0]])
    recipe = run_of(tmp_path, {"base": base, "other": other})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    done = mrpo("select", "recipe.yaml", "--output", "all.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    every = pl.read_parquet(tmp_path / "all.parquet")
    assert every.height == 12 and every["advice"][11] == "drop" and every["near_copy_of"][11] == every["pair_id"][0]
    assert re.search(r"drop +1 ", done.stdout) and "Results: all.parquet" in done.stderr
    done = mrpo(
        "select",
        "recipe.yaml",
        "-o",
        "two.jsonl",
        "--advice",
        "keep",
        "--advice",
        "read",
        "--by",
        "certainty",
        "--top",
        "2",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    best = every.filter(pl.col("advice").is_in(["keep", "read"]))["certainty"].sort(descending=True)[:2]
    assert [row["certainty"] for row in rows] == pytest.approx(best.to_list())
    for arguments, says in (
        (("--advice", "burn"), "--advice is 'burn': expected one of keep, label, read, drop"),
        (("--by", "row"), "--by is 'row'"),
        (("-o", "x.csv"), "expected a .parquet or .jsonl file"),
    ):
        refused = mrpo("select", "recipe.yaml", *arguments, cwd=tmp_path)
        assert refused.returncode == 2 and says in refused.stderr
    with pytest.raises(UserError, match="--split"):
        write_selection(recipe, tmp_path / "x.parquet", split="eval")
