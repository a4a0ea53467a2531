"""Presets: named values of several settings, chosen by the evaluation (docs/evaluation.md)."""

from collections.abc import Mapping

from ..errors import DitailError, named, shown

PRESETS: Mapping[str, Mapping[str, float | str]] = {
    "Paper": {},
    "Balanced": {"inversion_steps": 0.5, "alpha": 1.0, "attn_ratio": 0.3, "conv_ratio": 0.3, "inject": "cond",
                 "guidance_until": 0.6, "contours": 0.5, "tone": 1.0},
    "Structure": {"inversion_steps": 0.5, "alpha": 1.0, "attn_ratio": 0.5, "conv_ratio": 0.5, "inject": "cond",
                  "guidance_until": 0.6, "contours": 0.7, "tone": 1.0},
    "Style": {"inversion_steps": 0.5, "alpha": 1.0, "attn_ratio": 0.3, "conv_ratio": 0.3, "guidance_until": 0.8,
              "contours": 0.1, "tone": 1.0},
    "Draft": {"inversion_steps": 0.25, "alpha": 1.0, "attn_ratio": 0.2, "conv_ratio": 0.2, "inject": "cond",
              "guidance_until": 0.5, "contours": 0.4},
}
# The default of the tab and the demo. A request without a preset has the paper's values.
DEFAULT_PRESET = "Balanced"


def preset_of(name, presets: Mapping[str, Mapping] = PRESETS) -> Mapping:
    """The settings of a preset by key; empty for "". Raises DitailError for an unknown name."""
    if not isinstance(name, str):
        raise DitailError("preset", f"must be a text, got {shown(name)}")
    if name and name not in presets:
        raise DitailError("preset", f'"{named(name)}" is none of {", ".join(presets)}')
    return presets[name] if name else {}
