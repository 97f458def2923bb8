"""One conversation at a time made ready to be encoded: its prompt, where the completion is, and what is to be scored."""

from __future__ import annotations

from collections import OrderedDict

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import completion_messages, completion_text, is_plain
from mrpo_pipeline.pairs.identity import Message, PromptSettings, parse_prompt, prompt_settings
from mrpo_pipeline.rendering.end_of_turn import TurnEnd, find_calls_end
from mrpo_pipeline.rendering.escaped_tokenizer import CloneSet, PrivateClone
from mrpo_pipeline.rendering.marked_texts import mask_all
from mrpo_pipeline.rendering.prompt_frame import AS_ASKED, EMPTY_SYSTEM, MERGED, prompt_frame
from mrpo_pipeline.rendering.split import Job, Prompt
from mrpo_pipeline.rendering.stretches import Ends, lay_out
from mrpo_pipeline.rendering.structured import write
from mrpo_pipeline.rendering.templates import ChatTemplate

_FRAMES_KEPT = 4096

# By the reasons of a PromptFrame, what a user is to know.
_REASONS = {
    MERGED: "takes no system message (it {fault}): system messages are merged into the first user message.",
    EMPTY_SYSTEM: "is given no empty system message: it would write what stands round one.",
    AS_ASKED: (
        "writes the prompt in another way once an answer follows, and leaves a message or reasoning out: it is read as the generation "
        "prompt has it."
    ),
}


