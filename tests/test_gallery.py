"""The pages whose images are made by the commands that they print, and what makes them."""

from pathlib import Path

import pytest
from PIL import Image

from ditail.errors import DitailError
from ditail.standalone import cli
from lab import gallery

PAGE = """
```sh
python -m ditail mix --source house-noto.safetensors --target house-ink.safetensors --image content/fox.png \\
    --prompt "a fox on cream" --steps 3 --out fox.png
```

<!-- content: content/fox.png | ink: fox.png -->
![A fox](images/fox.png)
"""


@pytest.mark.parametrize("page", gallery.PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_right_and_its_images_are_there(page):
    steps = list(gallery.recipes(page))
    commands = [cli.build_parser().parse_args(step) for step in steps if isinstance(step, list)]
    sheets = [step for step in steps if isinstance(step, gallery.Sheet)]
    assert len(commands) >= len(sheets) >= 5
    assert [sheet.path for sheet in sheets if not sheet.path.is_file()] == []
    assert page.read_text(encoding="utf-8").count("](gallery/") == len(sheets)


@pytest.mark.parametrize("page", gallery.PAGES, ids=lambda page: page.name)
def test_every_cell_of_a_sheet_is_content_or_what_a_command_writes(page):
    roots = {"content"}
    for step in gallery.recipes(page):
        if isinstance(step, gallery.Sheet):
            files = [name for row in step.rows for _, name in row]
            assert [name for name in files if not any(name.startswith(root) for root in roots)] == []
        elif isinstance(step, list):
            roots.add(str(cli.build_parser().parse_args(step).out.with_suffix("")))


def test_another_page(tmp_path, monkeypatch, capsys):
    """Its command runs in the working folder, and its sheet lies beside the page."""
    page, before = tmp_path / "docs" / "page.md", Path.cwd()
    page.parent.mkdir()
    page.write_text(PAGE)
    monkeypatch.setattr(gallery, "PAGES", (page,))
    gallery.main(tmp_path / "work")
    sheet = Image.open(page.parent / "images" / "fox.png")
    assert sheet.width > 2 * gallery.CELL and sheet.height > gallery.CELL
    assert Image.open(tmp_path / "work" / "fox.png").size == (128, 128)
    assert Path.cwd() == before and str(page.parent / "images" / "fox.png") in capsys.readouterr().out


def test_a_name_that_no_image_has_is_told(tmp_path):
    with pytest.raises(DitailError, match="--only: 'fos' is none of .*few-steps"):
        gallery.main(tmp_path / "work", ["styles", "fos"])
    assert not (tmp_path / "work").exists()


def test_only_the_images_that_are_named_are_made(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    other = PAGE.replace("fox.png", "cat.png").replace("content/cat.png", "content/missing.png")
    page.write_text(other + PAGE)
    monkeypatch.setattr(gallery, "PAGES", (page,))
    gallery.main(tmp_path / "work", ["fox"])
    assert [file.name for file in (tmp_path / "images").iterdir()] == ["fox.png"]
