"""Prepare conversations for encoding: render the prompt, locate the completion and its scored parts."""

from __future__ import annotations

from collections import OrderedDict

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.completion import completion_messages, completion_text, is_plain
from mrpo_pipeline.pairs.identity import Message, PromptSettings, parse_prompt, prompt_settings
from mrpo_pipeline.rendering.assistant_turns import EndTokens, layout_turns
from mrpo_pipeline.rendering.chat_template import ChatTemplate
from mrpo_pipeline.rendering.encoding_split import Job, PreparedPrompt
from mrpo_pipeline.rendering.end_of_turn import TurnEnd, find_calls_end
from mrpo_pipeline.rendering.escaped_tokenizer import EscapedTokenizer, EscapedTokenizers
from mrpo_pipeline.rendering.placeholders import mask_all
from mrpo_pipeline.rendering.prompt_rendering import EMPTY_SYSTEM, FROM_GENERATION_PROMPT, MERGED, prompt_frame
from mrpo_pipeline.rendering.structured_completion import write

_FRAMES_KEPT = 4096

# Notices for the reasons of a PromptFrame.
_REASONS = {
    MERGED: "does not support system messages (it {fault}): they are merged into the first user message.",
    EMPTY_SYSTEM: "gets no empty system message, because it would write an empty system turn.",
    FROM_GENERATION_PROMPT: "drops a message or reasoning when an answer follows: the prompt is taken from the generation prompt.",
}


