"""`mrpo recipes layouts` names every layout, and commands take and report one."""

from pathlib import Path

from mrpo_command import mrpo

from mrpo_pipeline.pairs.layouts import LAYOUTS


def test_layouts_are_listed(tmp_path: Path) -> None:
    listed = mrpo("recipes", "layouts", cwd=tmp_path)
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == ["auto", "as-is", *(layout.name for layout in LAYOUTS)]


def test_an_unknown_layout_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n', encoding="utf-8")
    done = mrpo(
        "plan", "--train-file", "pairs.jsonl", "--layout", "ship", "--model", ".", "--reference", "base=.", cwd=tmp_path
    )
    assert done.returncode == 2 and "did you mean 'shp'" in done.stderr
