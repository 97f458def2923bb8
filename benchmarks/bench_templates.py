"""The renderer against an independent oracle, over a folder of chat templates and a folder of tokenizers.

    python benchmarks/bench_templates.py TEMPLATES TOKENIZERS [--pairs FILE.jsonl] [--conversations 100] [--only TEXT] [--json OUT]

TEMPLATES contains Jinja files; TOKENIZERS one folder per tokenizer, with tokenizer.json and tokenizer_config.json (a template in the
latter is tried as well). A template is paired with the tokenizer that has most of its control tokens; missing ones are added, as
special tokens or (reasoning and tool tags) as plain added tokens, and the table gives their number.

The oracle uses transformers' apply_chat_template, `tokenizers.Tokenizer.from_file`, and the last occurrence of the content
in the text (for reasoning, tools and several messages see structured_oracle). Every
conversation is exact, explained by reasons listed in docs/rendering.md, refused with a reason, or wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import structured_oracle
from template_conversations import conversations, structured

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import dump_completion
from mrpo_pipeline.pairs.identity import PromptSettings, dump_prompt
from mrpo_pipeline.rendering import Rendered, Renderer
from mrpo_pipeline.rendering.own_rendering_comparison import RenderingMismatchError
from mrpo_pipeline.rendering.tokenizer import LoadedTokenizer

MARKS = re.compile(
    r"<[|｜][^<>\s'\"{}]+[|｜]>|\[/?[A-Z][A-Z_]+\]|\[gMASK\]|<sop>|</?s>|<[a-z]+_of_[a-z]+>|◁/?[a-z]+▷|<[a-z]+:[a-z_]+>|\[\|[a-z]+\|\]|</?(?:think|tool_call|tool_response)>"
)
TAGS = re.compile(r"</?(?:think|tool_call|tool_response)>")
DATE = datetime(2024, 7, 26)


@dataclass
class Outcome:
    """Conversations of one pairing by result."""

    template: str
    tokenizer: str
    added: int
    exact: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        reasons = ", ".join(f"{reason} {n}" for reason, n in (self.explained + self.refused).most_common(3))
        counts = f"{self.exact:5} {self.explained.total():9} {self.refused.total():7} {len(self.wrong):5}"
        return f"{self.template[:44]:44} {self.tokenizer[:12]:12} {self.added:3} {counts}  {reasons[:90]}"


class Oracle:
    """The text and ids of transformers and tokenizers, and the position of the content in them."""

    def __init__(self, tokenizer: Any, own: Any, template: str) -> None:
        self.tokenizer, self.own, self.template = tokenizer, own, template
        added = own.get_added_tokens_decoder()
        self.special = {token.content for token in added.values() if token.special and len(token.content) > 1}
        self.special_ids = {i for i, token in added.items() if token.special}
        # A processor's template only accepts content as a list of parts.
        self.in_parts = False
        with contextlib.suppress(Exception):  # it may refuse plain text
            plain, part = ([{"role": "user", "content": one}] for one in ("qZtext", _part("qZtext")))
            self.in_parts = "qZtext" in self.text(part) and "qZtext" not in self.text(plain)

    def text(self, messages: list[dict[str, Any]], *, ask: bool = False, **options: Any) -> str:
        if self.in_parts:
            messages = [{**one, "content": _part(one["content"])} for one in messages]
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=ask,
                strftime_now=DATE.strftime,
                **options,
            )
        )

    def judge(self, outcome: Outcome, prompt: list[dict[str, str]], answer: str, got: Rendered) -> None:
        """Sort one rendering into the outcome."""
        reasons: list[str] = []
        ours = [*got.prompt_ids.tolist(), *got.completion_ids.tolist()]
        texts = [message["content"] for message in prompt] + [answer]
        text, ids = self._plain(prompt, answer)
        if prompt[0] == {"role": "system", "content": ""} and not _starts(ids, ours):
            without = self._plain(prompt[1:], answer)
            if _starts(without[1], ours):
                text, ids = without
                reasons.append("empty system message left out")
        system = prompt[0]["content"].strip() if prompt[0]["role"] == "system" else ""
        read = self.own.decode(ours, skip_special_tokens=False)
        for message in prompt:  # in any case, all of the conversation must be read exactly once
            content = message["content"].strip()
            if message["role"] == "assistant":
                content = content.split("</think>")[-1].strip()
            if _squeezed(content, self.own) not in _squeezed(read, None):
                outcome.wrong.append(f"{message['role']} not read: {content[:50]!r} in {read[:200]!r}")
                return
        if system and (not text or text.count(system) < sum(t.count(system) for t in texts)):
            outcome.explained["system merged or as asked"] += 1
            return
        if any(mark in one for one in texts for mark in self.special):
            outcome.explained["control strings in the data"] += 1
            return
        bos = self.tokenizer.bos_token_id
        if ours[0] == bos and ids[:1] != [bos]:
            ours = ours[1:]
            reasons.append("BOS put first")
            if ours[:1] == [bos]:
                outcome.wrong.append(f"BOS twice: {self._tokens(ours[:6])}")
                return
        prompt_size = len(ours) - len(got.completion_ids)
        if ids[: len(ours)] != ours:
            if ids[: len(ours) - 1] == ours[:-1]:
                reasons.append("end of turn added")
            elif (
                _squeezed(self.own.decode(ids, skip_special_tokens=False), None).startswith(
                    _squeezed(self.own.decode(ours[:-1], skip_special_tokens=False), None)
                )
                and ids[: max(prompt_size - 2, 0)] == ours[: max(prompt_size - 2, 0)]
            ):
                reasons.append("token across an edge split")
            else:
                at = next((i for i, (a, b) in enumerate(zip(ours, ids, strict=False)) if a != b), len(ids))
                outcome.wrong.append(
                    f"token {at}: ours {self._tokens(ours[max(at - 3, 0) : at + 6])} plain {self._tokens(ids[max(at - 3, 0) : at + 6])}"
                )
                return
        # The content is scored, and the prompt contains none of it.
        scored = self.own.decode(got.completion_ids[:-1].tolist(), skip_special_tokens=False)
        if _squeezed(answer, self.own) not in _squeezed(scored, None):
            outcome.wrong.append(f"content not scored: {answer[:60]!r} as {scored[:80]!r}")
        elif len(scored) > len(answer) + 12:
            outcome.wrong.append(f"more than the content scored: {scored[:200]!r}")
        elif int(got.completion_ids[-1]) not in self.special_ids:
            outcome.wrong.append(f"ends with {self._tokens(got.completion_ids[-1:].tolist())}")
        elif reasons:
            outcome.explained.update([" + ".join(reasons)])
        else:
            outcome.exact += 1

    def _plain(self, prompt: list[dict[str, str]], answer: str) -> tuple[str, list[int]]:
        try:
            text = self.text([*prompt, {"role": "assistant", "content": answer}])
        except Exception:  # a template may refuse the conversation, for example its system message
            return "", []
        return text, list(self.own.encode(text, add_special_tokens=False).ids)

    def _tokens(self, ids: list[int]) -> list[str]:
        return [str(self.own.id_to_token(i)) for i in ids]


def _part(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _starts(ids: list[int], ours: list[int]) -> bool:
    """Whether the plain ids begin like ours, except for an added first token."""
    return ids[:8] in (ours[:8], ours[1:9])


def _squeezed(text: str, own: Any) -> str:
    """Without white space, and normalised as the tokenizer does."""
    if own is not None and own.normalizer is not None:
        text = own.normalizer.normalize_str(text)
    return "".join(text.replace("▁", " ").split())


def pairings(templates: Path, tokenizers: Path, only: list[str]) -> Iterator[tuple[str, str, Path]]:
    """(name, template, tokenizer folder)"""
    folders = sorted(path.parent for path in tokenizers.glob("*/tokenizer.json"))
    marks = {folder: _added(folder) for folder in folders}
    for path in sorted(templates.glob("*.jinja*")):
        text = path.read_text(encoding="utf-8", errors="replace")
        wanted = set(MARKS.findall(text))
        size = {
            folder: (len(wanted & marks[folder]), -(folder / "tokenizer.json").stat().st_size) for folder in folders
        }
        if any(one in path.name for one in only):
            yield path.stem, text, max(folders, key=lambda folder: size[folder])
    for folder in folders:
        text = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
        if isinstance(text, str) and any(one in folder.name for one in only):
            yield f"{folder.name} (its own)", text, folder


def _added(folder: Path) -> set[str]:
    with open(folder / "tokenizer.json", encoding="utf-8") as file:
        return {token["content"] for token in json.load(file)["added_tokens"]}


def load(folder: Path, template: str) -> tuple[Any, Any, int]:
    """The tokenizer as transformers loads it, that of the file, and the number of control tokens added to both."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    missing = sorted(set(MARKS.findall(template)) - known)
    for mark in missing:
        token = AddedToken(mark, special=not TAGS.fullmatch(mark), normalized=False)
        tokenizer.add_tokens([token], special_tokens=bool(token.special))
    # In the same order, so that ids are the same: first tokens that only the configuration names, then missing ones.
    own_known = {token.content for token in own.get_added_tokens_decoder().values()}
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        if token.content not in own_known:
            (own.add_special_tokens if token.special else own.add_tokens)([token])
    return tokenizer, own, len(missing)


