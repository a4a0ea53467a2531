"""What one job asks for: the settings as the API or the tab sends them, checked as far as that needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from ..images import decode_base64, read_mask, read_picture
from ..settings import FIELDS, DitailSettings
from . import models

PICTURES = ("image", "mask")
# What the tab's dropdowns show for "".
SAME_CHECKPOINT = "Same as target"
AUTOMATIC_VAE = "Automatic"
SHOWN_FOR_EMPTY = {"source_checkpoint": SAME_CHECKPOINT, "source_vae": AUTOMATIC_VAE}


@dataclass(frozen=True)
class Request:
    """Settings with their pictures read and their names looked up. checkpoint: None for the target itself."""

    settings: DitailSettings
    image: Image.Image | None
    mask: Image.Image | None
    checkpoint: object | None
    vae: str

    @classmethod
    def from_values(cls, values: Mapping) -> "Request":
        """Settings by key, pictures as base64 or PIL images. Raises DitailError naming the key that can't be used."""
        values = dict(values)
        pictures = {key: values.pop(key, None) for key in PICTURES}
        encoded = {key: p for key, p in pictures.items() if not isinstance(p, Image.Image)}
        settings = DitailSettings.from_dict({**values, **encoded})
        if not settings.enabled:
            return cls(settings, None, None, None, "")
        return cls(
            settings, _read(pictures["image"], "image", read_picture), _read(pictures["mask"], "mask", read_mask),
            models.find_checkpoint(settings.source_checkpoint), models.find_vae(settings.source_vae),
        )


def settings_from(args: Sequence) -> dict:
    """The script's arguments by key: one dict (API), or the controls' values in the order of FIELDS (tab)."""
    return dict(args[0]) if isinstance(args[0], dict) else _from_controls(args)


def is_enabled(args: Sequence) -> bool:
    """Whether a job's arguments switch Ditail on; arguments that make no sense do, so that the user hears of them."""
    first = args[0] if args else False
    return first.get("enabled", False) is not False if isinstance(first, dict) else first is not False


def _from_controls(args: Sequence) -> dict:
    values = {field.key: value for field, value in zip(FIELDS, args, strict=False)}
    for key, shown in SHOWN_FOR_EMPTY.items():
        if values.get(key) in (shown, None):
            values[key] = ""
    return values


def _read(picture, key: str, read) -> Image.Image | None:
    if not picture:
        return None
    return read(decode_base64(picture, key) if isinstance(picture, str) else picture, key)
