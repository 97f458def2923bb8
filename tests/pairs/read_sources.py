"""Script of test_hub_datasets, run in a separate process because `huggingface_hub` reads the Hub's address on import.

python read_sources.py  with a JSON list of options of `read_pairs` on standard input

Prints a JSON list: of each the ids of its pairs and what was reported, or the error; and the seconds that it took.
"""

import json
import logging
import sys
import time
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import read_pairs


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    kept = _Kept()
    logging.getLogger("mrpo").addHandler(kept)
    logging.getLogger("mrpo").setLevel(logging.INFO)
    answers: list[dict[str, Any]] = []
    for options in json.load(sys.stdin):
        kept.lines, begin = [], time.monotonic()
        answer: dict[str, Any] = {}
        try:
            frame = read_pairs(**options).frame
            answer = {"ids": frame["id"].to_list(), "files": frame["file"].unique().sort().to_list()}
        except UserError as error:
            answer = {"error": str(error)}
        answers.append({**answer, "reported": kept.lines, "seconds": time.monotonic() - begin})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
