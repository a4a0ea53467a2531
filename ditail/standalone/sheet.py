"""Labelled sheets of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GAP, LINE, TITLE = 8, 22, 30
INK, PAPER = (30, 30, 30), (255, 255, 255)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def contact_sheet(title: str, rows: Mapping[str, Mapping[str, Image.Image]], cell: int = 160) -> Image.Image:
    """A sheet with one line per row: the row's name, and below it its images with their labels."""
    columns = max(len(r) for r in rows.values())
    row_height = LINE + cell + GAP
    sheet = Image.new("RGB", (GAP + columns * (cell + GAP), TITLE + len(rows) * (LINE + row_height) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, _font(16))
    for i, (name, images) in enumerate(rows.items()):
        top = TITLE + i * (LINE + row_height)
        draw.text((GAP, top), name, INK, _font(15))
        for j, (label, image) in enumerate(images.items()):
            x = GAP + j * (cell + GAP)
            draw.text((x, top + LINE), label, INK, _font(13))
            sheet.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (x, top + 2 * LINE))
    return sheet


def grid_sheet(title: str, rows: Sequence[str], columns: Sequence[str], grid: Sequence[Sequence[Path]],
               longest: int = 256) -> Image.Image:
    """A grid of images of one size, one file after the other, with row and column titles.

    longest: the longer side of an image in pixels.
    """
    with Image.open(grid[0][0]) as image:
        width, height = image.size
    scale = min(1.0, longest / max(width, height))
    width, height = round(width * scale), round(height * scale)
    font = _font(14)
    left = GAP + max(int(font.getlength(r)) for r in rows) + GAP
    column = max([width, *(int(font.getlength(c)) for c in columns)])
    sheet = Image.new("RGB", (left + len(columns) * (column + GAP), TITLE + LINE + len(rows) * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, font)
    for j, name in enumerate(columns):
        draw.text((left + j * (column + GAP), TITLE), name, INK, font)
    for i, name in enumerate(rows):
        top = TITLE + LINE + i * (height + GAP)
        draw.text((GAP, top + height // 2 - 8), name, INK, font)
        for j in range(len(columns)):
            with Image.open(grid[i][j]) as image:
                sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS),
                            (left + j * (column + GAP), top))
    return sheet
