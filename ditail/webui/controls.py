"""The tab's controls by name, in the order in which the WebUI hands their values to the script.

The table is `CONTROLS`: the settings with a control of their own, the second source's and the collage's. `ui.build`
makes one control for each name, `settings_from` reads the values by the same names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..content.settings import FIELDS
from ..errors import DitailError, shown
from .canvas import painted

IMAGES = ("image", "mask")
# The preset is one of the tab's controls, too, but what counts are the values that it has put into the others.
TAB_FIELDS = tuple(field for field in FIELDS if not isinstance(field.default, tuple) and field.key != "preset")
SECOND_SOURCE = ("on", "source", "image", "source_checkpoint", "weight", "begin", "end", "mask")
COLLAGE_SLOTS = 3
COLLAGE_SLOT = ("image", "box", "mask")
# Hidden: the content image's file name, the images that pasted settings need, and what else than an image to make.
EXTRAS = ("image_name", "missing", "task")
CONTROLS = (
    *(field.key for field in TAB_FIELDS), *(f"second_{name}" for name in SECOND_SOURCE),
    *(f"collage_{name}_{slot}" for slot in range(1, COLLAGE_SLOTS + 1) for name in COLLAGE_SLOT),
    "painted_mask", *EXTRAS,
)
KEYS_OF_IMAGES = {"second": "sources", "collage": "collage"}
SAME_SOURCE = ("The second source is the same as the first and is left out: choose an image, another checkpoint or "
               "another source for it.")
# What the tab's dropdowns show for "".
SAME_CHECKPOINT = "Same as target"
AUTOMATIC_VAE = "Automatic"
SHOWN_FOR_EMPTY = {"source_checkpoint": SAME_CHECKPOINT, "source_vae": AUTOMATIC_VAE}


@dataclass(frozen=True)
class Extras:
    """What the tab says beside the settings.

    image_name: the content image's file name. missing: (control, image in words) of those that pasted settings need,
    and that are neither kept nor chosen again. task: "preview", or "" for an image. notes: sentences for the user.
    """

    image_name: str = ""
    missing: tuple[tuple[str, str], ...] = ()
    task: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def from_args(cls, args: Sequence) -> "Extras":
        if len(args) != len(CONTROLS):
            return cls()
        values = dict(zip(CONTROLS, args, strict=True))
        return cls(str(values["image_name"] or ""), still_missing(str(values["missing"] or ""), values),
                   str(values["task"] or ""), (SAME_SOURCE,) if _is_same_source(values) else ())

    def check(self) -> None:
        """Raise DitailError for an image that is missing."""
        for control, image in self.missing:
            raise DitailError(KEYS_OF_IMAGES.get(control.split("_")[0], control), missing_sentence(image))


def missing_sentence(image: str) -> str:
    return (f"the pasted settings were made with {image}, which is not kept here: "
            'choose it again, or press "Go on without"')


def missing_line(control: str, digest: str, name: str = "") -> str:
    """A line of the control `missing`: an image that belongs into the control of this name."""
    return f"{control}\t{name or 'an image'} (hash {digest})"


def still_missing(lines: str, values: Mapping) -> tuple[tuple[str, str], ...]:
    """(control, image in words) of the lines whose controls are empty. values: by control; a true one is filled."""
    parts = [line.partition("\t") for line in lines.splitlines()]
    return tuple((control, image) for control, _, image in parts if not values.get(control))


def settings_from(args: Sequence) -> dict:
    """The script's arguments as settings by key: one dict (API), or the values of `CONTROLS` (tab).

    Raises DitailError for values that are not as many as there are controls.
    """
    if isinstance(args[0], dict):
        return dict(args[0])
    if len(args) != len(CONTROLS):
        raise DitailError("args", f"must be one object of settings, or the {len(CONTROLS)} values of the tab's "
                          f"controls, got {len(args)} values")
    values = dict(zip(CONTROLS, args, strict=True))
    settings = {field.key: _setting(field.key, values[field.key]) for field in TAB_FIELDS}
    settings["mask"] = painted(values["painted_mask"]) or settings["mask"]
    return {**settings, "sources": _second_source(values), "collage": _collage(values)}


def is_enabled(args: Sequence) -> bool:
    """Whether a job's arguments switch Ditail on; arguments that make no sense do, so that the user hears of them."""
    first = args[0] if args else False
    return first.get("enabled", False) is not False if isinstance(first, dict) else first is not False


def _setting(key: str, value):
    return "" if key in SHOWN_FOR_EMPTY and value in (SHOWN_FOR_EMPTY[key], None) else value


def _second_source(values: Mapping) -> list[dict]:
    second = {name: _setting(name, values[f"second_{name}"]) for name in SECOND_SOURCE}
    is_on, begin, end = (second.pop(name) for name in ("on", "begin", "end"))
    return [{**second, "steps": [begin, end]}] if is_on and not _is_same_source(values) else []


def _is_same_source(values: Mapping) -> bool:
    """Whether a second source is switched on that differs from the first in nothing."""
    alike = all(_setting(key, values[f"second_{key}"]) == _setting(key, values[key])
                for key in ("source", "source_checkpoint"))
    return values["second_on"] is True and alike and not values["second_image"]


def _collage(values: Mapping) -> list[dict]:
    slots = [{name: values[f"collage_{name}_{slot}"] for name in COLLAGE_SLOT} for slot in range(1, COLLAGE_SLOTS + 1)]
    return [{**slot, "box": _box(slot["box"])} for slot in slots if slot["image"] is not None]


def _box(text) -> list | None:
    """The numbers of a box as the tab has it: "0 0.1 0.5 0.8"; what makes no sense is the check's to refuse."""
    if not isinstance(text, str | None):
        return [shown(text)]
    try:
        return [float(number) for number in (text or "").replace(",", " ").split()] or None
    except ValueError:
        return [text]
