"""Writing settings to an image's infotext and reading them back, on any host.

Images are not written. Values that are read are checked like any other input; DitailError names the key of a wrong one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from ..errors import DitailError, shown
from .further import CHECKS as SOURCE_CHECKS
from .further import MAX_SOURCES
from .lists import check_setting
from .settings import FIELDS, DitailSettings, Field

PREFIX = "Ditail "
SOURCES = "Ditail sources"
INFOTEXT_FIELDS = tuple(field for field in FIELDS if field.infotext)
# Characters that separate the parts of a text of sources, or make the WebUI quote it.
MARKS = re.compile(r'[%;|=,:"\\\x00-\x1f\x7f]')
AS_THE_FIRST = "as the first"
# The keys of a further source that are written to infotext; the others are images or depend on them.
SOURCE_KEYS = ("source", "source_checkpoint", "weight", "steps")


def to_infotext(settings: DitailSettings, sources: Sequence[Mapping] = (), *, with_image: bool = True) -> dict:
    """Infotext's entries for settings and the further `sources` (as `sources_from_infotext` gives them).

    with_image: whether there is a content image; its resize mode is left out otherwise. Empty texts are left out.
    """
    values = {field: getattr(settings, field.key) for field in INFOTEXT_FIELDS}
    entries = {field.infotext: _format(value) for field, value in values.items()
               if value != "" and (with_image or field.key != "resize_mode")}
    return {**entries, SOURCES: sources_text(sources)} if sources else entries


def sources_text(sources: Sequence[Mapping]) -> str:
    """Further sources as readable text: `source=image; weight=0.5; steps=0 to 0.5 | source=generate`.

    The WebUI would quote JSON, and any text with a comma or a colon. Such characters in a value are percent-encoded.
    """
    return " | ".join("; ".join(f"{key}={_format_part(value)}" for key, value in source.items()) or AS_THE_FIRST
                      for source in sources)


def _format_part(value) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(str(_format(float(number))) for number in value)
    return MARKS.sub(lambda mark: f"%{ord(mark[0]):02X}", str(_format(value)))


def from_infotext(params: Mapping[str, object]) -> dict:
    """The settings by key from infotext's entries; empty for an image without Ditail. Raises DitailError."""
    if not has_settings(params):
        return {}
    # The preset's name is left out, as it may be unknown here; all of its values are in infotext, too.
    return {"enabled": True, **{field.key: value_from_infotext(field, params) for field in INFOTEXT_FIELDS
                                if field.key != "preset"}}


def has_settings(params: Mapping[str, object]) -> bool:
    """Whether these are infotext's entries of an image made with Ditail."""
    return any(key.startswith(PREFIX) for key in params)


def value_from_infotext(field: Field, params: Mapping[str, object]):
    """One setting from infotext's entries of an image made with Ditail, or its default. Raises DitailError."""
    key = field.infotext or ""
    # Versions without the setting `source_latents` kept a generated source's latents.
    is_old = field.key == "source_latents" and params.get("Ditail source") == "generate"
    value = params.get(key, "kept" if is_old else field.default)
    if isinstance(field.default, bool):
        value = {"True": True, "False": False}.get(str(value), value)
    elif isinstance(field.default, float):
        value = _number(value)
    elif key not in params and f"{key}-1" in params:
        # The WebUI parses any text such as 512x768 as a size.
        value = f"{params[f'{key}-1']}x{params[f'{key}-2']}"
    return check_setting(field.key, value)


def sources_from_infotext(params: Mapping[str, Any]) -> list[dict]:
    """The further sources from infotext, by the keys of SOURCE_KEYS. Raises DitailError naming `sources`."""
    described = described_sources(params)
    if len(described) > MAX_SOURCES:
        raise DitailError("sources", f"has {len(described)} entries, at most {MAX_SOURCES} are possible")
    return [_source(source, f"sources[{i}]") for i, source in enumerate(described)]


def described_sources(params: Mapping[str, Any]) -> list[dict]:
    """All keys of the further sources from infotext, unchecked. Raises DitailError if the text can't be parsed."""
    text = params.get(SOURCES, "")
    if not isinstance(text, str):
        raise DitailError("sources", f"must be a text, got {shown(text)}")
    if not text.lstrip().startswith("["):
        return [_read_source(one, text) for one in text.split(" | ")] if text else []
    try:  # the format of earlier versions
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DitailError("sources", f"must be a list of objects in JSON, got {shown(text)}") from error
    if not isinstance(described, list) or not all(isinstance(source, dict) for source in described):
        raise DitailError("sources", f"must be a list of objects in JSON, got {shown(text)}")
    return described


def _read_source(one: str, text: str) -> dict:
    parts = [] if one == AS_THE_FIRST else one.split("; ")
    if not all("=" in part for part in parts):
        raise DitailError("sources", f"must be written as source=image; weight=1, got {shown(text)}")
    return dict(map(_read_part, parts))


def _read_part(part: str) -> tuple[str, Any]:
    key, _, value = part.partition("=")
    if key == "weight":
        return key, _number(value)
    if key == "steps":
        return key, [_number(number) for number in value.split(" to ")]
    return key, unquote(value)


def _source(described: dict, name: str) -> dict:
    # Keys of other versions are ignored.
    return {key: SOURCE_CHECKS[key](f"{name}.{key}", described[key]) for key in SOURCE_KEYS if key in described}


def _number(value):
    """A text as a number; any other text is returned unchanged, and the setting's check refuses it."""
    try:
        return float(value)
    except (ValueError, TypeError):
        return value


def _format(value):
    """A value for infotext: a float as the shortest text that gives it back exactly."""
    if not isinstance(value, float):
        return value
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
