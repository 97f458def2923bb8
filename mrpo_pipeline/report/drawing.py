"""How plots are drawn: one look for all, into the page and into files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.files.atomic import whole_file, write_whole
from mrpo_pipeline.report import palette
from mrpo_pipeline.report.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Plots are drawn this wide, in the units of their text: on a telephone they are shown about as large as drawn.
WIDTH = 360
TEXT = 11.5
SMALL = 10
_DPI = 72


@dataclass(frozen=True)
class Plot:
    """One plot: ``draw(alone)`` gives the figure; ``alone`` has the title and the legend that the page says itself.

    ``name`` is its file's name, ``title`` stands over it, ``says`` is read out in its place and ``note`` below it.
    """

    name: str
    title: str
    says: str
    draw: Callable[[bool], Figure]
    note: str = ""

    def inline(self) -> str:
        """The plot as an SVG element that follows the page's colours."""
        with _look(self.name):
            return inline_svg(_saved(self.draw(False)), self.name, f"{self.title}. {self.says}")

    def write(self, folder: Path) -> None:
        """``NAME.svg`` and ``NAME.png``, on white, with title and legend: for slides and papers."""
        with _look(self.name):
            figure = self.draw(True)
            drawn = _saved(figure, facecolor=palette.PAPER.light)
            write_whole(folder / f"{self.name}.svg", drawn)
            with whole_file(folder / f"{self.name}.png") as temporary:
                figure.savefig(
                    temporary,
                    format="png",
                    dpi=2.5 * _DPI,
                    facecolor=palette.PAPER.light,
                    metadata={"Software": None},
                )


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many units of text."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="none")


def plain_axes(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes with these margins, in units of text."""
    width, height = (side * _DPI for side in figure.get_size_inches())
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return axes


def title_over(figure: Figure, title: str) -> None:
    """The title of a plot that stands alone."""
    height = figure.get_size_inches()[1] * _DPI
    figure.text(0.02, 1 - 8 / height, title, ha="left", va="top", fontsize=12.5, fontweight="bold")


def width_of(text: str, size: float = TEXT) -> float:
    """How wide a text is in the plots' own font, which is wider than those that browsers take; units of text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width, _, _ = TextToPath().get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)


def fitted(text: str, width: float, size: float = TEXT) -> str:
    """The text, its middle left out until it is no wider than this."""
    from mrpo_pipeline.report.formatting import shorten

    length = len(text)
    shown = text
    while length > 4 and width_of(shown, size) > width:
        length -= 1
        shown = shorten(text, length)
    return shown


def _saved(figure: Figure, **options: Any) -> str:
    held = io.StringIO()
    with warnings.catch_warnings():
        # A script that the drawing font lacks is the browser's to show.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None}, **options)
    return held.getvalue()


@contextmanager
def _look(name: str) -> Iterator[None]:
    """The settings of every plot. Nothing of a user's own matplotlibrc, no time, no chance: the same bytes each time."""
    import matplotlib

    ink, muted = palette.INK.light, palette.MUTED.light
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "svg.id": None,
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": TEXT,
        "text.color": ink,
        "text.parse_math": False,
        "axes.labelcolor": muted,
        "axes.labelsize": SMALL,
        "axes.edgecolor": palette.AXIS.light,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.titlesize": TEXT,
        "axes.unicode_minus": True,
        "grid.color": palette.GRID.light,
        "grid.linewidth": 0.8,
        "xtick.color": palette.AXIS.light,
        "xtick.labelcolor": muted,
        "xtick.labelsize": SMALL,
        "ytick.color": palette.AXIS.light,
        "ytick.labelcolor": muted,
        "ytick.labelsize": SMALL,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "legend.fontsize": SMALL,
        "legend.frameon": False,
        "lines.solid_capstyle": "round",
        "lines.dash_capstyle": "butt",
        "lines.scale_dashes": True,
        "path.simplify": False,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield
