"""Writing Ditail's settings to an image's infotext, and pasting them from there into the tab."""

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
    """The infotext's entries for a job; empty settings are left out.

    image_hashes: of the content images, which are assigned to a batch in turn. image_name: the file name of one.
    """
    described = [_described(part) for part in request.further]
    entries = to_infotext(request.settings, described, with_image=bool(image_hashes))
    entries = {key: _protected(key, value) for key, value in entries.items()}
    if request.checkpoint is not None:
        entries["Ditail source checkpoint"] = request.checkpoint.handle.short_title
    if request.collage:
        entries[COLLAGE] = collage_text(request)
    if request.mask is not None:
        entries[MASK_HASH] = image_hash(request.mask)
    if image_name and request.image is not None:
        entries[IMAGE_NAME] = _protected(IMAGE_NAME, image_name)
    if len(image_hashes) > 1:
        entries[IMAGE_HASH] = lambda index, **_: image_hashes[index % len(image_hashes)]
    elif image_hashes:
        entries[IMAGE_HASH] = image_hashes[0]
    return entries


def _protected(key: str, value):
    """A text, quoted if the WebUI would not quote it but read it back differently.

    The WebUI quotes a text only if it has a comma, a colon or a new line. It leaves out a text that equals its key, and
    strips quotation marks and spaces around a text.
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


def content_infotext(p, image: int) -> str:
    """The infotext of a content image: that of the job's image number `image` without its model, which did not make it.

    The WebUI's Save reads the seed out of every image's infotext. Pasted, it brings the job's settings and this image.
    """
    job = copy.copy(p)
    job.sd_model_name = job.sd_model_hash = job.sd_vae_name = job.sd_vae_hash = None
    text = processing.create_infotext(job, p.all_prompts, p.all_seeds, p.all_subseeds, index=image,
                                      all_negative_prompts=p.all_negative_prompts)
    return f"{text}, Ditail shows: content image"


def source_infotext(p, checkpoint, prompts: tuple[str, str], image: int) -> str:
    """The infotext of a generated source's image, as if job `p` had generated it with that model and these prompts."""
    job = copy.copy(p)
    job.sd_model_name, job.sd_model_hash = checkpoint.name_for_extra, checkpoint.shorthash
    job.sd_vae_name = job.sd_vae_hash = None
    job.extra_generation_params = {}
    return processing.create_infotext(job, [prompts[0]], [p.all_seeds[image]], [p.all_subseeds[image]], index=0,
                                      all_negative_prompts=[prompts[1]])


def pasted_setting(field: Field, params: dict):
    """A setting's control value from parsed infotext.

    None (the control is not changed) for an image without Ditail; a setting that infotext lacks has its default.
    """
    if field.key == "enabled":
        return has_settings(params)
    if not has_settings(params):
        return None
    with http_errors(field.infotext or TITLE):
        return _shown(field, value_from_infotext(field, params))


def pasted_second_source(name: str, params: dict):
    """The value of one of the second source's controls (`controls.SECOND_SOURCE`) from parsed infotext."""
    if not has_settings(params):
        return None
    with http_errors(SOURCES):
        sources = sources_from_infotext(params)[:1]
    if name == "on":
        return bool(sources)
    source = {"source": "image", "source_checkpoint": "", "weight": WEIGHT.default, "steps": (0.0, 1.0),
              **(sources[0] if sources else {})}
    begin, end = source["steps"]
    value = {**source, "begin": begin, "end": end}[name]
    return _shown(BY_KEY[name], value) if name == "source_checkpoint" else value


@contextmanager
def http_errors(key: str) -> Iterator[None]:
    """A context that turns a DitailError about infotext's entry `key` into HTTP 422.

    That is the API's answer. The tab, which pastes through the same functions, logs it and does not change the control.
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