def run(name: str, template: str, folder: Path, items: list[tuple[list[dict[str, str]], str]]) -> Outcome:
    """Judge all conversations with one pairing."""
    tokenizer, own, added = load(folder, template)
    tokenizer.chat_template = template
    outcome = Outcome(name, folder.name, added)
    began = time.monotonic()
    try:
        renderer = Renderer(tokenizer, name=name, loaded=LoadedTokenizer(tokenizer, own))
    except UserError as error:
        outcome.refused[_short(error)] += len(items)
        return outcome
    oracle = Oracle(tokenizer, own, template)
    for prompt, answer in items:
        try:
            [got] = renderer.render([(dump_prompt(prompt), answer)])
        except RenderingMismatchError as error:
            outcome.wrong.append(f"stopped: {error}")
        except UserError as error:
            outcome.refused[_short(error)] += 1
        else:
            oracle.judge(outcome, prompt, answer, got)
    for row in structured():
        settings = PromptSettings(row.get("tools"), row.get("template_kwargs"))
        try:
            [got] = renderer.render([(dump_prompt(row["prompt"], settings), dump_completion(row["completion"]))])
        except RenderingMismatchError as error:
            outcome.wrong.append(f"stopped: {error}")
        except UserError as error:
            outcome.refused[_short(error)] += 1
        else:
            result, why = structured_oracle.judge(oracle, row, got)
            if result == "exact":
                outcome.exact += 1
            elif result == "explained":
                outcome.explained[why] += 1
            else:
                outcome.wrong.append(
                    f"{json.dumps(row['completion'])[:120]} {row.keys() - {'prompt', 'completion'}}: {why}"
                )
    outcome.seconds = time.monotonic() - began
    return outcome


