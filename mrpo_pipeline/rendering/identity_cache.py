"""Identity of a model's renderer, without loading the renderer where an earlier process did (``renderer_cache``)."""

from __future__ import annotations

from functools import cached_property

from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.rendering.renderer import Renderer
from mrpo_pipeline.rendering.renderer_cache import find, key_of


class ModelReading:
    """The identity of a model's renderer (``Renderer.identity``), and the renderer itself, which is loaded at first use.

    Raises:
        UserError: see ``Renderer.from_pretrained``.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        key = key_of(source)
        known = find(key) if key else None
        self._identity = known.identity if known else self.renderer.identity()
        self.reading = known.reading if known else self.renderer.reading
        """``Renderer.reading``."""

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer.of(self.source)

    def identity(self) -> dict[str, str]:
        """See ``Renderer.identity``."""
        return dict(self._identity)
