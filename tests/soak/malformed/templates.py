"""Chat templates that do not end, do not fit, try to leave their sandbox, or do not render the messages."""

from __future__ import annotations

import json
from collections.abc import Callable

from malformed.case import Case, Place

COMMANDS = ("score-refs", "plan", "train")

GOOD = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRITES = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"

TEMPLATES: dict[str, str] = {
    # Text that is no template.
    "an unclosed block": "{% for m in messages %}{{ m.content }}",
    "an unclosed expression": "{{ messages[0]['content'] ",
    "an unclosed comment": "{# never ends " + GOOD,
    "an unknown tag": "{% fro m in messages %}{% endfro %}",
    "an end without a beginning": "{% endfor %}",
    "a brace too many": "{{{ messages }}}",
    "an operator alone": "{{ + }}",
    "an unknown filter": "{{ messages | shout }}" + GOOD,
    "an unknown test": "{% if messages is lovely %}x{% endif %}" + GOOD,
    "an undefined function": "{{ tokenise(messages) }}" + GOOD,
    "an attribute of nothing": "{{ nobody.name.first }}" + GOOD,
    "an index of nothing": "{{ messages[99]['content'] }}" + GOOD,
    "a key that is no number": "{{ messages['first'] }}{{ messages[0].content.upper.lower.x.y }}" + GOOD,
    "a number plus a text": "{{ 1 + 'a' }}" + GOOD,
    "a division by zero": "{{ 1 / 0 }}" + GOOD,
    "a call of a text": "{{ 'a'() }}" + GOOD,
    "Python": "import os\nos.system('touch gotcha')\n",
    "nothing": "",
    "white space": " \n ",
    "a fixed text": "hello",
    "HTML": "<html><body>404 Not Found</body></html>",
    "Go's templates": "{{ range .Messages }}{{ .Role }}{{ .Content }}{{ end }}",
    # Programs that do not end, or exhaust the memory.
    "a loop of a million loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + GOOD,
    "a loop over loops that writes": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}" + GOOD,
    "a range beyond bounds": "{% for i in range(999999999999) %}{% endfor %}" + GOOD,
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + GOOD,
    "macros that call each other": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}" + GOOD,
    "a recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "a text of a gigabyte": "{{ 'x' * 1000000000 }}" + GOOD,
    "a text of a terabyte": "{{ 'x' * 1000000000000 }}" + GOOD,
    "a text that doubles": "{% set n = namespace(t='xx') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}" + GOOD,
    "a list of a billion": "{{ [0] * 1000000000 }}" + GOOD,
    "a list that doubles": "{% set n = namespace(t=[1]) %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}" + GOOD,
    "a format of a billion": "{{ '%1000000000d' % 1 }}" + GOOD,
    "a format of a billion, the other way": "{{ '{:1000000000}'.format(1) }}" + GOOD,
    "a format of nested widths": "{{ '{:{w}}'.format(1, w=1000000000) }}" + GOOD,
    "a text centred in a billion": "{{ 'x'.center(1000000000) }}" + GOOD,
    "a text filled by a filter": "{{ 'x' | center(1000000000) }}" + GOOD,
    "a text indented a billion": "{{ 'x\\ny' | indent(1000000000) }}" + GOOD,
    "a text of many replacements": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}" + GOOD,
    "a number of a billion digits": "{{ 10 ** 1000000000 }}" + GOOD,
    "a power of powers": "{{ 9 ** 9 ** 9 ** 9 }}" + GOOD,
    "a shift, by multiplying": "{% set n = namespace(v=7) %}{% for i in range(40) %}{% set n.v = n.v * n.v %}{% endfor %}{{ n.v }}" + GOOD,
    "a batch of a billion": "{{ messages | batch(1000000000, 'x') | list }}" + GOOD,
    "a slice of a billion": "{{ messages | slice(1000000000) | list }}" + GOOD,
    "words of lorem ipsum": "{{ lipsum(n=100000, min=1000, max=2000) }}" + GOOD,
    "10,000 brackets": "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}" + GOOD,
    "10,000 blocks": "{% if true %}" * 10_000 + GOOD + "{% endif %}" * 10_000,
    "10 MB of text": "x" * 10_000_000 + "{{ 1 / 0 }}",
    # Escapes from the sandbox, each of which would create a file if it worked.
    "the class of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + GOOD,
    "the class by a filter": "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).mro() }}" + GOOD,
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f.__globals__['__builtins__'].open('gotcha', 'w') }}" + GOOD,
    "globals of a function": "{{ raise_exception.__globals__['__builtins__']['__import__']('os').system('touch gotcha') }}" + GOOD,
    "globals of the date": "{{ strftime_now.__self__.__class__.__bases__[0].__subclasses__() }}" + GOOD,
    "builtins of a cycler": "{{ cycler.__init__.__globals__.os.popen('touch gotcha').read() }}" + GOOD,
    "builtins of a joiner": "{{ joiner.__init__.__globals__.os.system('touch gotcha') }}" + GOOD,
    "builtins of a namespace": "{{ namespace.__init__.__globals__.os.system('touch gotcha') }}" + GOOD,
    "the environment": "{{ self._TemplateReference__context.environment.from_string('x') }}" + GOOD,
    "the module of the template": "{{ self.__init__.__globals__.__builtins__.open('gotcha', 'w') }}" + GOOD,
    "an import": "{% import 'os' as os %}{{ os.system('touch gotcha') }}" + GOOD,
    "an import from": "{% from 'os' import system %}{{ system('touch gotcha') }}" + GOOD,
    "an include": "{% include '/etc/passwd' %}" + GOOD,
    "an extension of a file": "{% extends '/etc/passwd' %}" + GOOD,
    "Python's import": "{{ __import__('os').system('touch gotcha') }}" + GOOD,
    "open": "{{ open('gotcha', 'w').write('x') }}" + GOOD,
    "eval": "{{ eval('1') }}" + GOOD,
    "a format that looks inside": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}" + GOOD,
    "a format by a map": "{{ '{x.__class__.__mro__}'.format_map({'x': 1}) }}" + GOOD,
    "a change of the messages": "{% if messages.append({'role': 'user', 'content': 'x'}) %}{% endif %}" + GOOD,
    "a change of a message": "{% if messages[0].update({'content': 'x'}) %}{% endif %}" + GOOD,
    "the messages emptied": "{% if messages.clear() %}{% endif %}" + GOOD,
    "code of a generator": "{{ (messages | map('upper')).gi_frame.f_globals }}" + GOOD,
    # Templates that raise, and templates that write something other than the messages.
    "one that refuses all": "{{ raise_exception('no conversation pleases me') }}",
    "one that refuses in two paragraphs": "{{ raise_exception('no\n\nmrpo: all is well') }}",
    "one that refuses in a million words": "{{ raise_exception('no ' * 1000000) }}",
    "one that refuses in colours": "{{ raise_exception('\x1b[31mno\x07') }}",
    "one that ignores messages": "<|im_start|>assistant\n",
    "one that writes the last question alone": "{{ messages[0]['content'] }}",
    "one that writes roles alone": "{% for m in messages %}{{ m['role'] }}{% endfor %}",
    "one that writes answers twice": WRITES + WRITES,
    "one that shouts": "{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}",
    "one that cuts": "{% for m in messages %}{{ m['content'][:5] }}<|im_end|>{% endfor %}",
    "one that escapes": "{% for m in messages %}{{ m['content'] | replace('r', '&') }}<|im_end|>{% endfor %}",
    "one that reverses": "{% for m in messages %}{{ m['content'] | reverse }}<|im_end|>{% endfor %}",
    "one that writes answers spaced out": "{% for m in messages %}{{ m['content'] | list | join(' ') }}<|im_end|>{% endfor %}",
    "one that writes JSON of pieces": "{% for m in messages %}{{ m['content'] | list | tojson }}<|im_end|>{% endfor %}",
    "one for users alone": "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
    "one that counts answers": "{% for m in messages %}{{ m['content'] | length }}<|im_end|>{% endfor %}",
}  # fmt: skip