def _short(error: UserError) -> str:
    text = str(error)
    for part, reason in (
        ("fails on a conversation", "template fails: " + (re.findall(r"\(\w+: ([^)]{0,40})", text) or [""])[0]),
        ("changes the completion", "template rewrites the answer"),
        ("does not support", "does not support " + (re.findall(r"does not support ([a-z ]+)", text) or [""])[0]),
        (" changes ", "changes " + (re.findall(r" changes ([a-z, ]+) of", text) or ["an answer"])[0]),
        ("drops a message", "template drops a message"),
        ("times; expected once", "template does not write one answer"),
    ):
        if part in text:
            return reason
    return text[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("templates", type=Path)
    parser.add_argument("tokenizers", type=Path)
    parser.add_argument("--pairs", type=Path, help="messages to take conversations from (JSON lines)")
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=[""], help="templates with one of these in their name")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    options = parser.parse_args()
    items = conversations(options.pairs, options.conversations - len(structured()))
    print(f"{'template':44} {'tokenizer':12} add exact explained refused wrong  reasons")
    outcomes = []
    for name, template, folder in pairings(options.templates, options.tokenizers, options.only):
        outcomes.append(run(name, template, folder, items))
        print(outcomes[-1].line(), flush=True)
        for wrong in outcomes[-1].wrong[:3]:
            print("    WRONG", wrong[:1000])
    _summary(outcomes)
    if options.json:
        rows = [{**vars(one), "explained": dict(one.explained), "refused": dict(one.refused)} for one in outcomes]
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    sys.exit(any(one.wrong for one in outcomes))


def _summary(outcomes: list[Outcome]) -> None:
    explained: Counter[str] = sum((one.explained for one in outcomes), Counter())
    refused: Counter[str] = sum((one.refused for one in outcomes), Counter())
    wrong = sum(len(one.wrong) for one in outcomes)
    print(f"\n{len(outcomes)} pairings: exact {sum(one.exact for one in outcomes):,}; explained {explained.total():,}; "
          f"refused {refused.total():,}; wrong {wrong:,}")  # fmt: skip
    for title, counts in (("explained", explained), ("refused", refused)):
        for reason, count in counts.most_common(15):
            print(f"  {title}: {reason}: {count:,}")


if __name__ == "__main__":
    main()
