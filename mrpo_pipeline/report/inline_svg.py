"""Convert matplotlib's SVG for use inside an HTML page.

Colours become CSS variables for light and dark mode. Ids get the plot's name as a prefix, because ids of a page are unique.
The style sheet, which would apply to the whole page, and the metadata are removed.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from mrpo_pipeline.report.formatting import one_line
from mrpo_pipeline.report.palette import COLOURS

_VARIABLES = {colour.light: f"var(--{colour.name})" for colour in COLOURS}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_UNWANTED = ("metadata", "style", "title")


def inline_svg(source: str, name: str, label: str) -> str:
    """The plot ``name`` as an SVG element for HTML; ``label`` is its text for screen readers.

    The serializer escapes text and attributes, so a method's name can't inject markup.
    """
    root = ElementTree.fromstring(source)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.rpartition("}")[2] in _UNWANTED]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({key: _own(key, value, name) for key, value in attributes.items()})
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": one_line(label)}
    return ElementTree.tostring(root, encoding="unicode").strip()


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value[1:]}"
    value = value.replace("url(#", f"url(#{name}-")
    return _COLOUR.sub(lambda found: _VARIABLES.get(found.group(), found.group()), value)
