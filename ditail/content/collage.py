"""Collage: several images composed into one content image, and the mask of the area that they cover."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import DitailError
from .images import fit, image_to_tensor, tensor_to_images
from .lists import check_fractions, check_image, check_mask, check_setting, parse_objects

MAX_PIECES = 16
# Rounded fractions (thirds) may add up to a little over 1.
ROUNDING = 1e-6
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Part:
    """A part of an image of `size` (width, height): its left, top, right and bottom edge. All in pixels."""

    size: tuple[int, int]
    edges: tuple[int, int, int, int]


@dataclass(frozen=True)
class Piece:
    """One image of a collage.

    box: left, top, width and height as fractions of the whole. mask: white where the box is covered (grey blends), None
    for all of it. Image and mask are resized to the box by `resize_mode`.
    """

    image: Image.Image
    box: Box = (0.0, 0.0, 1.0, 1.0)
    mask: Image.Image | None = None
    resize_mode: str = "crop"


def parse_collage(values) -> tuple[Piece, ...]:
    """The pieces of a list of objects; empty for None. Raises DitailError naming the entry and its key."""
    pieces = []
    for i, keys in enumerate(parse_objects(values, "collage", CHECKS, MAX_PIECES)):
        keys = {key: value for key, value in keys.items() if value is not None}
        if "image" not in keys:
            raise DitailError(f"collage[{i}].image", "is missing")
        if not keys.keys() & {"box", "mask"}:
            raise DitailError(f"collage[{i}]", "needs a box or a mask")
        pieces.append(Piece(**keys))
    return tuple(pieces)


def compose(pieces: Sequence[Piece], width: int, height: int, background: Image.Image | None = None,
            part: Part | None = None) -> tuple[Image.Image, Image.Image]:
    """(RGB image of `width` x `height`, grayscale mask of the covered area); later pieces cover earlier ones.

    part: the part of the whole, of which boxes are fractions, that the image shows; None for all of it.
    With a `background` (scaled to cover) the mask is white. Without one, the background has the mean colour of the
    visible pieces: of all colours this has the least contrast to them, so it adds the faintest outlines, and it does
    not change the image's mean, which the last source latent keeps.
    Raises DitailError if there are no pieces or a mask leaves nothing of its piece.
    """
    if not pieces:
        raise DitailError("collage", "has no pieces")
    colours, cover = _layers(pieces, *(part.size if part else (width, height)))
    if part:
        left, top, right, bottom = part.edges
        colours, cover = (_resized(layer[..., top:bottom, left:right], (height, width)) for layer in (colours, cover))
    if background is None:
        under = colours.sum((2, 3), keepdim=True) / cover.sum()
        mask = tensor_to_images(cover.expand(-1, 3, -1, -1) * 2 - 1)[0].convert("L")
    else:
        under, mask = image_to_tensor(fit(background, width, height)), Image.new("L", (width, height), 255)
    return tensor_to_images(colours + (1 - cover) * under)[0], mask


def _layers(pieces: Sequence[Piece], width: int, height: int) -> tuple[Tensor, Tensor]:
    """(colours `[1, 3, h, w]` in -1..1, multiplied by how much of the background they cover; that, `[1, 1, h, w]`)."""
    colours, cover = torch.zeros(1, 3, height, width), torch.zeros(1, 1, height, width)
    for i, piece in enumerate(pieces):
        rows, columns = _span(piece.box[1], piece.box[3], height), _span(piece.box[0], piece.box[2], width)
        size = columns.stop - columns.start, rows.stop - rows.start
        alpha = _cover(piece.mask, size, piece.resize_mode)
        if not alpha.any():
            raise DitailError(f"collage[{i}].mask", f"leaves nothing of the piece at {size[0]}x{size[1]}")
        colour = image_to_tensor(fit(piece.image, *size, piece.resize_mode))
        colours[..., rows, columns] = alpha * colour + (1 - alpha) * colours[..., rows, columns]
        cover[..., rows, columns] = alpha + (1 - alpha) * cover[..., rows, columns]
    return colours, cover


def _resized(layer: Tensor, size: tuple[int, int]) -> Tensor:
    """A layer at a size of (height, width)."""
    return nn.functional.interpolate(layer, size, mode="bilinear", antialias=True)


def _cover(mask: Image.Image | None, size: tuple[int, int], resize_mode: str) -> Tensor:
    """The opacity `[1, 1, h, w]` in 0..1 of a piece of `size` (width, height)."""
    if mask is None:
        return torch.ones(1, 1, size[1], size[0])
    return (image_to_tensor(fit(mask, *size, resize_mode))[:, :1] + 1) / 2


def _span(start: float, length: float, side: int) -> slice:
    """The pixels that a box covers along one axis, at least one."""
    first = min(round(start * side), side - 1)
    return slice(first, min(max(round((start + length) * side), first + 1), side))


def _check_box(name: str, value) -> Box | None:
    if value is None:
        return None
    x, y, w, h = check_fractions(name, value, 4)
    if not w or not h or x + w > 1 + ROUNDING or y + h > 1 + ROUNDING:
        raise DitailError(name, f"[{x:g}, {y:g}, {w:g}, {h:g}] (left, top, width, height) is empty or reaches out of "
                          "the image")
    return x, y, w, h


CHECKS = {"image": check_image, "box": _check_box, "mask": check_mask, "resize_mode": check_setting}
