"""A plot's SVG, as matplotlib writes it, made fit to stand inside an HTML page.

Colours become CSS variables, so that a plot follows light and dark; ids are made the plot's own, since two plots of a page
may not share one; what would reach beyond the plot (a style sheet, a document type, metadata) goes.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from mrpo_pipeline.report.palette import all_colours

_VARIABLES = {colour.light: f"var(--{colour.name})" for colour in all_colours()}
_HEX = re.compile(r"#[0-9a-fA-F]{6}\b")
_INNER = re.compile(r"url\(#([^)]+)\)")
_XLINK = "{http://www.w3.org/1999/xlink}href"
# A group that a plot names so becomes a class: the legend of the page finds it, in every plot alike.
SERIES = "series-"


def inline_svg(source: str, name: str, label: str) -> str:
    """The plot ``name`` as an SVG element for HTML; ``label`` is what a screen reader says of it.

    Text in the plot is escaped by the serialiser, so a method's name can hold no markup.
    """
    root = ElementTree.fromstring(source)
    _drop(root, {"metadata", "style", "title"})
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    used = _references(root)
    for element in root.iter():
        _rewrite(element, name, used)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": label}
    # One element a line at most would put spaces into text; as it is.
    return ElementTree.tostring(root, encoding="unicode").strip()


def _drop(root: ElementTree.Element, unwanted: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in unwanted:
                parent.remove(child)


def _references(root: ElementTree.Element) -> set[str]:
    used = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            used.update(_INNER.findall(value))
            if key == _XLINK and value.startswith("#"):
                used.add(value[1:])
    return used


def _rewrite(element: ElementTree.Element, name: str, used: set[str]) -> None:
    attributes: dict[str, str] = {}
    for key, value in element.attrib.items():
        if key == "id":
            if value.startswith(SERIES):
                attributes["class"] = value
            elif value in used:
                attributes["id"] = f"{name}-{value}"
        elif key == _XLINK:
            attributes["href"] = f"#{name}-{value[1:]}"
        elif key in ("style", "fill", "stroke", "clip-path"):
            inner = _INNER.sub(lambda found: f"url(#{name}-{found.group(1)})", value)
            attributes[key] = _HEX.sub(lambda found: _VARIABLES.get(found.group().lower(), found.group()), inner)
        else:
            attributes[key] = value
    # A colour as a presentation attribute can't be a CSS variable; in a style it can.
    moved = [
        f"{key}: {attributes.pop(key)}" for key in ("fill", "stroke") if attributes.get(key, "").startswith("var(")
    ]
    if moved:
        attributes["style"] = "; ".join([*moved, *([attributes["style"]] if attributes.get("style") else [])])
    element.attrib.clear()
    element.attrib.update(attributes)
