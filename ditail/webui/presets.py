"""The presets of the extension, and the user's, which are stored in a JSON file in the extension's folder.

Git ignores the file, so updates don't change it. Both tabs, the API and other processes share it, so it is read each
time and replaced as a whole.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from ..content.balance import KEYS
from ..content.presets import PRESETS
from ..content.settings import DitailSettings
from ..errors import DitailError, named
from .caches import ROOT

log = logging.getLogger("ditail")

FILE = ROOT / "ditail_presets.json"
CUSTOM = "Custom"
MAX_NAME = 60


def all_presets() -> dict[str, dict]:
    """The settings of each preset by name, the extension's first."""
    return {**PRESETS, **user_presets()}


def names() -> list[str]:
    return list(all_presets())


def user_presets(file: Path | None = None) -> dict[str, dict]:
    """The user's presets by name. Entries that can't be used are left out and logged."""
    file = file or FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.error("%s can't be read (%s)", file.name, error)
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {name: values for name, values in entries if name not in PRESETS and _is_sound(name, values)}


def _is_sound(name: str, values) -> bool:
    try:
        DitailSettings.from_dict(values)
    except DitailError as error:
        log.error("preset %s is left out: %s", named(name), error)
        return False
    return True


def save(name: str, values: Mapping) -> None:
    """Save the values of KEYS as a preset of the user. Raises DitailError for a name that can't be used."""
    name = _check_name(name)
    settings = DitailSettings.from_dict({key: values[key] for key in KEYS})
    _write({**user_presets(), name: {key: getattr(settings, key) for key in KEYS}})


def rename(old: str, new: str) -> None:
    """Rename one of the user's presets, replacing one that has the new name. Raises DitailError."""
    presets, new = _user_presets_with(old), _check_name(new)
    _write({new if name == old else name: values for name, values in presets.items() if name == old or name != new})


def delete(name: str) -> None:
    """Delete one of the user's presets. Raises DitailError."""
    presets = _user_presets_with(name)
    del presets[name]
    _write(presets)


def _user_presets_with(name: str) -> dict[str, dict]:
    """The user's presets. Raises DitailError unless `name` is one of them."""
    presets = user_presets()
    if name not in presets:
        raise DitailError("preset", f'"{named(name)}" is not one of your own, so it stays as it is')
    return presets


def _check_name(name: str) -> str:
    name = " ".join(str(name or "").split())
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise DitailError("preset", f"needs a name of 1 to {MAX_NAME} characters")
    if name in PRESETS or name == CUSTOM:
        raise DitailError("preset", f'"{name}" comes with the extension; choose another name')
    return name


def _write(presets: Mapping[str, Mapping]) -> None:
    part = FILE.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(presets, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, FILE)
