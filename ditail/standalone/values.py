"""The settings of a job by key, from a command's arguments and the file of `--settings`."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..content.images import read_image, read_mask
from ..content.settings import BY_KEY
from ..errors import DitailError

# Settings without an option of their name: images are files, and the commands set the source.
NOT_OPTIONS = ("image", "mask", "source", "source_checkpoint")


def values_of(args: Namespace) -> dict:
    """The settings of the options that are given, over those of `--settings`."""
    values = {**read_settings(args.settings), "enabled": True}
    values |= {key: value for key in BY_KEY if key not in NOT_OPTIONS
               and (value := getattr(args, key, None)) is not None}
    if args.mask:
        values["mask"] = read_mask(args.mask)
    return values


def read_settings(path: Path | None) -> dict:
    """A JSON file with settings as the API takes them; images and checkpoints may be paths relative to it.

    Raises DitailError naming the option.
    """
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DitailError("--settings", f"{path} can't be read as JSON ({error})") from error
    if not isinstance(values, Mapping):
        raise DitailError("--settings", f"{path} must hold one object")
    return {key: _read_entries(value, path.parent) if key in ("sources", "collage") else _read(key, value, path.parent)
            for key, value in values.items()}


def _read_entries(entries, folder: Path):
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return entries
    return [{key: _read(key, value, folder) for key, value in entry.items()} if isinstance(entry, Mapping) else entry
            for entry in entries]


def _read(key: str, value, folder: Path):
    """The image or checkpoint of a path; any other value is returned as it is, for the settings' check."""
    if not isinstance(value, str) or not _is_file(folder / value):
        return value
    if key == "source_checkpoint":
        return str((folder / value).absolute())
    if key not in ("image", "mask"):
        return value
    return (read_mask if key == "mask" else read_image)(folder / value, key)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an image as base64 is no path
        return False
