"""Axes for the WebUI's X/Y/Z plot: one for each setting that is written to infotext."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from modules import scripts, sd_models, sd_vae

from ..content.balance import preset_values
from ..content.presets import preset_of
from ..content.settings import BY_KEY, FIELDS, Field
from ..errors import DitailError
from ..job.request import Request
from .checkpoints import WebuiLibrary, find_checkpoint, find_vae
from .failures import errors_for_the_user
from .presets import all_presets

AXES = "_ditail_axes"
PROMPTS = ("source_prompt", "source_negative_prompt")
SEARCH_REPLACE = "source_prompt_sr"
# The settings that an inverted source depends on.
SOURCE_KEYS = ("alpha", "beta", "inversion_steps", "source_checkpoint", *PROMPTS)
MAX_SWEEP = 64


@dataclass(frozen=True)
class Axis:
    """The value of an axis in a cell, and all its values."""

    value: object
    values: tuple


def add_axes() -> None:
    """Add the axes to the X/Y/Z script, unless it has them."""
    plots = [data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py"]
    for plot in plots[:1]:
        labels = {option.label for option in plot.axis_options}
        options = [_axis(plot, field) for field in FIELDS if field.infotext]
        options.append(plot.AxisOption("[Ditail] Source prompt S/R", str, _apply(SEARCH_REPLACE)))
        plot.axis_options.extend(option for option in options if option.label not in labels)


def _axis(plot, field: Field):
    kind = float if isinstance(field.default, float) else str
    return plot.AxisOption(f"[Ditail] {field.label}", kind, _apply(field.key), confirm=_confirm(field),
                           choices=_choices(field))


def _choices(field: Field):
    if field.key == "source_checkpoint":
        return lambda: [info.title for info in sd_models.checkpoints_list.values()]
    if field.key == "source_vae":
        return lambda: ["Automatic", "None", *sd_vae.vae_dict]
    if isinstance(field.default, bool):
        return lambda: ["True", "False"]
    if field.key == "preset":
        return lambda: list(all_presets())
    return (lambda: list(field.choices)) if field.choices else None


def _confirm(field: Field):
    def confirm(p, values) -> None:
        # An exception of a cell is only logged; one that is raised here ends the plot with the error message.
        with errors_for_the_user(p):
            for value in values:
                setting = _setting(field.key, value)
                field.check(setting)
                if field.key == "source_checkpoint":
                    find_checkpoint(setting)
                if field.key == "source_vae":
                    find_vae(setting)
                if field.key == "preset":
                    preset_of(setting, all_presets())

    return confirm


def _setting(key: str, value):
    """An axis value in the setting's type; the plot gives texts for booleans."""
    if isinstance(BY_KEY[key].default, bool) and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    return value


def _apply(key: str):
    def apply(p, value, values) -> None:
        # Cells are shallow copies of one job and share its dicts, so a new dict is set.
        setattr(p, AXES, {**getattr(p, AXES, {}), key: Axis(value, tuple(values))})

    return apply


def at_cell(request: Request, axes: Mapping[str, Axis], prompts: tuple[str, str]) -> Request:
    """A request with a cell's values. prompts: the job's, for S/R if there is no source prompt.

    Raises DitailError naming the key that can't be used.
    """
    values = {key: _setting(key, axis.value) for key, axis in axes.items() if key != SEARCH_REPLACE}
    if "preset" in values:  # other axes take precedence over the preset's values
        values = {**preset_values(preset_of(values["preset"], all_presets())), **values}
    changed = request.with_values(values, WebuiLibrary())
    if SEARCH_REPLACE not in axes:
        return changed
    old, new = axes[SEARCH_REPLACE].values[0], axes[SEARCH_REPLACE].value
    texts = {key: getattr(changed.settings, key) or prompt for key, prompt in zip(PROMPTS, prompts, strict=True)}
    if not any(old in text for text in texts.values()):
        raise DitailError("source_prompt", f'S/R did not find "{old}" in the source prompts')
    return changed.with_values({key: text.replace(old, new) for key, text in texts.items()}, WebuiLibrary())


def sweep(request: Request, axes: Mapping[str, Axis]) -> list[Request]:
    """The requests of all cells whose inverted sources may differ; empty for a generated source."""
    keys = [key for key in SOURCE_KEYS if key in axes]
    if "preset" in axes or not keys or request.settings.source != "image" or SEARCH_REPLACE in axes:
        return []
    cells = [dict(zip(keys, values, strict=True)) for values in product(*(axes[key].values for key in keys))]
    return [request.with_values(cell, WebuiLibrary()) for cell in cells[:MAX_SWEEP]]
