"""The settings of a job by key, from a command's arguments and the file of `--settings`."""

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..content.images import decode_base64, read_image, read_mask
from ..content.settings import BY_KEY
from ..errors import DitailError

# Settings without an option of their name: images are files, and the commands set the source.
NOT_OPTIONS = ("image", "mask", "source", "source_checkpoint")
# Settings that are lists of objects.
ENTRIES = ("sources", "collage")
# Longer texts are taken for images.
MAX_PATH = 1000


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
    return {key: _read_entries(key, value, path.parent) if key in ENTRIES else _read(key, value, path.parent)
            for key, value in _read_json(path).items()}


def files_of(path: Path | None) -> list[Path]:
    """The files whose paths are in a file of settings. Raises DitailError naming the option if it can't be read."""
    if path is None:
        return []
    return [file for text in _texts(_read_json(path)) if _is_file(file := path.parent / text)]


def _texts(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _read_json(path: Path) -> Mapping:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DitailError("--settings", f"{path} can't be read as JSON ({error})") from error
    if not isinstance(values, Mapping):
        raise DitailError("--settings", f"{path} must hold one object")
    return values


def _read_entries(name: str, entries, folder: Path):
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        return entries
    return [{key: _read(f"{name}[{i}].{key}", value, folder) for key, value in entry.items()}
            if isinstance(entry, Mapping) else entry for i, entry in enumerate(entries)]


def _read(name: str, value, folder: Path):
    """The image or checkpoint of a path; any other value is returned as it is, for the settings' check.

    name: of the setting, for errors. Raises DitailError for an image that is neither a file nor base64.
    """
    key = name.rpartition(".")[2]
    if not isinstance(value, str) or not value or key not in ("image", "mask", "source_checkpoint"):
        return value
    path = folder / value
    if key == "source_checkpoint":
        return str(path.absolute()) if _is_file(path) else value
    if _is_file(path):
        return (read_mask if key == "mask" else read_image)(path, name)
    if len(value) < MAX_PATH and not _is_base64(value):
        raise DitailError(name, f"{path} does not exist")
    return value


def _is_base64(text: str) -> bool:
    try:
        decode_base64(text)
    except DitailError:
        return False
    return True


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an image as base64 is no path
        return False
