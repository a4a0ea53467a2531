"""Presets: those that are shipped and the user's own, which one JSON file at the extension's root holds.

Updates leave the file alone, as git ignores it. Both tabs, the API and other processes share it, so it is read anew
whenever it has changed, and is replaced as a whole.
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
    """The presets by name, the shipped ones first."""
    return {**PRESETS, **own_presets()}


def names() -> list[str]:
    return list(all_presets())


def own_presets(file: Path | None = None) -> dict[str, dict]:
    """The user's presets. What can't be read of the file is left out, and logged."""
    file = file or FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.error("%s can't be read (%s)", file.name, error)
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: values for name, values in entries if name not in PRESETS and _is_sound(name, values)}


def _is_sound(name: str, values) -> bool:
    try:
        DitailSettings.from_dict(values)
    except DitailError as error:
        log.error("preset %s is left out: %s", named(name), error)
        return False
    return True


def save(name: str, values: Mapping) -> None:
    """Save settings as the user's preset of this name. Raises DitailError for a name that can't be used."""
    name = _check_name(name)
    settings = DitailSettings.from_dict({key: values[key] for key in KEYS})
    _write({**own_presets(), name: {key: getattr(settings, key) for key in KEYS}})


def rename(old: str, new: str) -> None:
    """Give one of the user's presets another name. Raises DitailError."""
    own, new = _own_with(old), _check_name(new)
    _write({new if name == old else name: values for name, values in own.items() if name == old or name != new})


def delete(name: str) -> None:
    """Delete one of the user's presets. Raises DitailError."""
    own = _own_with(name)
    del own[name]
    _write(own)


def _own_with(name: str) -> dict[str, dict]:
    own = own_presets()
    if name not in own:
        raise DitailError("preset", f'"{named(name)}" is not one of your own, so it stays as it is')
    return own


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
