"""The names of the tab's controls, in the order in which the WebUI passes their values to the script.

`CONTROLS` lists the settings' controls, the second source's and the collage's. `ui.build` creates one control for each
name, `settings_from` reads the values by the same names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..content.settings import FIELDS
from ..errors import DitailError, shown
from .canvas import painted

IMAGES = ("image", "mask")
# The preset has a control, too, but only sets the values of the others.
TAB_FIELDS = tuple(field for field in FIELDS if not isinstance(field.default, tuple) and field.key != "preset")
SECOND_SOURCE = ("on", "source", "image", "source_checkpoint", "weight", "begin", "end", "mask")
COLLAGE_SLOTS = 3
COLLAGE_SLOT = ("image", "box", "mask")
# Hidden controls, see `Extras`.
EXTRAS = ("image_name", "missing", "task")
CONTROLS = (
    *(field.key for field in TAB_FIELDS), *(f"second_{name}" for name in SECOND_SOURCE),
    *(f"collage_{name}_{slot}" for slot in range(1, COLLAGE_SLOTS + 1) for name in COLLAGE_SLOT),
    "painted_mask", *EXTRAS,
)
KEYS_OF_IMAGES = {"second": "sources", "collage": "collage"}
SAME_SOURCE = ("The second source is the same as the first and is left out: choose an image, another checkpoint or "
               "another source for it.")
# The choices of the tab's dropdowns that stand for "".
SAME_CHECKPOINT = "Same as target"
AUTOMATIC_VAE = "Automatic"
SHOWN_FOR_EMPTY = {"source_checkpoint": SAME_CHECKPOINT, "source_vae": AUTOMATIC_VAE}


@dataclass(frozen=True)
class Extras:
    """Values of the tab that are not settings.

    image_name: the content image's file name. missing: (control, description) of each image of pasted settings that is
    neither kept nor chosen again. task: "preview", or "" for generating images. notes: sentences for the user.
    """

    image_name: str = ""
    missing: tuple[tuple[str, str], ...] = ()
    task: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def from_args(cls, args: Sequence) -> "Extras":
        # Beside the API's dict, the other arguments may be those of the request's `infotext`.
        if len(args) != len(CONTROLS) or isinstance(args[0], dict):
            return cls()
        values = dict(zip(CONTROLS, args, strict=True))
        return cls(str(values["image_name"] or ""), still_missing(str(values["missing"] or ""), values),
                   str(values["task"] or ""), (SAME_SOURCE,) if _is_same_source(values) else ())

    def check(self) -> None:
        """Raise DitailError if an image is missing."""
        for control, image in self.missing:
            raise DitailError(KEYS_OF_IMAGES.get(control.split("_")[0], control), missing_sentence(image))


def missing_sentence(image: str) -> str:
    return (f"the pasted settings were made with {image}, which is not kept here: "
            'choose it again, or press "Go on without"')


def missing_line(control: str, digest: str, name: str = "") -> str:
    """A line of the control `missing`: the image that is missing in `control`."""
    return f"{control}\t{name or 'an image'} (hash {digest})"


def still_missing(lines: str, values: Mapping) -> tuple[tuple[str, str], ...]:
    """(control, description) of the lines whose controls are still empty. values: by control."""
    parts = [line.partition("\t") for line in lines.splitlines()]
    return tuple((control, image) for control, _, image in parts if not values.get(control))


def settings_from(args: Sequence) -> dict:
    """The script's arguments as settings by key: one dict (API), or the values of `CONTROLS` (tab).

    Raises DitailError for the wrong number of values.
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
    """Whether a job's arguments switch Ditail on. Invalid arguments do, so that the user gets an error."""
    first = args[0] if args else False
    return first.get("enabled", False) is not False if isinstance(first, dict) else first is not False


def selected_script(p) -> str:
    """The title of the script that is selected in the Script dropdown, or named by the request; "" for none."""
    number = p.script_args[0] if p.scripts is not None and getattr(p, "script_args", None) else 0
    return p.scripts.selectable_scripts[number - 1].title() if number else ""


def _setting(key: str, value):
    return "" if key in SHOWN_FOR_EMPTY and value in (SHOWN_FOR_EMPTY[key], None) else value


def _second_source(values: Mapping) -> list[dict]:
    second = {name: _setting(name, values[f"second_{name}"]) for name in SECOND_SOURCE}
    is_on, begin, end = (second.pop(name) for name in ("on", "begin", "end"))
    return [{**second, "steps": [begin, end]}] if is_on and not _is_same_source(values) else []


def _is_same_source(values: Mapping) -> bool:
    """Whether a second source is switched on and does not differ from the first."""
    has_same_settings = all(_setting(key, values[f"second_{key}"]) == _setting(key, values[key])
                            for key in ("source", "source_checkpoint"))
    return values["second_on"] is True and has_same_settings and not values["second_image"]


def _collage(values: Mapping) -> list[dict]:
    slots = [{name: values[f"collage_{name}_{slot}"] for name in COLLAGE_SLOT} for slot in range(1, COLLAGE_SLOTS + 1)]
    return [{**slot, "box": _box(slot["box"])} for slot in slots if slot["image"] is not None]


def _box(text) -> list | None:
    """The numbers of a box in the tab's format, "0 0.1 0.5 0.8"; the check of `collage` refuses anything else."""
    if not isinstance(text, str | None):
        return [shown(text)]
    try:
        return [float(number) for number in (text or "").replace(",", " ").split()] or None
    except ValueError:
        return [text]
