"""The tab's controls by name, in the order in which the WebUI hands their values to the script.

The table is `CONTROLS`: the settings with a control of their own, the second source's and the collage's. `ui.build`
makes one control for each name, `settings_from` reads the values by the same names.
"""

from collections.abc import Mapping, Sequence

from ..content.settings import FIELDS
from ..errors import DitailError, shown

IMAGES = ("image", "mask")
TAB_FIELDS = tuple(field for field in FIELDS if not isinstance(field.default, tuple))
SECOND_SOURCE = ("on", "source", "image", "source_checkpoint", "weight", "begin", "end", "mask")
COLLAGE_SLOTS = 3
COLLAGE_SLOT = ("image", "box", "mask")
CONTROLS = (
    *(field.key for field in TAB_FIELDS), *(f"second_{name}" for name in SECOND_SOURCE),
    *(f"collage_{name}_{slot}" for slot in range(1, COLLAGE_SLOTS + 1) for name in COLLAGE_SLOT),
)
# What the tab's dropdowns show for "".
SAME_CHECKPOINT = "Same as target"
AUTOMATIC_VAE = "Automatic"
SHOWN_FOR_EMPTY = {"source_checkpoint": SAME_CHECKPOINT, "source_vae": AUTOMATIC_VAE}


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
    return [{**second, "steps": [begin, end]}] if is_on else []


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
