"""Templates are untrusted programs: endless loops and excessive memory are user errors."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_tokenizers import CHATML, qwen

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.rendering import Renderer, template_sandbox
from mrpo_pipeline.rendering.chat_template import ChatTemplate

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
WRITES = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
# Two tuples of two tuples of two …: a single C call compares 2^60 numbers.
COMPARES = (
    "{% set n = namespace(x=(1, 1), y=(1, 1)) %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}"
    "{% endfor %}{{ n.x == n.y }}"
)
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
        (COMPARES, "seconds"),
        (
            "{% set n = namespace(x=7) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
            "seconds|memory",
        ),
        ("{{ 7 ** 1000000000 }}", "seconds|memory"),
        ("{{ '%1000000000000d' % 1 }}", "seconds|memory|fails"),
        ("{{ ('x' * 100000000).replace('x', 'y' * 100) }}", "seconds|memory"),
        ("{{ [[0] * 1000] * 100000000 }}", "memory"),
        ("{{ range(99999) | map('string') | join('x' * 100000) }}", "memory"),
    ],
)
def test_endless_or_memory_hungry_templates_are_errors(
    hostile: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "SECONDS", 1.0)
    before = resource.getrlimit(resource.RLIMIT_AS)
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"tiny exceeds the limits.*({reason})"):
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
def test_a_template_cannot_access_anything_but_the_conversation(reach: str) -> None:
    assert written(reach) in ("", "refused"), "Jinja takes some of these for undefined, and writes nothing for them"


def written(reach: str) -> str:
    """Output of the template before the conversation."""
    try:
        made = ChatTemplate(qwen(reach + CHATML), "auto", "tiny")
    except UserError:
        return "refused"
    return made.frame([{"role": "user", "content": "hi"}]).prefix.split("<|im_start|>")[0]


ENDS_AFTER = (
    "{% for m in messages %}{% if m['content'] == 'slow' %}{% for i in range(99999) %}{% for j in range(99999) %}"
)
ENDS_AFTER += "{% endfor %}{% endfor %}{% endif %}{% endfor %}"
SLOW_EACH = "{% for i in range(99999) %}{% for j in range(4) %}{% endfor %}{% endfor %}"


def test_an_endless_template_is_not_tried_on_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.5)
    renderer = Renderer(qwen(ENDS_AFTER + CHATML), name="tiny")
    prompts = [
        json.dumps([{"role": "user", "content": content}]) for content in ("fast", "slow", "more", "slow", "last")
    ]
    began = time.monotonic()
    with pytest.raises(UserError, match="exceeds the limits"):
        renderer.render_each([(prompt, "answer") for prompt in prompts])
    with pytest.raises(UserError, match="exceeds the limits"):
        renderer.render([(prompts[0], "another answer")])
    assert time.monotonic() - began < 15


def test_total_time_of_a_slow_template_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "SECONDS", 1.0)
    template = ChatTemplate(qwen(SLOW_EACH + CHATML), "auto", "tiny")
    with pytest.raises(UserError, match="seconds per conversation"):
        [template.frame([{"role": "user", "content": str(number)}]) for number in range(10_000)]


def test_the_process_ends_with_the_template_and_is_replaced_if_killed() -> None:
    others = {*children()}  # of templates that other tests left
    template = ChatTemplate(qwen(CHATML), "auto", "tiny")
    ask = [{"role": "user", "content": "hi"}]
    before = template.frame(ask)
    [killed] = {*children()} - others
    os.kill(killed, signal.SIGKILL)
    assert template.frame(ask) == before
    [pid] = {*children()} - others - {killed}
    del template
    gc.collect()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("busy", [False, True])
def test_the_process_dies_with_a_killed_command(busy: bool) -> None:
    """Both while waiting and during an endless C call."""
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiny_tokenizers import CHATML, qwen
from mrpo_pipeline.rendering import Renderer, template_sandbox
from mrpo_pipeline.rendering.chat_template import ChatTemplate
template_sandbox.SECONDS = 1000.0
if not {busy}:
    template = ChatTemplate(qwen(CHATML), "auto", "tiny")
print("ready", flush=True)
if {busy}:
    ChatTemplate(qwen({COMPARES!r} + CHATML), "auto", "tiny")
time.sleep(1000)
"""
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert command.stdout is not None and command.stdout.readline() == b"ready\n"
        wait_for(lambda: children(command.pid))
        (pid,) = children(command.pid)
        if busy:
            wait_for(lambda: psutil.Process(pid).cpu_times().user > 0.3)
        command.kill()
        wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    finally:
        command.kill()
        command.communicate()


def children(pid: int | None = None) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
