"""A template is a program from elsewhere: one that does not end, or wants all the memory, ends as the user's error."""

from __future__ import annotations

import resource
import time

import pytest
from tiny_tokenizers import CHATML, qwen

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering import template_limits
from mrpo_pipeline.rendering.templates import ChatTemplate

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
WRITES = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
DOUBLES = "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (LOOPS, "seconds"),
        (WRITES, "seconds|memory"),
        (DOUBLES, "seconds|memory"),
        ("{{ 'x' * 10000000000 }}", "memory"),
        ("{{ '%10000000000d' % 1 }}", "memory"),
        ("{{ 'x'.ljust(10000000000) }}", "memory"),
        ("{{ range(99999) | map('string') | join('x' * 100000) }}", "memory"),
    ],
)
def test_a_template_that_never_ends_or_fills_the_memory_is_refused(
    hostile: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 1.0)
    before = resource.getrlimit(resource.RLIMIT_AS)
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"tiny does not render a conversation within bounds.*({reason})"):
        ChatTemplate(qwen(hostile + CHATML), "auto", "tiny")
    assert time.monotonic() - began < 30, "it ends, however busy the machine"
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(
    "reach",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_reaches_nothing_but_the_conversation(reach: str) -> None:
    assert written(reach) in ("", "refused"), "Jinja takes some of these for undefined, and writes nothing for them"


def written(reach: str) -> str:
    """What the template writes before the conversation."""
    try:
        made = ChatTemplate(qwen(reach + CHATML), "auto", "tiny")
    except UserError:
        return "refused"
    return made.frame([{"role": "user", "content": "hi"}]).prefix.split("<|im_start|>")[0]


@template_limits.limited()
def endless() -> None:
    while True:
        pass


def test_what_comes_after_a_struck_template_is_not_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)
    for _ in range(3):
        with pytest.raises(template_limits.TemplateLimitError):
            endless()
        with template_limits.limited():
            held = bytearray(1 << 20)
        time.sleep(0.6)
        assert len(held) == 1 << 20
    big = bytearray(template_limits.BYTES + (1 << 20))
    assert len(big) > template_limits.BYTES
