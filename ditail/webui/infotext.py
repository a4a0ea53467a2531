"""Ditail's settings in an image's infotext, and from there back into the tab."""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastapi import HTTPException
from modules import processing, sd_models

from ..content.further import WEIGHT
from ..content.infotext import SOURCES, has_settings, sources_from_infotext, to_infotext, value_from_infotext
from ..content.settings import BY_KEY, Field
from ..errors import DitailError
from ..job.plan import image_hash
from ..job.request import FurtherRequest, Request
from .controls import SHOWN_FOR_EMPTY
from .kept_images import COLLAGE, IMAGE_HASH, IMAGE_NAME, MASK_HASH, collage_text

TITLE = "Ditail"


def infotext_of(request: Request, image_hashes: Sequence[str], image_name: str = "") -> dict:
    """The infotext's entries for a job; what is empty is left out.

    image_hashes: of the content images that the images of a batch take in turn. image_name: their file's.
    """
    described = [_described(part) for part in request.further]
    written = to_infotext(request.settings, described, with_image=bool(image_hashes))
    written = {key: _protected(key, value) for key, value in written.items()}
    if request.checkpoint is not None:
        written["Ditail source checkpoint"] = request.checkpoint.handle.short_title
    if request.collage:
        written[COLLAGE] = collage_text(request)
    if request.mask is not None:
        written[MASK_HASH] = image_hash(request.mask)
    if image_name and request.image is not None:
        written[IMAGE_NAME] = _protected(IMAGE_NAME, image_name)
    if len(image_hashes) > 1:
        written[IMAGE_HASH] = lambda index, **_: image_hashes[index % len(image_hashes)]
    elif image_hashes:
        written[IMAGE_HASH] = image_hashes[0]
    return written


def _protected(key: str, value):
    """A text in quotation marks where the WebUI would write it without, and read it back as another.

    It sets a text in quotation marks only for a comma, a colon or a new line in it; it leaves out a text that is its
    own key, and takes off a text's own quotation marks and the spaces around it.
    """
    if not isinstance(value, str) or any(mark in value for mark in ",:\n"):
        return value
    if value != value.strip() or value.startswith('"') or value == key:
        return json.dumps(value, ensure_ascii=False)
    return value


def _described(part: FurtherRequest) -> dict:
    """A further source without its images, which infotext can't hold."""
    settings = part.request.settings
    entry = {"source": settings.source, "weight": part.weight, "steps": list(part.steps)}
    for name, image in (("image hash", part.request.image), ("mask hash", part.mask)):
        if image is not None:
            entry[name] = image_hash(image)
    if part.request.checkpoint is not None:
        entry["source_checkpoint"] = part.request.checkpoint.handle.short_title
    return entry


def source_infotext(p, checkpoint, prompts: tuple[str, str], image: int) -> str:
    """The infotext of a generated source's own image: as if job `p` had made it with its model and prompts."""
    alone = copy.copy(p)
    alone.sd_model_name, alone.sd_model_hash = checkpoint.name_for_extra, checkpoint.shorthash
    alone.sd_vae_name = alone.sd_vae_hash = None
    alone.extra_generation_params = {}
    return processing.create_infotext(alone, [prompts[0]], [p.all_seeds[image]], [p.all_subseeds[image]], index=0,
                                      all_negative_prompts=[prompts[1]])


def pasted_setting(field: Field, params: dict):
    """A setting's control value from parsed infotext.

    None (unchanged) for an image without Ditail; what such an image does not name has its default.
    """
    if field.key == "enabled":
        return has_settings(params)
    if not has_settings(params):
        return None
    with refusing(field.infotext or TITLE):
        return _shown(field, value_from_infotext(field, params))


def pasted_second_source(name: str, params: dict):
    """The value of one of the second source's controls (`controls.SECOND_SOURCE`) from parsed infotext."""
    if not has_settings(params):
        return None
    with refusing(SOURCES):
        sources = sources_from_infotext(params)[:1]
    if name == "on":
        return bool(sources)
    source = {"source": "image", "source_checkpoint": "", "weight": WEIGHT.default, "steps": (0.0, 1.0),
              **(sources[0] if sources else {})}
    begin, end = source["steps"]
    value = {**source, "begin": begin, "end": end}[name]
    return _shown(BY_KEY[name], value) if name == "source_checkpoint" else value


@contextmanager
def refusing(key: str) -> Iterator[None]:
    """Turn a DitailError about infotext's entry `key` into HTTP 422.

    The API hands that on as its answer. The tab, which pastes through the same functions, logs it and leaves the
    control as it is.
    """
    try:
        yield
    except DitailError as error:
        raise HTTPException(status_code=422, detail=f'{error} (infotext "{key}")') from error


def _shown(field: Field, value):
    if field.key == "source_checkpoint" and value:
        info = sd_models.get_closet_checkpoint_match(value)
        return info.title if info else value
    return SHOWN_FOR_EMPTY.get(field.key, value) if value == "" else value
