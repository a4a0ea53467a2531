"""What follows what in the tab: presets and numbers, what does not apply, the live line."""

from collections.abc import Callable, Mapping

import gradio as gr
from PIL import Image

from ..content.balance import KEYS, at_balance, balance_of, name_of, preset_values
from ..content.infotext import from_infotext, has_settings
from ..errors import DitailError
from . import caption, live_line, presets
from .failures import in_words

# Controls that say nothing where the content is generated.
OF_AN_IMAGE = ("image", "use_size", "resize_mode", "collage", "take_prompt", "take_tags")
QUIET = {"show_progress": False, "queue": False}


def script(code: str) -> dict:
    """JavaScript for an event: it gets the inputs (and the outputs), and returns the inputs for the function."""
    return {"_js": code}


def connect(made: Mapping, hosts: Mapping, elem_id: Callable[[str], str], *, is_img2img: bool) -> None:
    """Bind the events of a tab's controls. hosts: see `ui.build`."""
    tab = elem_id("").split("_")[0]
    names = [name for name in live_line.ALL if name in made or name in hosts]
    inputs = [made.get(name) or hosts[name] for name in names] + [made["facts"]]

    def line(*values) -> list:
        known = dict(zip([*names, live_line.FACTS], values, strict=True))
        return [live_line.html_of(known, is_img2img=is_img2img), gr.update(visible=bool(known["missing"]))]

    made["refresh_line"].click(line, inputs, [made["line"], made["forget"]],
                          **script(f"(...v) => ditailFacts('{tab}', v.slice(0, {len(inputs)}))"), **QUIET)
    made["forget"].click(lambda: "", None, [made["missing"]], **QUIET)
    for name in ("missing", "enabled"):
        made[name].change(None, None, None, **script(f"() => ditailRefresh('{tab}')"))
    _connect_source(made)
    _connect_images(made, tab)
    _connect_presets(made, tab)


def _connect_source(made: Mapping) -> None:
    shown = [name for name in OF_AN_IMAGE if name in made]

    def show(source: str) -> list:
        return [gr.update(visible=source == "image" and (name != "take_tags" or caption.HAS_DEEPBOORU))
                for name in shown]

    made["source"].change(show, [made["source"]], [made[name] for name in shown], **QUIET)


def _connect_images(made: Mapping, tab: str) -> None:
    made["image"].change(None, None, None, **script(f"() => ditailImageChanged('{tab}')"))
    if "use_size" in made:
        made["use_size"].click(None, None, None, **script(f"() => ditailUseImageSize('{tab}_ditail_image')"))
    made["preview"].click(None, None, None, **script(f"() => ditailPreview('{tab}')"))
    made["paint"].click(lambda image: image and image.convert("RGB"), [made["image"]], [made["painted_on"]], **QUIET)
    outputs = [made[name] for name in ("source_prompt", "source_negative_prompt", "source_checkpoint")]
    made["take_tags"].visible = caption.HAS_DEEPBOORU
    ways = {"take_prompt": caption.from_clip, "take_tags": caption.from_deepbooru, "take_infotext": None}
    for name, describe in ways.items():
        made[name].click(lambda image, describe=describe: _described(image, describe), [made["image"]],
                         [*outputs, made["line"]])


def _described(image: Image.Image | None, describe: Callable | None) -> list:
    """Updates for source prompt, negative prompt, checkpoint and the line."""
    try:
        found = caption.describe(image, describe)
    except DitailError as error:
        return [gr.update(), gr.update(), gr.update(), live_line.warning(in_words(error))]
    return [gr.update() if value is None else value for value in found] + [gr.update()]


def _connect_presets(made: Mapping, tab: str) -> None:
    numbers = [made[key] for key in KEYS]
    # `input` is the user's own doing; what these functions set calls none of them in turn.
    made["preset"].input(_of_preset, [made["preset"]], [made["balance"], *numbers], **QUIET)
    made["balance"].input(None, None, None, **script(f"() => ditailLater('{tab}', 'take_balance')"))
    for number in numbers:
        number.input(None, None, None, **script(f"() => ditailLater('{tab}', 'take_numbers')"))
    for button, function, inputs, outputs in (
            ("take_balance", _of_balance, [made["balance"]], [made["preset"], *numbers]),
            ("take_numbers", _name_and_place, numbers, [made["preset"], made["balance"]])):
        # Twice: what changed while the first was answered is taken by the second.
        made[button].click(function, inputs, outputs, **QUIET).then(function, inputs, outputs, **QUIET)
    said = [made["preset"], made["preset_said"]]
    made["preset_save"].click(_save, [made["preset_name"], *numbers], said, **QUIET)
    made["preset_rename"].click(_rename, [made["preset"], made["preset_name"]], said, **QUIET)
    made["preset_delete"].click(_delete, [made["preset"]], said, **QUIET)


def _of_preset(name: str) -> list:
    preset = presets.all_presets().get(name)
    if preset is None:
        return [gr.update()] * (1 + len(KEYS))
    values = preset_values(preset)
    place = balance_of(values)
    return [gr.update() if place is None else place, *values.values()]


def _of_balance(place: float) -> list:
    values = at_balance(place)
    return [name_of(values, presets.all_presets()) or presets.CUSTOM, *values.values()]


def _name_and_place(*numbers) -> list:
    values = dict(zip(KEYS, numbers, strict=True))
    place = balance_of(values)
    return [name_of(values, presets.all_presets()) or presets.CUSTOM, gr.update() if place is None else place]


def pasted_preset(params: dict):
    """The preset that the settings of parsed infotext are."""
    if not has_settings(params):
        return None
    try:
        return name_of(from_infotext(params), presets.all_presets()) or presets.CUSTOM
    except DitailError:
        return presets.CUSTOM


def pasted_balance(params: dict):
    """Where on the slider the settings of parsed infotext are; None (unchanged) for nowhere."""
    try:
        return balance_of(from_infotext(params)) if has_settings(params) else None
    except DitailError:
        return None


def _save(name: str, *numbers) -> list:
    return _done(lambda: presets.save(name, dict(zip(KEYS, numbers, strict=True))), name, "Saved.")


def _rename(old: str, new: str) -> list:
    return _done(lambda: presets.rename(old, new), new, "Renamed.")


def _delete(name: str) -> list:
    return _done(lambda: presets.delete(name), presets.CUSTOM, "Deleted.")


def _done(action: Callable[[], None], chosen: str, said: str) -> list:
    """Updates for the dropdown and the line below it after a change of the user's presets."""
    try:
        action()
    except (DitailError, OSError) as error:
        return [gr.update(), live_line.warning(in_words(error) if isinstance(error, DitailError) else str(error))]
    name = " ".join(chosen.split())
    return [gr.update(choices=[*presets.names(), presets.CUSTOM], value=name), f"<p>{said}</p>"]
