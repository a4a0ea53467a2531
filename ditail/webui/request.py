"""What one job asks for: the settings as the API or the tab sends them, checked as far as that needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from ..errors import DitailError
from ..images import decode_base64, read_mask, read_picture
from ..settings import FIELDS, SHARE, SOURCE_KEYS, WEIGHT, DitailSettings
from . import models

PICTURES = ("image", "mask")
# The settings with one control each in the tab, and the controls of the second source, in the tab's order.
TAB_FIELDS = tuple(field for field in FIELDS if not isinstance(field.default, tuple))
SECOND_SOURCE = ("on", "source", "image", "source_checkpoint", "weight", "begin", "end", "mask")
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
    further: tuple["Part", ...] = ()

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
            tuple(_part(entry, i, settings) for i, entry in enumerate(settings.sources)),
        )


def _part(entry: Mapping, number: int, first: DitailSettings) -> "Part":
    """A further source; what it doesn't say is as in the first one, but for its checkpoint and picture."""
    values, weight, steps = dict(entry), entry.get("weight", 1.0), entry.get("steps", [0.0, 1.0])
    try:
        own = {key: values.pop(key) for key in SOURCE_KEYS if key in values}
        if unknown := values.keys() - {"weight", "steps"}:
            raise DitailError(f"{min(map(str, unknown))}: is not a key of a source", "sources")
        if not isinstance(steps, list | tuple) or len(steps) != 2:
            raise DitailError(f"steps: must be two numbers, got {steps!r:.60}", "sources")
        begin, end = map(SHARE.check, steps)
        if begin >= end:
            raise DitailError(f"steps: the range must end after {begin:g}", "sources")
        inherited = {key: getattr(first, key) for key in ("resize_mode", "source_prompt", "source_negative_prompt",
                                                         "alpha", "beta")}
        request = Request.from_values({**inherited, **own, "enabled": True})
        return Part(request, WEIGHT.check(weight), request.mask, (begin, end))
    except DitailError as error:
        raise DitailError(f"sources[{number}].{error}", "sources") from error


@dataclass(frozen=True)
class Part:
    """A further source of a mix: what it is, its weight beside the first's 1, where and when it takes part."""

    request: Request
    weight: float
    mask: Image.Image | None
    steps: tuple[float, float]


def settings_from(args: Sequence) -> dict:
    """The script's arguments by key: one dict (API), or the controls' values in the order of FIELDS (tab)."""
    return dict(args[0]) if isinstance(args[0], dict) else _from_controls(args)


def is_enabled(args: Sequence) -> bool:
    """Whether a job's arguments switch Ditail on; arguments that make no sense do, so that the user hears of them."""
    first = args[0] if args else False
    return first.get("enabled", False) is not False if isinstance(first, dict) else first is not False


def _from_controls(args: Sequence) -> dict:
    values = {field.key: value for field, value in zip(TAB_FIELDS, args, strict=False)}
    values |= _lists_from_controls(args[len(TAB_FIELDS) :])
    for key, shown in SHOWN_FOR_EMPTY.items():
        if values.get(key) in (shown, None):
            values[key] = ""
    return values


def _lists_from_controls(args: Sequence) -> dict:
    """The controls that follow: those of a second source (see `ui.build`)."""
    second = dict(zip(SECOND_SOURCE, args, strict=False))
    begin, end = second.pop("begin", 0.0), second.pop("end", 1.0)
    if not second.pop("on", False):
        return {}
    if second["source_checkpoint"] in (SAME_CHECKPOINT, None):
        second["source_checkpoint"] = ""
    return {"sources": [{**second, "steps": [begin, end]}]}


def _read(picture, key: str, read) -> Image.Image | None:
    if not picture:
        return None
    return read(decode_base64(picture, key) if isinstance(picture, str) else picture, key)