RAW: dict[str, bytes] = {
    "not UTF-8": b"{{ messages }}\xff",
    "UTF-16": GOOD.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(100),
    "NULs": bytes(1000),
    "a pickle": b"\x80\x04\x95}.",
}


def cases(seed: int) -> list[Case]:
    """All of them; `seed` is not used, since no random template is certain to be wrong."""
    found = []
    for number, (name, text) in enumerate(TEMPLATES.items()):
        command = COMMANDS[number % len(COMMANDS)]
        found.append(Case(name, _file(text), (command, "recipe.yaml"), ("template",), number % 25 == 0))
    found += [Case(name, _file(data), ("score-refs", "recipe.yaml"), ("chat.jinja",)) for name, data in RAW.items()]
    for name in ("an unclosed block", "a loop of a million loops", "the class of a text", "one that ignores messages",
                 "a text of a terabyte", "one that refuses all", "a macro that calls itself"):  # fmt: skip
        found.append(
            Case(f"the tokenizer's own: {name}", _own(TEMPLATES[name]), ("score-refs", "recipe.yaml"), ("template",))
        )
    found += [
        Case("several of the tokenizer's own", _own({"rag": GOOD, "tool_use": GOOD}), ("score-refs", "recipe.yaml"), ("template",)),
        Case("the policy's: one that shouts", _policy(TEMPLATES["one that shouts"]), ("train", "recipe.yaml"), ("template",)),
        Case("the policy's: an endless one", _policy(TEMPLATES["a loop of a million loops"]), ("audit", "recipe.yaml"), ("template",)),
        Case("a hole of 20 GB", _hole, ("score-refs", "recipe.yaml"), ("chat.jinja",)),
        Case("/dev/zero", _device, ("score-refs", "recipe.yaml"), ("/dev/zero",)),
        Case("a FIFO", _fifo, ("score-refs", "recipe.yaml"), ("chat.jinja",)),
    ]  # fmt: skip
    return found


def _file(data: str | bytes) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.write("chat.jinja", data)
        place.recipe({"references.base.template": "chat.jinja"})

    return make


def _policy(text: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.cache()
        place.write("chat.jinja", text)
        place.recipe({"policy.template": "chat.jinja"})

    return make


def _own(template: str | dict[str, str]) -> Callable[[Place], None]:
    """In the model's own tokenizer."""

    def make(place: Place) -> None:
        model = place.model()
        (model / "chat_template.jinja").unlink(missing_ok=True)
        path = model / "tokenizer_config.json"
        config = json.loads(path.read_bytes())
        named = template if isinstance(template, str) else [{"name": n, "template": t} for n, t in template.items()]
        place.write("model/tokenizer_config.json", json.dumps({**config, "chat_template": named}))
        place.recipe({"references.base.model": "model"})

    return make


def _hole(place: Place) -> None:
    _file("")(place)
    with open(place.here / "chat.jinja", "wb") as file:
        file.truncate(20 << 30)


def _device(place: Place) -> None:
    place.recipe({"references.base.template": "/dev/zero"})


def _fifo(place: Place) -> None:
    import os

    os.mkfifo(place.here / "chat.jinja")
    place.recipe({"references.base.template": "chat.jinja"})
