"""Ditail's settings in a picture's infotext, and from there back into the tab."""

from modules import sd_models

from ..settings import FIELDS, Field
from .request import SHOWN_FOR_EMPTY, Request

IMAGE_HASH = "Ditail image hash"
PREFIX = "Ditail "
TITLE = "Ditail"


ONLY_FOR_AN_IMAGE = {"resize_mode"}


def infotext_of(request: Request, info, image_hash: str | None) -> dict:
    """The infotext's entries for a job; what is empty is left out. info: the source's CheckpointInfo."""
    written = {}
    for field in FIELDS:
        value = getattr(request.settings, field.key)
        if field.infotext and value != "" and not (image_hash is None and field.key in ONLY_FOR_AN_IMAGE):
            written[field.infotext] = f"{value:g}" if isinstance(value, float) else value
    if request.checkpoint is not None:
        written["Ditail source checkpoint"] = info.short_title
    return {**written, **({IMAGE_HASH: image_hash} if image_hash else {})}


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
        return _shown(field, value)


def _shown(field: Field, value: str) -> str:
    if field.key == "source_checkpoint" and value:
        info = sd_models.get_closet_checkpoint_match(value)
        return info.title if info else value
    return value or SHOWN_FOR_EMPTY.get(field.key, value)
