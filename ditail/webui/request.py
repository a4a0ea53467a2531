"""What one job asks for: the settings as the API or the tab sends them, checked as far as that needs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from ..content.collage import Piece, parse_collage
from ..content.further import FurtherSource, parse_sources
from ..content.lists import check_mask, check_picture
from ..content.settings import FIELDS, DitailSettings
from ..errors import DitailError
from . import models

PICTURES = ("image", "mask")
# The settings with one control each in the tab, and the controls of the second source, in the tab's order.
TAB_FIELDS = tuple(field for field in FIELDS if not isinstance(field.default, tuple))
COLLAGE_SLOTS = 3
COLLAGE_SLOT = ("image", "box", "mask")
SOURCE_KEYS = ("source", "source_checkpoint", "source_vae", "source_prompt", "source_negative_prompt")
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
    collage: tuple[Piece, ...] = ()

    @classmethod
    def from_values(cls, values: Mapping) -> "Request":
        """Settings by key, pictures as base64 or PIL images. Raises DitailError naming the key that can't be used."""
        values = dict(values)
        pictures = {key: values.pop(key, None) for key in PICTURES}
        encoded = {key: p for key, p in pictures.items() if not isinstance(p, Image.Image)}
        settings = DitailSettings.from_dict({**values, **encoded})
        if not settings.enabled:
            return cls(settings, None, None, None, "")
        collage = parse_collage(settings.collage)
        if collage and settings.source == "generate":
            raise DitailError('collage: makes a content image, so `source` must be "image"', "collage")
        further = tuple(_part(settings, source, i) for i, source in enumerate(parse_sources(settings.sources)))
        return cls(
            settings, check_picture("image", pictures["image"]), check_mask("mask", pictures["mask"]),
            models.find_checkpoint(settings.source_checkpoint), models.find_vae(settings.source_vae), further, collage,
        )


def _part(first: DitailSettings, source: FurtherSource, number: int) -> "Part":
    """A further source; what it has no key for is as in the first one."""
    settings = replace(first, **{key: getattr(source, key) for key in SOURCE_KEYS})
    try:
        request = Request(settings, source.image, source.mask, models.find_checkpoint(source.source_checkpoint),
                          models.find_vae(source.source_vae))
    except DitailError as error:
        raise DitailError(f"sources[{number}].{error}", "sources") from error
    return Part(request, source.weight, source.mask, source.steps)


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
    """The controls that follow: those of a second source and of the collage (see `ui.build`)."""
    second = dict(zip(SECOND_SOURCE, args, strict=False))
    begin, end = second.pop("begin", 0.0), second.pop("end", 1.0)
    on = second.pop("on", False)
    if second.get("source_checkpoint") in (SAME_CHECKPOINT, None):
        second["source_checkpoint"] = ""
    slots, width = args[len(SECOND_SOURCE) :], len(COLLAGE_SLOT)
    pieces = [dict(zip(COLLAGE_SLOT, slots[i : i + width], strict=True)) for i in range(0, len(slots), width)]
    pieces = [{**piece, "box": _box(piece["box"])} for piece in pieces if piece["image"] is not None]
    return {"sources": [{**second, "steps": [begin, end]}] if on else [], "collage": pieces}


def _box(text: str) -> list | None:
    """The numbers of a box as the tab has it: "0 0.1 0.5 0.8"; what makes no sense is the check's to refuse."""
    try:
        return [float(number) for number in (text or "").replace(",", " ").split()] or None
    except ValueError:
        return [text]
