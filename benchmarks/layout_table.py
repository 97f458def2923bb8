"""How mrpo and TRL read files in the layouts of well-known preference data sets, as a Markdown table.

    python benchmarks/layout_table.py FILES.jsonl … [--into docs/pairs.md]

Each file is read as it is, with every layout that matches its columns, and as TRL's DPOTrainer prepares it (its own
`extract_prompt` and `is_conversational`, and its concatenation of prompt and answer, without a tokenizer). TRL's prompt and
answers are compared with mrpo's. `--into` writes the table between the page's marks.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import PairTable, parse_prompt, read_pairs
from mrpo_pipeline.pairs.completion import completion_messages
from mrpo_pipeline.pairs.field_paths import get_path, is_filled
from mrpo_pipeline.pairs.layouts import LAYOUTS, Sides
from mrpo_pipeline.pairs.tool_calls import read_calls

BEGIN, END = "<!-- layout table -->", "<!-- end of layout table -->"
ANSWERS = ("chosen", "rejected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, help="a page with the two marks")
    arguments = parser.parse_args()
    lines = ["| file | mrpo, as it is | mrpo, with a layout named | TRL's DPOTrainer |", "|---|---|---|---|"]
    lines += [line_of(path) for path in sorted(arguments.files, key=lambda path: path.stem)]
    table = "\n".join(lines)
    if arguments.into is None:
        print(table)
        return
    page = arguments.into.read_text(encoding="utf-8")
    new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}\n{END}", page, flags=re.DOTALL)
    arguments.into.write_text(new, encoding="utf-8")


def line_of(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    as_is, table = ours(path)
    named = [
        layout.name
        for layout in LAYOUTS
        if all(filled(rows, need) for need in layout.needs)
        and not (isinstance(layout.answers, Sides) and any(filled(rows, path) for path in layout.without))
    ]
    presets = "; ".join(f"`{name}`: {ours(path, layout=name)[0]}" for name in named) or "–"
    return f"| {path.stem} | {as_is} | {presets} | {theirs(rows, table)} |"


def filled(rows: Sequence[dict[str, Any]], need: str) -> bool:
    return any(is_filled(get_path(row, path)) for row in rows for path in need.split("|"))


def ours(path: Path, **options: Any) -> tuple[str, PairTable | None]:
    try:
        table = read_pairs(str(path), **options)
    except UserError as error:
        reason = re.search(r"By reason: (.*?)\.", str(error))
        return f"refused ({reason.group(1) if reason else str(error).split(':')[1].strip()})", None
    [how, *_] = table.reading_counts
    taken = re.match(r"layout (\S+)", how)
    left_out = "".join(f", {count} left out ({reason})" for reason, count in table.skipped.items())
    layout = f" by `{taken.group(1)}`" if taken and not options else ""
    return f"{table.frame.height} pairs{layout}{left_out}", table


def theirs(rows: Sequence[dict[str, Any]], table: PairTable | None) -> str:
    """What DPOTrainer trains on, compared with what mrpo reads: the same texts, other texts, or its error."""
    from trl.data_utils import extract_prompt, is_conversational

    read = []
    try:
        for row in rows:
            example = row if "prompt" in rows[0] else {**row, **extract_prompt(row)}
            prompt = example["prompt"]
            texts = [example["prompt"] + example[side] for side in ANSWERS]  # the text that it would render or encode
            if is_conversational(example) and not all(isinstance(text, list) for text in texts):
                return "trains on wrong text (a string is rendered as messages)"
            read.append((plain(prompt), *(plain(example[side]) for side in ANSWERS)))
    except KeyError as error:
        return f"stops: KeyError {error}"
    except (TypeError, AttributeError) as error:
        return f"stops: {type(error).__name__}: {one_line(error)}"
    if table is None:
        return f"{len(read)} pairs"
    expected = [
        (plain(parse_prompt(prompt)), *(plain(completion_messages(side)) for side in (chosen, rejected)))
        for prompt, chosen, rejected in table.frame.select("prompt", *ANSWERS).iter_rows()
    ]
    if read == expected:
        return f"{len(read)} pairs, the same"
    if "prompt" not in rows[0] and isinstance(rows[0]["chosen"], str):
        return f"{len(read)} pairs, the prompt being the first characters that both answers share"
    shorter = all(other[0] in mine[0] for mine, other in zip(expected, read, strict=False))
    return f"{len(read)} pairs, {'without a part of the prompt' if shorter else 'other texts'}"


def plain(value: Any) -> str:
    """The text of a string or of messages, without roles, and their calls."""
    if isinstance(value, str):
        return value
    return "\n\n".join(message["content"] + "".join(map(str, read_calls(message, ""))) for message in value)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:80].replace("|", "\\|")


if __name__ == "__main__":
    main()
