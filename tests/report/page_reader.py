"""A strict HTML parser: the page's elements in order, with their nesting checked, and its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "area", "base", "col", "embed", "source", "track"}


@dataclass
class Element:
    """One element, its own text (not its children's) and its complete text."""

    tag: str
    attributes: dict[str, str | None]
    parents: list[str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """``elements`` in the order they open; ``faults``: nesting errors."""

    source: str
    elements: list[Element] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.source)
        self.close()
        self.faults += [f"<{element.tag}> is never closed" for element in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.faults.append(f"<{tag}> has an attribute twice")
        element = Element(tag, dict(attrs), [parent.tag for parent in self._open])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1].tag != tag:
            self.faults.append(f"</{tag}> inside <{self._open[-1].tag if self._open else 'nothing'}>")
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements of a tag with these attributes (``class_`` for one of the classes)."""
        found = [element for element in self.elements if element.tag == tag]
        for name, value in attributes.items():
            key = name.rstrip("_")
            found = [element for element in found if value in (element.attributes.get(key) or "").split()]
        return found

    @property
    def text(self) -> str:
        return next(element.text for element in self.elements if element.tag == "body")
