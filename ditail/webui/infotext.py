"""Ditail's settings in a picture's infotext, and from there back into the tab."""

import copy
import hashlib
import json
from collections.abc import Sequence

from modules import processing, sd_models
from PIL import Image

from ..settings import BY_KEY, FIELDS, Field
from .request import SHOWN_FOR_EMPTY, Part, Request

IMAGE_HASH = "Ditail image hash"
SOURCES = "Ditail sources"
PREFIX = "Ditail "
TITLE = "Ditail"
ONLY_FOR_AN_IMAGE = {"resize_mode"}


def infotext_of(request: Request, picture_hashes: Sequence[str]) -> dict:
    """The infotext's entries for a job; what is empty is left out.

    picture_hashes: of the content images that the pictures of a batch take in turn.
    """
    written = {}
    for field in FIELDS:
        value = getattr(request.settings, field.key)
        if field.infotext and value not in ("", ()) and (picture_hashes or field.key not in ONLY_FOR_AN_IMAGE):
            written[field.infotext] = f"{value:g}" if isinstance(value, float) else value
    if request.checkpoint is not None:
        written["Ditail source checkpoint"] = request.checkpoint.short_title
    if request.further:
        written[SOURCES] = json.dumps([_described(part) for part in request.further])
    if request.collage:
        written["Ditail collage"] = "; ".join(" ".join(f"{edge:g}" for edge in piece.box) for piece in request.collage)
    if len(picture_hashes) > 1:
        written[IMAGE_HASH] = lambda index, **_: picture_hashes[index % len(picture_hashes)]
    elif picture_hashes:
        written[IMAGE_HASH] = picture_hashes[0]
    return written


def _described(part: Part) -> dict:
    """A further source without its pictures, which infotext can't hold."""
    settings = part.request.settings
    said = {"source": settings.source, "weight": part.weight, "steps": list(part.steps), "mask": part.mask is not None}
    if part.request.image is not None:
        said["image hash"] = picture_hash(part.request.image)
    if part.request.checkpoint is not None:
        said["source_checkpoint"] = part.request.checkpoint.short_title
    return said


def picture_hash(image: Image.Image) -> str:
    """Ten hex digits that change with any pixel and with the size."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()[:10]


def source_infotext(p, checkpoint, prompts: tuple[str, str], image: int) -> str:
    """The infotext of a generated source's own picture: as if job `p` had made it with its model and prompts."""
    alone = copy.copy(p)
    alone.sd_model_name, alone.sd_model_hash = checkpoint.name_for_extra, checkpoint.shorthash
    alone.sd_vae_name = alone.sd_vae_hash = None
    alone.extra_generation_params = {}
    return processing.create_infotext(alone, [prompts[0]], [p.all_seeds[image]], [p.all_subseeds[image]], index=0,
                                      all_negative_prompts=[prompts[1]])


class PasteKey(str):
    """An infotext key that is also the function from parsed infotext to its control's value.

    The WebUI pastes through functions, but "Send to" finds the controls of two tabs by one name: this is both.
    """

    field: Field

    def __new__(cls, field: Field):
        key = super().__new__(cls, field.infotext or TITLE)
        key.field = field
        return key

    def __call__(self, params: dict):
        """None (unchanged) for a picture without Ditail; what such a picture does not name has its default."""
        field = self.field
        here = any(key.startswith(PREFIX) for key in params)
        if field.key == "enabled":
            return here
        if not here:
            return None
        value = params.get(field.infotext, field.default)
        if isinstance(field.default, float):
            return float(value)
        if isinstance(field.default, bool):
            return str(value) == "True"
        return _shown(field, value)


def second_source_of(name: str, params: dict):
    """The value of one of the second source's controls (`request.SECOND_SOURCE`) from parsed infotext."""
    if not any(key.startswith(PREFIX) for key in params):
        return None
    try:
        said = json.loads(params.get(SOURCES, "[]"))[:1]
        if name == "on":
            return bool(said)
        begin, end = said[0].get("steps", (0, 1)) if said else (0, 1)
        values = {"begin": begin, "end": end, "weight": 1.0, "source": "image", "source_checkpoint": "",
                  **(said[0] if said else {})}
        return _shown(BY_KEY[name], values[name]) if name == "source_checkpoint" else values[name]
    except (ValueError, TypeError, AttributeError, KeyError):
        return None  # written by hand


def _shown(field: Field, value: str) -> str:
    if field.key == "source_checkpoint" and value:
        info = sd_models.get_closet_checkpoint_match(value)
        return info.title if info else value
    return value or SHOWN_FOR_EMPTY.get(field.key, value)
