"""Colours: visible in light and dark, distinct for colour-blind readers, the same for a method in every plot."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from page_reader import Page

from mrpo_pipeline.report import palette

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(shade: str) -> np.ndarray:
    channels = np.array([int(shade[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    light, dark = sorted((float(linear(shade) @ [0.2126, 0.7152, 0.0722]) for shade in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(shade: str, blindness: str) -> np.ndarray:
    rgb = np.clip(np.asarray(BLINDNESS[blindness]) @ linear(shade), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("shade", ["light", "dark"])
def test_every_mark_and_text_has_enough_contrast(shade: str) -> None:
    paper = getattr(palette.PAPER, shade)
    for colour in (*palette.METHODS, *palette.REFERENCES):
        assert contrast(getattr(colour, shade), paper) >= 3, (colour.name, contrast(getattr(colour, shade), paper))
    for colour in (palette.INK, palette.MUTED, palette.MARK):
        assert contrast(getattr(colour, shade), paper) >= 4.5, colour.name


def test_the_page_s_words_can_be_read_on_what_is_behind_them(page: Page) -> None:
    found = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", page.all("style")[0].text)
    for shades in ({name: light for name, light, _ in found}, {name: dark for name, _, dark in found}):
        for kind in ("good", "bad", "warn", "calm"):
            assert contrast(shades[kind], shades[f"{kind}-soft"]) >= 4.5, kind
            assert contrast(shades["ink"], shades[f"{kind}-soft"]) >= 4.5
        for behind in ("paper", "soft", "page"):
            assert contrast(shades["muted"], shades[behind]) >= 4.5 and contrast(shades["link"], shades[behind]) >= 4.5


@pytest.mark.parametrize("shade", ["light", "dark"])
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_the_first_six_methods_differ_for_colour_blind_readers(shade: str, blindness: str) -> None:
    seen = {colour.name: lab(getattr(colour, shade), blindness) for colour in palette.METHODS[:6]}
    apart = {(a, b): float(np.linalg.norm(seen[a] - seen[b])) for a, b in itertools.combinations(seen, 2)}
    assert min(apart.values()) > 10, min(apart.items(), key=lambda item: item[1])


def test_sixty_methods_are_all_drawn_differently() -> None:
    styles = palette.styles([f"m{number}" for number in range(60)], palette.METHODS)
    assert len(set(styles.values())) == 60
    neighbours = list(styles.values())[:12]
    assert len({style.colour for style in neighbours}) == 12 and len({style.marker for style in neighbours}) == 12


def test_plots_in_the_page_follow_its_colours_and_plots_beside_it_have_their_own(page: Page, written: Path) -> None:
    shades = {colour.light for colour in palette.COLOURS}
    assert len(shades) == len(palette.COLOURS)
    plots = re.findall(r'<svg [^>]*class="plot".*?</svg>', page.source, re.DOTALL)
    assert len(plots) == len(page.all("svg")) > 0
    for plot in plots:
        assert not re.search(r"#[0-9a-fA-F]{6}\b", plot), re.search(r".{80}#[0-9a-fA-F]{6}\b", plot, re.DOTALL)
        assert "var(--" in plot and "<style" not in plot
    for path in (written / "plots").glob("*.svg"):
        drawn = path.read_text()
        assert "var(--" not in drawn and set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= shades, path.name


def test_a_method_has_one_colour_in_every_plot_and_table(page: Page) -> None:
    legend = {
        button.text: button.attributes["data-colour"]
        for button in page.all("button")
        if "data-colour" in button.attributes
    }
    assert legend["mrpo-sliding"] == "method-6" and legend["base"] == "reference-0"
    labels = re.findall(r"--own: var\(--([\w-]+)\)\"></i> ?([\w-]+)", page.source)
    assert labels and all(legend[name] == colour for colour, name in labels)
    for plot in re.findall(r'<svg [^>]*class="plot".*?</svg>', page.source, re.DOTALL):
        title = re.search(r'aria-label="([^"]*)"', plot)
        assert title is not None
        used = set(re.findall(r"var\(--((?:method|reference)-\d+)\)", plot))
        named = {
            colour for name, colour in legend.items() if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", title[1])
        }
        assert used and used <= named, title[1]
