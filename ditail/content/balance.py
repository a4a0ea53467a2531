"""The Balance slider: one number for many settings, from style (0) over balanced (0.5) to structure (1)."""

from collections.abc import Mapping

from .presets import PRESETS
from .settings import BY_KEY, FIELDS

# The presets that the slider passes through, by its position.
ANCHORS = {0.0: "Style", 0.5: "Balanced", 1.0: "Structure"}
STEP = 0.05
# The settings of a preset: how the content is transferred, not where it comes from.
KEYS = tuple(field.key for field in FIELDS if isinstance(field.default, float)
             or field.choices and field.key not in ("source", "resize_mode", "colours"))


def preset_values(preset: Mapping) -> dict:
    """The values of KEYS in a preset, with the defaults for those that it does not set."""
    return {key: BY_KEY[key].check(preset.get(key, BY_KEY[key].default)) for key in KEYS}


def at_balance(position: float) -> dict:
    """The settings at a position from 0 to 1: numbers interpolated between two presets, texts of the nearer one."""
    anchors = sorted(ANCHORS)
    low = max(anchor for anchor in anchors[:-1] if anchor <= max(position, 0.0))
    high = anchors[anchors.index(low) + 1]
    share = min(max((position - low) / (high - low), 0.0), 1.0)
    ends = [preset_values(PRESETS[ANCHORS[anchor]]) for anchor in (low, high)]
    return {key: _between(ends[0][key], ends[1][key], share) for key in KEYS}


def balance_of(values: Mapping) -> float | None:
    """The position that has these settings; None if no position has them."""
    steps = round(1 / STEP)
    return next((i / steps for i in range(steps + 1) if _is_same(at_balance(i / steps), values)), None)


def name_of(values: Mapping, presets: Mapping[str, Mapping]) -> str | None:
    """The name of the first preset that has these settings; None if none has."""
    return next((name for name, preset in presets.items() if _is_same(preset_values(preset), values)), None)


def _is_same(preset: Mapping, values: Mapping) -> bool:
    return all(values.get(key) == value for key, value in preset.items())


def _between(low, high, share: float):
    if isinstance(low, float):
        return round(low + (high - low) * share, 2)
    return low if share < 0.5 else high
