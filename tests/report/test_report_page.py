"""The page is self-contained, shows the folder's contents, and no data is more than text."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from made_comparison import make_comparison
from page_reader import Page

from mrpo_pipeline.report import write_report

SMALL, TWO = ("dpo-base", "dpo-atlas", "mrpo"), ("base", "atlas")
OUTSIDE = re.compile(r"^\s*(?!data:|#)", re.ASCII)


def test_the_page_asks_nothing_of_any_network(page: Page) -> None:
    loads = {"src", "href", "srcset", "poster", "action", "formaction", "background", "cite", "ping", "xlink:href"}
    for element in page.elements:
        for name, value in element.attributes.items():
            if name in loads:
                assert not OUTSIDE.match(value or ""), (element.tag, name, value)
            assert "http:" not in (value or "") and "https:" not in (value or ""), (element.tag, name, value)
    for sheet in page.all("style"):
        assert "@import" not in sheet.text and "url(" not in sheet.text
    for tag in ("iframe", "object", "embed", "base", "form", "img", "image", "feimage", "audio", "video"):
        assert not page.all(tag)
    inner = re.findall(r"url\(([^)]*)\)", page.source)
    assert inner and all(target.startswith("#") for target in inner)


def test_the_content_security_policy_blocks_everything(page: Page) -> None:
    policy = next(meta.attributes["content"] for meta in page.all("meta") if meta.attributes.get("http-equiv"))
    assert policy is not None and "default-src 'none'" in policy
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_elements_nest_and_headings_go_down_one_level_at_a_time(page: Page) -> None:
    assert page.source.startswith("<!DOCTYPE html>")
    assert page.faults == []
    levels = [int(element.tag[1]) for element in page.elements if re.fullmatch(r"h[1-6]", element.tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_ids_are_unique_and_every_internal_link_has_a_target(page: Page) -> None:
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    targets = {
        value[1:] for element in page.elements if (value := element.attributes.get("href")) and value.startswith("#")
    }
    targets |= set(re.findall(r"url\(#([^)]*)\)", page.source))
    assert targets and targets <= set(ids)


def test_the_reader_meets_the_sections_in_order(page: Page) -> None:
    found = [section.attributes["id"] for section in page.all("section")]
    assert found == [
        "verdict", "setup", "audit", "results", "curves", "weights", "disagreements", "costs", "rerun", "glossary",
    ]  # fmt: skip
    assert [link.attributes["href"] for link in page.all("a") if "nav" in link.parents] == [
        f"#{name}" for name in found
    ]


def test_the_page_shows_what_the_folder_holds(page: Page, written: Path) -> None:
    document = json.loads((written / "comparison.json").read_text())
    assert page.all("h1")[0].text == document["verdict"]["sentence"]
    tables = {section.attributes["id"]: section.text for section in page.all("section")}
    for method in document["methods"]:
        mean = method["metrics"]["accuracy/policy"]["mean"]
        assert method["name"] in tables["results"] and f"{100 * mean:.1f}" in tables["results"]
    for two in document["comparisons"]:
        assert f"{abs(100 * two['difference']):.1f}" in tables["results"]
    assert (
        "1,000" in tables["setup"]
        and "identical after the cut: 3" in tables["setup"]
        and "models/atlas" in tables["setup"]
    )
    assert "It is a copy of another." in tables["audit"]
    assert "8 min 32 s" in tables["costs"] and "2 cores, 8 GiB" in tables["costs"]
    assert "mrpo compare runs/made/output/recipe.yaml" in tables["rerun"] and "template: auto" in tables["rerun"]


def test_every_plot_is_in_the_page_with_a_description_and_beside_it_as_files(page: Page, written: Path) -> None:
    drawn = page.all("svg", class_="plot")
    assert len(drawn) == 3 + 2 + 1 + 3 + 3 + 3
    for plot in drawn:
        assert plot.attributes["role"] == "img" and len(plot.attributes["aria-label"] or "") > 40
        assert "figure" in plot.parents
    files = {path.name for path in (written / "plots").iterdir()} - {"plots.json"}
    assert (
        len(files) == 2 * len(drawn)
        and {"methods-prefers-chosen.svg", "methods-prefers-chosen.png", "weights-1.svg"} <= files
    )


def test_text_of_the_data_is_never_markup(page: Page) -> None:
    assert len(page.all("script")) == 1
    assert not [name for element in page.elements for name in element.attributes if name.startswith("on")]
    shown = next(section.text for section in page.all("section") if section.attributes["id"] == "disagreements")
    assert "<img src=x onerror=alert(1)> {{ 7 * 7 }} {% raw %}" in shown
    assert "</details><script>alert('prompt')</script>" in shown
    assert "  two spaces\n\tand a tab" in shown


def test_control_characters_and_overrides_of_direction_are_shown_and_do_nothing(page: Page) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", page.source)
    shown = page.text
    assert "¦U+202E¦txt.exe¦U+2066¦" in shown and "␀␛[31m␇" in shown and "مرحبا" in shown
    assert all(text.attributes.get("dir") == "auto" for text in page.all("div", class_="text"))


def test_a_long_text_is_folded_and_complete(page: Page) -> None:
    folds = [element for element in page.all("details", class_="fold") if "A line of a long answer." in element.text]
    assert folds and all(element.text.count("A line of a long answer.") >= 400 for element in folds)
    assert "show all 10,400 characters" in folds[0].text


def test_the_same_folder_gives_the_same_bytes_at_any_location(tmp_path: Path) -> None:
    folder = make_comparison(
        tmp_path / "made", methods=SMALL, references=TWO, audited=True, stepwise=("mrpo",), steps=20
    )
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "there")
    write_report(folder)
    write_report(moved)
    found = sorted([folder / "report.html", *(folder / "plots").iterdir()])
    assert len(found) > 20
    for path in found:
        assert (moved / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_names_and_sentences_that_are_hostile_stay_text(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>$x^2$&amp;'
    methods = ("dpo", f"m{evil.replace('/', '-')}", "]]>--><svg onload=alert(1)>")
    folder = make_comparison(
        tmp_path / "made",
        methods=methods,
        references=("base", evil),
        seeds=(0,),
        sentence=evil,
        audited=True,
        stepwise=(methods[1],),
        steps=20,
    )
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(f"# </code></pre>{evil}\n{recipe}")
    page = Page(write_report(folder).read_text())
    assert page.faults == [] and len(page.all("script")) == 1
    assert not [name for element in page.elements for name in element.attributes if name.startswith("on")]
    assert page.all("h1")[0].text == evil
    assert f"# </code></pre>{evil}" in page.text
    labels = [text.text for text in page.all("text")]
    assert any(methods[2] in label for label in labels)


def test_one_method_and_one_seed_with_nothing_beside_them_are_reported_all_the_same(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "made", methods=("dpo",), references=("base",), seeds=(0,), stepwise=())
    for path in [
        *folder.glob("*.parquet"),
        *folder.glob("dpo/**/*.*"),
        *folder.glob("start/*"),
        folder / "recipe.yaml",
    ]:
        path.unlink()
    page = Page(write_report(folder).read_text())
    found = [section.attributes["id"] for section in page.all("section")]
    assert found == ["verdict", "setup", "results", "curves", "costs", "rerun", "glossary"]
    for name in ("audit.json", "held_out.parquet", "pairs.parquet", "recipe.yaml", "trainer_state.json"):
        assert name in page.text
    assert "With one seed" in page.text


def test_damaged_parts_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "made", methods=SMALL, references=TWO, audited=True, stepwise=("mrpo",))
    (folder / "held_out.parquet").write_bytes(b"no parquet")
    (folder / "audit.json").write_text("{")
    (folder / "mrpo" / "seed-1" / "trainer_state.json").write_text("[1")
    (folder / "mrpo" / "seed-0" / "weights.parquet").write_bytes(b"PAR1")
    (folder / "recipe.yaml").write_text("a: [")
    text = Page(write_report(folder).read_text()).text
    for name in (
        "held_out.parquet",
        "audit.json",
        "mrpo/seed-1/trainer_state.json",
        "mrpo/seed-0/weights.parquet",
        "recipe.yaml",
    ):
        assert f"{name} can't be read" in text


@pytest.mark.parametrize(
    "parts", [("methods", "verdict", "seeds"), ("comparisons", "metrics", "start"), ("costs", "pairs", "held_out")]
)
def test_a_document_that_lacks_parts_is_shown_without_them(tmp_path: Path, parts: tuple[str, ...]) -> None:
    folder = make_comparison(tmp_path / "made", methods=SMALL, references=TWO, seeds=(0, 1), steps=20, stepwise=())
    document = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(
        json.dumps({key: part for key, part in document.items() if key not in parts})
    )
    assert Page(write_report(folder).read_text()).faults == []


def test_figures_that_are_missing_are_a_dash(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "made", methods=SMALL, references=TWO, seeds=(0, 1), steps=20)
    document = json.loads((folder / "comparison.json").read_text())
    document["methods"][0]["metrics"]["accuracy/policy"] = {
        "mean": float("nan"),
        "low": None,
        "high": None,
        "per_seed": [None],
    }
    document["methods"][1]["metrics"] = {}
    document["methods"][2]["train_seconds"] = [None]
    document["comparisons"][0] |= {
        "difference": None,
        "low": None,
        "p": None,
        "p_corrected": None,
        "pairs_needed": None,
    }
    (folder / "comparison.json").write_text(json.dumps(document))
    page = Page(write_report(folder).read_text())
    assert page.faults == [] and "nan" not in page.text.lower()


def test_the_foot_has_date_versions_and_seeds(page: Page) -> None:
    foot = page.all("footer")[0].text
    for part in ("2026-11-22T14:00:00+00:00", "mrpo 0.1.0", "python 3.11.9", "torch 2.9.0", "seeds 0, 1, 2"):
        assert part in foot


def test_on_paper_nothing_is_closed_or_torn_apart_and_on_a_phone_tables_scroll(page: Page) -> None:
    sheet, script = page.all("style")[0].text, page.all("script")[0].text
    paper = sheet.split("@media print")[1]
    assert "details::details-content { content-visibility: visible" in paper and "details:not([open])" in script
    assert "break-inside: avoid" in paper and "orphans: 3; widows: 3" in paper
    assert page.all("table") and all(table.parents[-1] == "div" for table in page.all("table"))
    assert len(page.all("div", class_="scroll")) == len(page.all("table")) and "overflow-x: auto" in sheet


@pytest.mark.parametrize("column", ["step", "weight"])
def test_weights_of_another_kind_are_named_and_left_out(tmp_path: Path, column: str) -> None:
    folder = make_comparison(tmp_path / "made", methods=SMALL, references=TWO, seeds=(0,), steps=20, stepwise=("mrpo",))
    path = folder / "mrpo" / "seed-0" / "weights.parquet"
    pl.read_parquet(path).with_columns(pl.struct(a=pl.lit("x")).alias(column)).write_parquet(path)
    assert "mrpo/seed-0/weights.parquet can't be read" in Page(write_report(folder).read_text()).text


def test_a_recipe_whose_aliases_grow_without_bound_is_named_and_left_out(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "made", methods=SMALL, references=TWO, seeds=(0,), steps=20, stepwise=())
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    (folder / "recipe.yaml").write_text(f"{bomb}references: {{base: {{model: *a11}}}}\n")
    assert "recipe.yaml can't be read" in Page(write_report(folder).read_text()).text
