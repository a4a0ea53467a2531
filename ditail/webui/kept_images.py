"""The content images and masks of jobs: kept by hash, and put into the tab again when infotext is pasted."""

import logging
import re
from collections.abc import Iterator, Mapping

import gradio as gr
from PIL import Image

from ..content.images import tensor_to_images
from ..content.infotext import described_sources, has_settings
from ..errors import DitailError
from ..job.plan import image_hash
from ..job.request import Request
from . import caches
from .controls import COLLAGE_SLOTS, missing_line

log = logging.getLogger("ditail")

IMAGE_HASH, IMAGE_NAME, MASK_HASH = "Ditail image hash", "Ditail image name", "Ditail mask hash"
COLLAGE = "Ditail collage"
GROUND = "ground"
# One image of a collage as `collage_text` writes it; earlier versions wrote only the box.
PIECE = re.compile(r"(?P<box>[\d.e+-]+(?: [\d.e+-]+){3}|ground)(?: image=(?P<image>\w+))?(?: mask=(?P<mask>\w+))?")


def collage_text(request: Request) -> str:
    """A collage for infotext: boxes and hashes, `0 0 0.5 1 image=... mask=...; ground image=...`."""
    pieces = [" ".join(f"{edge:g}" for edge in piece.box) + _hashes(piece.image, piece.mask)
              for piece in request.collage]
    return "; ".join([*pieces, GROUND + _hashes(request.image)] if request.image is not None else pieces)


def _hashes(image: Image.Image, mask: Image.Image | None = None) -> str:
    return f" image={image_hash(image)}" + (f" mask={image_hash(mask)}" if mask is not None else "")


def keep(request: Request, contents: Mapping) -> None:
    """Keep the images of a job. contents: content images `[1, 3, H, W]` by hash, if the request has none."""
    if not caches.IMAGES.budget:
        return
    further = [image for part in request.further for image in (part.request.image, part.mask)]
    pieces = [image for piece in request.collage for image in (piece.image, piece.mask)]
    try:
        for image in filter(None, (request.image, request.mask, *further, *pieces)):
            caches.IMAGES.put(image_hash(image), image)
        for digest, pixels in contents.items():
            caches.IMAGES.put(digest, tensor_to_images(pixels)[0])
    except OSError as error:
        log.warning("the content image is not kept: %s", error)


def required_images(params: Mapping) -> Iterator[tuple[str, str, str]]:
    """(control, hash, file name or description) of every image that parsed infotext refers to."""
    pieces = pieces_of(params)
    ground = [piece for piece in pieces if piece["box"] == GROUND]
    if ground:
        yield "image", ground[0]["image"], params.get(IMAGE_NAME, "")
    elif not pieces and IMAGE_HASH in params:
        yield "image", params[IMAGE_HASH], params.get(IMAGE_NAME, "")
    if MASK_HASH in params:
        yield "mask", params[MASK_HASH], "a mask"
    try:
        second = described_sources(params)[:1]
    except DitailError:
        second = []  # pasting the second source reports the error
    for name in ("image", "mask"):
        if second and f"{name} hash" in second[0]:
            yield f"second_{name}", second[0][f"{name} hash"], "an image of the second source"
    boxed = [piece for piece in pieces if piece["box"] != GROUND]
    for slot, piece in enumerate(boxed[:COLLAGE_SLOTS], 1):
        for name in ("image", "mask"):
            if piece[name]:
                yield f"collage_{name}_{slot}", piece[name], f"an image of the collage ({name} {slot})"


def pieces_of(params: Mapping) -> list[dict]:
    """The collage in parsed infotext: box (numbers as a text, or "ground"), image and mask (hashes or None)."""
    matches = (PIECE.fullmatch(part.strip()) for part in str(params.get(COLLAGE, "")).split(";"))
    return [match.groupdict() for match in matches if match]


def pasted_image(control: str, params: dict):
    """The update of an image's control: the kept image, or empty if there was none or it is not kept."""
    if not has_settings(params):
        return None
    digest = {name: digest for name, digest, _ in required_images(params)}.get(control)
    return gr.update(value=digest and _kept(str(digest)))


def pasted_box(slot: int, params: dict):
    """The box of one of the collage's slots."""
    if not has_settings(params):
        return None
    boxes = [piece["box"] for piece in pieces_of(params) if piece["box"] != GROUND]
    return boxes[slot - 1] if slot <= len(boxes) else ""


def pasted_missing(params: dict):
    """The value of the control `missing`: the images of the pasted settings that are not kept."""
    if not has_settings(params):
        return None
    lines = [missing_line(control, digest, name) for control, digest, name in required_images(params)
             if _kept(str(digest)) is None]
    return "\n".join(lines)


def pasted_name(params: dict):
    return params.get(IMAGE_NAME, "") if has_settings(params) else None


def _kept(digest: str) -> Image.Image | None:
    return caches.IMAGES.get(digest)
