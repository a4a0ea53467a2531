"""The script's arguments as settings by key: one dict from the API, or the values of the tab's controls."""

from collections.abc import Sequence

from ..content.settings import FIELDS

PICTURES = ("image", "mask")
# The settings with one control each in the tab, and the controls of the second source, in the tab's order.
TAB_FIELDS = tuple(field for field in FIELDS if not isinstance(field.default, tuple))
COLLAGE_SLOTS = 3
COLLAGE_SLOT = ("image", "box", "mask")
SECOND_SOURCE = ("on", "source", "image", "source_checkpoint", "weight", "begin", "end", "mask")
# What the tab's dropdowns show for "".
SAME_CHECKPOINT = "Same as target"
AUTOMATIC_VAE = "Automatic"
SHOWN_FOR_EMPTY = {"source_checkpoint": SAME_CHECKPOINT, "source_vae": AUTOMATIC_VAE}


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
