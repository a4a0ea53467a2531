"""Generates the images of the documentation with the commands that are printed on the pages.

A page's recipe is a block of commands (```sh) and, below it, a comment and the image that it describes:

    <!-- content: content/fox.png | flat: fox-flat.png -->
    ![A fox in two styles](gallery/fox.png)

Each line of the comment is a row of the image, each `label: file` a cell of it. A block ```json NAME is written to that
file for the commands after it.
"""

import os
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ditail.errors import DitailError, shown
from ditail.standalone import cli, demo_checkpoints

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (DOCS / "gallery.md", DOCS / "tuning.md")
# Held-out scenes by the names in the pages' commands.
SCENES = {"fox": 44, "castle": 18, "mushroom": 34, "rabbit": 57, "teapot": 48, "pig": 114, "bear": 27, "car": 105,
          "house": 113, "star": 21}
RECIPE = re.compile(r"```sh\n(?P<commands>.*?)```|```json (?P<file>\S+)\n(?P<text>.*?)```|"
                    r"<!-- (?P<cells>[^>]*?) -->\n!\[[^\]]*\]\((?P<image>[^)]+)\)", re.DOTALL)
COMMAND = ["python", "-m", "ditail"]
CELL, GAP, LINE = 224, 8, 24


class File(NamedTuple):
    """A file for the commands that follow it."""

    name: str
    text: str


class Sheet(NamedTuple):
    """An image of a page. rows: (label, file in the working folder) of each cell."""

    path: Path
    rows: list[list[tuple[str, str]]]


def command(args: Namespace) -> None:
    """Run `python -m lab gallery`: the commands of every page, then write the pages' images."""
    main(args.out, args.only.split(",") if args.only else [])


def main(folder: Path, only: Sequence[str] = ()) -> None:
    """Make the pages' images. only: the names (without .png) of the images to make; empty: all.

    Raises DitailError for a name that no image has.
    """
    names = [step.path.stem for page in PAGES for step in recipes(page) if isinstance(step, Sheet)]
    for name in only:
        if name not in names:
            raise DitailError("--only", f"{shown(name)} is none of {', '.join(names)}")
    write_content(folder)
    steps = []
    for step in (step for page in PAGES for step in recipes(page)):
        if not isinstance(step, Sheet):
            steps.append(step)
            continue
        if not only or step.path.stem in only:
            make(steps, step, folder)
        steps = []


def make(steps: Sequence[list[str] | File], sheet: Sheet, folder: Path) -> None:
    """Run the commands and write the files that precede a sheet, then write the sheet."""
    for step in steps:
        if isinstance(step, File):
            (folder / step.name).write_text(step.text, encoding="utf-8")
        else:
            run(step, folder)
    sheet.path.parent.mkdir(exist_ok=True)
    draw_sheet(folder, sheet.rows).save(sheet.path, optimize=True)
    print(sheet.path)


def recipes(page: Path) -> Iterator[list[str] | File | Sheet]:
    """The commands of a page, as arguments of `python -m ditail`, its files and its sheets, in order."""
    for match in RECIPE.finditer(page.read_text(encoding="utf-8")):
        if match["file"]:
            yield File(match["file"], match["text"])
            continue
        if match["commands"] is None:
            rows = [[_cell(cell) for cell in line.split("|")] for line in match["cells"].strip().splitlines()]
            yield Sheet(page.parent / match["image"], rows)
            continue
        for line in match["commands"].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:len(COMMAND)] == COMMAND:
                yield words[len(COMMAND):]


def _cell(text: str) -> tuple[str, str]:
    label, _, path = text.rpartition(": ")
    return label.strip(), path.strip()


def write_content(folder: Path) -> None:
    """Write the demo checkpoints, and SCENES as content images with prompts: in the style noto to `content`, in the
    style ink to `content/ink`."""
    demo_checkpoints.write_checkpoints(folder)
    scenes = demo_checkpoints.held_out()
    for style, content in (("noto", folder / "content"), ("ink", folder / "content" / "ink")):
        content.mkdir(exist_ok=True)
        for name, number in SCENES.items():
            scenes.images[style][number].save(content / f"{name}.png")
            (content / f"{name}.txt").write_text(scenes.captions[number], encoding="utf-8")


def run(arguments: Sequence[str], folder: Path) -> None:
    """Run a command of `python -m ditail` in the working folder. Raises DitailError if it fails."""
    with working_in(folder):
        code = cli.main(arguments)
    if code:
        raise DitailError(None, f"gallery: {shlex.join([*COMMAND, *arguments])} ended with {code}")


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def draw_sheet(folder: Path, rows: Sequence[Sequence[tuple[str, str]]]) -> Image.Image:
    """Rows of images with their labels. An image that is alone keeps its size and has no label."""
    if [len(row) for row in rows] == [1]:
        return Image.open(folder / rows[0][0][1])
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), len(rows) * (LINE + CELL + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, row in enumerate(rows):
        top = GAP + i * (LINE + CELL + GAP)
        for j, (label, name) in enumerate(row):
            left = GAP + j * (CELL + GAP)
            draw.text((left, top), label, (30, 30, 30), font)
            image = Image.open(folder / name).convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(image, (left, top + LINE))
    return sheet
