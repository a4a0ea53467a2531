"""Axes for the WebUI's X/Y/Z plot, one per setting that can be written as a number or a word."""

from modules import scripts, sd_models

from ..settings import BY_KEY, Field

AXES = "_ditail_axes"
KEYS = ("alpha", "beta", "conv_ratio", "attn_ratio", "start", "resize_mode", "source", "source_checkpoint",
        "source_prompt", "source_negative_prompt")


def add_axes() -> None:
    """Add the axes to the X/Y/Z script, unless they are there."""
    plots = [data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py"]
    for plot in plots[:1]:
        labels = {option.label for option in plot.axis_options}
        for key in KEYS:
            option = _axis(plot, BY_KEY[key])
            if option.label not in labels:
                plot.axis_options.append(option)


def _axis(plot, field: Field):
    is_number = isinstance(field.default, float)
    if field.key == "source_checkpoint":
        choices = lambda: [info.title for info in sd_models.checkpoints_list.values()]  # noqa: E731
    else:
        choices = (lambda: list(field.choices)) if field.choices else None
    return plot.AxisOption(f"[Ditail] {field.label}", float if is_number else str, _apply(field.key), choices=choices)


def _apply(key: str):
    def apply(p, value, _values) -> None:
        # Each cell is a shallow copy of one job: a dict changed in place would be every cell's.
        setattr(p, AXES, {**getattr(p, AXES, {}), key: value})

    return apply
