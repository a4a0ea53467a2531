"""Validation of list-valued settings: lists of objects, with errors that name the entry and its key."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from PIL import Image

from ..errors import DitailError, shown
from .images import decode_base64, read_image, read_mask
from .settings import BY_KEY

# (name for the error, value) -> the checked value; raises DitailError.
Check = Callable[[str, object], object]


def parse_objects(values, key: str, checks: Mapping[str, Check], limit: int) -> list[dict]:
    """The checked keys of each object of the list `values` of the setting `key`; None is an empty list.

    Raises DitailError with a key such as `sources[1].weight`.
    """
    values = [] if values is None else values
    if not isinstance(values, list | tuple):
        raise DitailError(key, f"must be a list of objects, got {type(values).__name__}")
    if len(values) > limit:
        raise DitailError(key, f"has {len(values)} entries, at most {limit} are possible")
    return [_parse_object(value, f"{key}[{i}]", checks) for i, value in enumerate(values)]


def _parse_object(value, name: str, checks: Mapping[str, Check]) -> dict:
    if not isinstance(value, Mapping):
        raise DitailError(name, f"must be an object, got {type(value).__name__}")
    for key in value:
        if key not in checks:
            raise DitailError(name, f"{shown(key)} is not one of its keys ({', '.join(checks)})")
    return {key: checks[key](f"{name}.{key}", item) for key, item in value.items()}


def check_setting(name: str, value):
    """`value` checked as the setting that `name` ends in."""
    return replace(BY_KEY[name.rpartition(".")[2]], key=name).check(value)


def check_image(name: str, value) -> Image.Image | None:
    """RGB image from a base64 text or a PIL image; None for null and ""."""
    return _read(name, value, read_image)


def check_mask(name: str, value) -> Image.Image | None:
    """Grayscale image from a base64 text or a PIL image; None for null and ""."""
    return _read(name, value, read_mask)


def _read(name: str, value, read: Callable[[bytes | Image.Image, str], Image.Image]) -> Image.Image | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str | Image.Image):
        raise DitailError(name, f"must be a base64 image or null, got {type(value).__name__}")
    return read(decode_base64(value, name) if isinstance(value, str) else value, name)


def check_fractions(name: str, value, count: int) -> tuple[float, ...]:
    """`count` numbers from 0 to 1."""
    numbers = value if isinstance(value, list | tuple) and len(value) == count else ()
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= 1 for n in numbers):
        raise DitailError(name, f"must be a list of {count} numbers from 0 to 1")
    return tuple(map(float, numbers))