class JobBuilder:
    """Prepares conversations of one model.

    Args:
        template: of the model.
        escaped_set: escaped copies of the tokenizer.
        end: end of a turn.
        stops: stop tokens of the model.
        notices: notices for the user are appended here, each once.
    """

    def __init__(
        self, template: ChatTemplate, escaped_set: EscapedTokenizers, end: TurnEnd, stops: list[str], notices: list[str]
    ) -> None:
        self._template, self._escaped, self._end, self._stops, self._notices = (
            template,
            escaped_set,
            end,
            stops,
            notices,
        )
        self._frames: OrderedDict[tuple[str, str], PreparedPrompt] = OrderedDict()
        self._unused: list[str] = []
        self._calls_end: str | None = None  # set on the first tool call; "" if there is none
        self._note_unused()

    def prompt(self, prompt: str, completion: str) -> PreparedPrompt:
        """Prepare a prompt, cached."""
        escaped = self._escaped.for_texts(prompt, completion)
        key = (prompt, escaped.break_char)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        made = self._make_prompt(escaped, prompt)
        self._frames[key] = made
        if len(self._frames) > _FRAMES_KEPT:
            self._frames.popitem(last=False)
        return made

    def _make_prompt(self, escaped: EscapedTokenizer, canonical: str) -> PreparedPrompt:
        prompt = parse_prompt(canonical)
        if isinstance(prompt, str):
            controls = self._escaped.holds_control(prompt)
            return PreparedPrompt(escaped, prompt, None, prompt, "", len(prompt), (True,), controls, self._template)
        settings = prompt_settings(canonical)
        structured = settings != PromptSettings() or any(len(m) > 2 for m in prompt)
        controls = any(self._escaped.holds_control(m["content"]) for m in prompt)
        if structured and self._escaped.holds_control(canonical):
            controls, messages = True, mask_all(prompt, escaped.mask)
            settings = PromptSettings(*mask_all(list(settings), escaped.mask))
        else:
            messages = [{**m, "content": self._masked(escaped, m["content"])} for m in prompt]
        template = self._template.with_settings(settings)
        self._note_unused()
        prompt, messages = (template.with_earlier_reasoning(one) for one in (prompt, messages))
        written = prompt_frame(template, messages)
        if controls:
            self._require_unescaped(escaped, written.read(written.frame.prefix))
        for reason in written.reasons:
            notice = f"{self._template.name} {_REASONS[reason].format(fault=self._template.system_fault)}"
            if notice not in self._notices:
                self._notices.append(notice)
        prefix, suffix = escaped.rename(written.read(written.frame.prefix)), escaped.rename(written.frame.suffix)
        prompt_end = self._written_from(template, escaped, written.messages, prefix)
        system = bool(prompt) and prompt[0]["role"] == "system"
        shape = (False, system, len(prompt) > 1 + system, bool(settings.tools), any(len(m) > 2 for m in prompt))
        return PreparedPrompt(escaped, prompt, written, prefix, suffix, prompt_end, shape, controls, template)

    def _note_unused(self) -> None:
        """Add a notice about arguments that the template does not read."""
        unused = [key for key in self._template.unused if key not in self._unused]
        if unused:
            self._unused += unused
            what = "this argument" if len(unused) == 1 else "these arguments"
            self._notices.append(f"{self._template.name} does not use {what}: {', '.join(unused)}.")

    def _require_unescaped(self, escaped: EscapedTokenizer, text: str) -> None:
        if escaped.mask_escaped(text):
            raise UserError(
                f"{self._template.name} escapes non-ASCII characters of tool calls or results, which is not supported for rows with "
                "control strings of the tokenizer there. Set another template for this model (`template:`, a Jinja file), or remove "
                "the row."
            )

    def _masked(self, escaped: EscapedTokenizer, content: str) -> str:
        return escaped.mask(content) if self._escaped.holds_control(content) else content

    def job(self, prompt_text: str, completion: str) -> Job:
        prompt = self.prompt(prompt_text, completion)
        if not is_plain(completion):
            return self._structured_job(prompt, completion)
        total = len(completion.encode())
        if prompt.written is None:
            controls = prompt.controls or self._escaped.holds_control(completion)
            return Job(prompt, prompt.prefix, completion, "", prompt.prompt_end, 0, total, controls)
        escaped, written = prompt.escaped, prompt.written
        masked = self._masked(escaped, completion)
        found = prompt.template.locate(written.messages, masked, written.frame)
        prefix, prompt_end = prompt.prefix, prompt.prompt_end
        if found.prefix != written.frame.prefix:
            prefix = escaped.rename(written.read(found.prefix))
            prompt_end = len(prefix)
        content = escaped.unmask(found.content) if masked is not completion else found.content
        lead = len(masked[: found.start].encode())
        controls = prompt.controls or masked is not completion
        return Job(prompt, prefix, content, prompt.suffix, prompt_end, lead, total, controls)

    def _structured_job(self, prompt: PreparedPrompt, completion: str) -> Job:
        """Job of a completion with reasoning, tool calls or several messages."""
        if prompt.written is None:
            raise UserError(
                "A completion with reasoning, tool calls or several messages needs a prompt of messages, but the prompt is raw text. "
                "Write it as messages, or set pairs.strings: messages."
            )
        messages = completion_messages(completion)
        holds = self._escaped.holds_control(completion)
        escaped, before = prompt.escaped, prompt.written.messages
        masked = mask_all(messages, escaped.mask) if holds else messages
        written = write(prompt.template, before, masked)
        if holds:
            self._require_unescaped(escaped, "".join(piece.text for piece in written.pieces))
        layout = layout_turns(
            written, completion, messages, len(before), escaped, self._ends_of(messages), prompt.template.name
        )
        start, end = layout.turns[0].start, layout.turns[-1].end
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

    def _ends_of(self, messages: list[Message]) -> EndTokens:
        turn = self._end
        if self._calls_end is None and any(message.get("tool_calls") for message in messages):
            ends = {*self._stops, *([turn.control] if turn.control else [])}
            self._calls_end = find_calls_end(self._template, self._escaped.for_texts(), ends) or ""
        return EndTokens(turn, self._calls_end or None, frozenset(self._stops))

    def _written_from(
        self, template: ChatTemplate, escaped: EscapedTokenizer, messages: list[Message], prefix: str
    ) -> int:
        """End of the prompt in the prefix: after the generation prompt if only spaces follow it.

        Llama-2's template writes a space between `[/INST]` and the answer. The model generates after `[/INST]`, and its
        first token includes the space. TRL splits there as well.
        """
        if not prefix.endswith(" "):
            return len(prefix)
        try:
            given = escaped.rename(template.generation_prompt(messages))
        except UserError:  # the template has no generation prompt
            return len(prefix)
        spaces_follow = prefix.startswith(given) and not prefix[len(given) :].strip(" ")
        return len(given) if spaces_follow else len(prefix)