class Jobs:
    """Makes conversations of one model ready.

    Args:
        template: the model's. clones: rename control strings. end: how a turn ends. stops: tokens that the model stops with.
        notices: what a user should know is added here, each line once.
    """

    def __init__(
        self, template: ChatTemplate, clones: CloneSet, end: TurnEnd, stops: list[str], notices: list[str]
    ) -> None:
        self._template, self._clones, self._end, self._stops, self._notices = template, clones, end, stops, notices
        self._frames: OrderedDict[tuple[str, str], Prompt] = OrderedDict()
        self._unused: list[str] = []
        self._calls_end: str | None = None  # found where data have tool calls; empty: there is none
        self._note_unused()

    def prompt(self, prompt: str, completion: str) -> Prompt:
        """The prompt made ready, from memory where it can be."""
        clone = self._clones.clone_for(prompt, completion)
        key = (prompt, clone.seam)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        made = self._make_prompt(clone, prompt)
        self._frames[key] = made
        if len(self._frames) > _FRAMES_KEPT:
            self._frames.popitem(last=False)
        return made

    def _make_prompt(self, clone: PrivateClone, canonical: str) -> Prompt:
        prompt = parse_prompt(canonical)
        if isinstance(prompt, str):
            controls = self._clones.holds_control(prompt)
            return Prompt(clone, prompt, None, prompt, "", len(prompt), (True,), controls, self._template)
        settings = prompt_settings(canonical)
        structured = settings != PromptSettings() or any(len(m) > 2 for m in prompt)
        controls = any(self._clones.holds_control(m["content"]) for m in prompt)
        if structured and self._clones.holds_control(canonical):
            controls, messages = True, mask_all(prompt, clone.mask)
            settings = PromptSettings(*mask_all(list(settings), clone.mask))
        else:
            messages = [{**m, "content": self._masked(clone, m["content"])} for m in prompt]
        template = self._template.given(settings)
        self._note_unused()
        prompt, messages = (template.with_earlier_reasoning(one) for one in (prompt, messages))
        written = prompt_frame(template, messages)
        if controls:
            self._require_unescaped(clone, written.read(written.frame.prefix))
        for reason in written.reasons:
            notice = f"{self._template.name} {_REASONS[reason].format(fault=self._template.system_fault)}"
            if notice not in self._notices:
                self._notices.append(notice)
        prefix, suffix = clone.rename(written.read(written.frame.prefix)), clone.rename(written.frame.suffix)
        seam = self._written_from(template, clone, written.messages, prefix)
        system = bool(prompt) and prompt[0]["role"] == "system"
        shape = (False, system, len(prompt) > 1 + system, bool(settings.tools), any(len(m) > 2 for m in prompt))
        return Prompt(clone, prompt, written, prefix, suffix, seam, shape, controls, template)

    def _note_unused(self) -> None:
        """Report, once, arguments that the template does not read."""
        unused = [key for key in self._template.unused if key not in self._unused]
        if unused:
            self._unused += unused
            what = "an argument" if len(unused) == 1 else "arguments"
            self._notices.append(f"{self._template.name} does not use {what} that it is given: {', '.join(unused)}.")

    def _require_unescaped(self, clone: PrivateClone, text: str) -> None:
        if clone.mask_escaped(text):
            raise UserError(
                f"{self._template.name} writes characters beyond ASCII of a tool call or a result as escapes, and the row holds one of the "
                "tokenizer's control strings there: expected one that writes them as they are. Give another template for this model "
                "(`template:`, a Jinja file), or take the row out."
            )

    def _masked(self, clone: PrivateClone, content: str) -> str:
        return clone.mask(content) if self._clones.holds_control(content) else content

    def job(self, prompt_text: str, completion: str) -> Job:
        prompt = self.prompt(prompt_text, completion)
        if not is_plain(completion):
            return self._structured_job(prompt, completion)
        total = len(completion.encode())
        if prompt.written is None:
            controls = prompt.controls or self._clones.holds_control(completion)
            return Job(prompt, prompt.prefix, completion, "", prompt.seam, 0, total, controls)
        clone, written = prompt.clone, prompt.written
        masked = self._masked(clone, completion)
        found = prompt.template.locate(written.messages, masked, written.frame)
        prefix, seam = prompt.prefix, prompt.seam
        if found.prefix != written.frame.prefix:
            prefix = clone.rename(written.read(found.prefix))
            seam = len(prefix)
        content = clone.unmask(found.content) if masked is not completion else found.content
        lead = len(masked[: found.start].encode())
        controls = prompt.controls or masked is not completion
        return Job(prompt, prefix, content, prompt.suffix, seam, lead, total, controls)

    def _structured_job(self, prompt: Prompt, completion: str) -> Job:
        """Of a completion with reasoning, tool calls or several messages."""
        if prompt.written is None:
            raise UserError(
                "A completion with reasoning, tool calls or several messages belongs to a prompt that is raw text: expected messages. "
                "Give the prompt as messages, or set pairs.strings: messages."
            )
        messages = completion_messages(completion)
        holds = self._clones.holds_control(completion)
        clone, before = prompt.clone, prompt.written.messages
        masked = mask_all(messages, clone.mask) if holds else messages
        written = write(prompt.template, before, masked)
        if holds:
            self._require_unescaped(clone, "".join(piece.text for piece in written.pieces))
        layout = lay_out(
            written, completion, messages, len(before), clone, self._ends_of(messages), prompt.template.name
        )
        start, end = layout.stretches[0].start, layout.stretches[-1].end
        return Job(
            prompt,
            layout.text[:start],
            layout.text[start:end],
            layout.text[end:],
            start,
            0,
            len(completion_text(completion).encode()),
            prompt.controls or holds,
            layout,
        )

    def _ends_of(self, messages: list[Message]) -> Ends:
        turn = self._end
        if self._calls_end is None and any(message.get("tool_calls") for message in messages):
            ends = {*self._stops, *([turn.control] if turn.control else [])}
            self._calls_end = find_calls_end(self._template, self._clones.clone_for(), ends) or ""
        return Ends(turn, self._calls_end or None, frozenset(self._stops))

    def _written_from(self, template: ChatTemplate, clone: PrivateClone, messages: list[Message], prefix: str) -> int:
        """Where in the prefix the prompt ends: behind the generation prompt if nothing but spaces follows it.

        Llama-2's template writes a space between `[/INST]` and the answer. The model is asked to go on after
        `[/INST]`, and what it writes first is the token of that space and its first word: TRL parts them there as well.
        """
        if not prefix.endswith(" "):
            return len(prefix)
        try:
            given = clone.rename(template.generation_prompt(messages))
        except UserError:  # a template may refuse to go on without an answer
            return len(prefix)
        spaces_follow = prefix.startswith(given) and not prefix[len(given) :].strip(" ")
        return len(given) if spaces_follow else len(prefix)
