"""Axes for the WebUI's X/Y/Z plot: one for each setting that is a number or a text, which infotext has, too."""

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
# What a sweep changes of an inverted source itself.
OF_THE_SOURCE = ("alpha", "beta", "inversion_steps", "source_checkpoint", *PROMPTS)
SWEEP_AT_MOST = 64


@dataclass(frozen=True)
class Axis:
    """One axis in one cell: its value there and all its values."""

    value: object
    values: tuple


def add_axes() -> None:
    """Add the axes to the X/Y/Z script, unless they are there."""
    plots = [data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py"]
    for plot in plots[:1]:
        labels = {option.label for option in plot.axis_options}
        wanted = [_axis(plot, field) for field in FIELDS if field.infotext]
        wanted.append(plot.AxisOption("[Ditail] Source prompt S/R", str, _apply(SEARCH_REPLACE)))
        plot.axis_options.extend(option for option in wanted if option.label not in labels)


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
        # What a cell raises, the plot logs and leaves the cell empty; what is raised here ends it with the sentence.
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
    """An axis value as the setting's own type; the plot knows words and numbers."""
    if isinstance(BY_KEY[key].default, bool) and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    return value


def _apply(key: str):
    def apply(p, value, values) -> None:
        # Each cell is a shallow copy of one job: a dict changed in place would be every cell's.
        setattr(p, AXES, {**getattr(p, AXES, {}), key: Axis(value, tuple(values))})

    return apply


def at_cell(request: Request, axes: Mapping[str, Axis], prompts: tuple[str, str]) -> Request:
    """A job's settings with a cell's values. prompts: the job's own, which S/R works on where there is no other.

    Raises DitailError naming the key that can't be used.
    """
    values = {key: _setting(key, axis.value) for key, axis in axes.items() if key != SEARCH_REPLACE}
    if "preset" in values:  # a whole set of them; another axis comes first
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
    """The settings of the other cells whose inverted sources differ from this one's, or nothing for a generated one."""
    keys = [key for key in OF_THE_SOURCE if key in axes]
    if "preset" in axes or not keys or request.settings.source != "image" or SEARCH_REPLACE in axes:
        return []
    cells = [dict(zip(keys, values, strict=True)) for values in product(*(axes[key].values for key in keys))]
    return [request.with_values(cell, WebuiLibrary()) for cell in cells[:SWEEP_AT_MOST]]
