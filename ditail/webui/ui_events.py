"""The events of the tab: presets and the settings that they set, controls that do not apply, the live line."""

from collections.abc import Callable, Mapping
from functools import partial

import gradio as gr
from PIL import Image

from ..content.balance import KEYS, at_balance, balance_of, name_of, preset_values
from ..content.images import read_image
from ..content.infotext import from_infotext, has_settings
from ..errors import DitailError
from . import caption, live_line, presets
from .failures import in_words

# Controls without effect if the content is generated, which are hidden then.
IMAGE_CONTROLS = ("image", "use_size", "resize_mode", "collage", "take_prompt", "take_tags")
QUIET = {"show_progress": False, "queue": False}


def script(code: str) -> dict:
    """An event's argument for JavaScript, which gets the inputs (and outputs) and returns the function's inputs."""
    return {"_js": code}


def connect(controls: Mapping, webui_controls: Mapping, elem_id: Callable[[str], str], *, is_img2img: bool) -> None:
    """Bind the events of a tab's controls. controls: by name. webui_controls: see `ui.build`."""
    tab = elem_id("").split("_")[0]
    names = [name for name in live_line.ALL if name in controls or name in webui_controls]
    # The other tab, another page or the file itself may have changed the presets since this page was opened.
    shown_presets = gr.State(_preset_choices())
    sources = [controls.get(name) or webui_controls[name] for name in names]
    inputs = [shown_presets, *sources, controls["facts"]]

    def line(shown: list[str], *values) -> list:
        by_name, choices = dict(zip([*names, live_line.FACTS], values, strict=True)), _preset_choices()
        return [live_line.html_of(by_name, is_img2img=is_img2img), gr.update(visible=bool(by_name["missing"])),
                gr.update() if shown == choices else gr.update(choices=choices), choices]

    controls["refresh_line"].click(line, inputs, [controls["line"], controls["forget"], controls["preset"],
                                                  shown_presets],
                          **script(f"(...v) => ditailFacts('{tab}', v.slice(0, {len(inputs)}))"), **QUIET)
    controls["forget"].click(lambda: "", None, [controls["missing"]], **QUIET)
    # Pasted values and those of buttons come from the server, later than the click that the page hears of.
    for source in sources:
        source.change(None, None, None, **script(f"() => ditailRefresh('{tab}')"))
    _connect_source(controls)
    _connect_images(controls, tab)
    _connect_descriptions(controls, webui_controls)
    _connect_presets(controls, tab)


def _connect_source(controls: Mapping) -> None:
    names = [name for name in IMAGE_CONTROLS if name in controls]

    def show(source: str) -> list:
        return [gr.update(visible=source == "image" and (name != "take_tags" or caption.HAS_DEEPBOORU))
                for name in names]

    controls["source"].change(show, [controls["source"]], [controls[name] for name in names], **QUIET)


def _connect_images(controls: Mapping, tab: str) -> None:
    controls["image"].change(None, None, None, **script(f"() => ditailImageChanged('{tab}')"))
    if "use_size" in controls:
        controls["use_size"].click(None, None, None, **script(f"() => ditailUseImageSize('{tab}_ditail_image')"))
    controls["preview"].click(None, None, None, **script(f"() => ditailPreview('{tab}')"))
    controls["paint"].click(lambda image: image and read_image(image), [controls["image"]],
                            [controls["painted_on"]], **QUIET)


def _connect_descriptions(controls: Mapping, webui_controls: Mapping) -> None:
    """The buttons that fill the source prompt, and the main prompt if that is empty."""
    outputs = [controls[name] for name in ("line", "source_prompt", "source_negative_prompt", "source_checkpoint")]
    prompts = [webui_controls["prompt"]] if "prompt" in webui_controls else []
    controls["take_tags"].visible = caption.HAS_DEEPBOORU
    captions = {"take_prompt": caption.from_clip, "take_tags": caption.from_deepbooru, "take_infotext": None}
    for name, function in captions.items():
        controls[name].click(partial(_describe, function), [controls["image"], *prompts], [*outputs, *prompts])


def _describe(interrogate: Callable | None, image: Image.Image | None, *prompts: str) -> list:
    """Updates for the line, source prompt, negative prompt, checkpoint and each of the (one or no) main `prompts`."""
    unchanged = [gr.update()] * len(prompts)
    try:
        description = caption.describe(image, interrogate)
    except DitailError as error:
        return [live_line.warning(in_words(error)), *[gr.update()] * 3, *unchanged]
    fills = description[0] and not any(prompt.strip() for prompt in prompts)
    return [gr.update(), *[gr.update() if value is None else value for value in description],
            *([description[0]] * len(prompts) if fills else unchanged)]


def _connect_presets(controls: Mapping, tab: str) -> None:
    numbers = [controls[key] for key in KEYS]
    # `input` events come only from the user, so the values that these functions set do not call them again.
    controls["preset"].input(_apply_preset, [controls["preset"]], [controls["balance"], *numbers], **QUIET)
    controls["balance"].input(None, None, None, **script(f"() => ditailLater('{tab}', 'take_balance')"))
    for number in numbers:
        number.input(None, None, None, **script(f"() => ditailLater('{tab}', 'take_numbers')"))
    for button, function, inputs, outputs in (
            ("take_balance", _apply_balance, [controls["balance"]], [controls["preset"], *numbers]),
            ("take_numbers", _preset_and_balance, numbers, [controls["preset"], controls["balance"]])):
        # Twice, as a control may have changed while the first call was running.
        controls[button].click(function, inputs, outputs, **QUIET).then(function, inputs, outputs, **QUIET)
    outputs = [controls["preset"], controls["preset_said"]]
    controls["preset_save"].click(_save, [controls["preset_name"], *numbers], outputs, **QUIET)
    controls["preset_rename"].click(_rename, [controls["preset"], controls["preset_name"]], outputs, **QUIET)
    controls["preset_delete"].click(_delete, [controls["preset"]], outputs, **QUIET)


def _preset_choices() -> list[str]:
    return [*presets.names(), presets.CUSTOM]


def _apply_preset(name: str) -> list:
    preset = presets.all_presets().get(name)
    if preset is None:
        return [gr.update()] * (1 + len(KEYS))
    values = preset_values(preset)
    position = balance_of(values)
    return [gr.update() if position is None else position, *values.values()]


def _apply_balance(position: float) -> list:
    values = at_balance(position)
    return [name_of(values, presets.all_presets()) or presets.CUSTOM, *values.values()]


def _preset_and_balance(*numbers) -> list:
    values = dict(zip(KEYS, numbers, strict=True))
    position = balance_of(values)
    return [name_of(values, presets.all_presets()) or presets.CUSTOM, gr.update() if position is None else position]


def pasted_preset(params: dict):
    """The name of the preset that has the settings of parsed infotext."""
    if not has_settings(params):
        return None
    try:
        return name_of(from_infotext(params), presets.all_presets()) or presets.CUSTOM
    except DitailError:
        return presets.CUSTOM


def pasted_balance(params: dict):
    """The slider's position for the settings of parsed infotext; None (unchanged) if there is none."""
    try:
        return balance_of(from_infotext(params)) if has_settings(params) else None
    except DitailError:
        return None


def _save(name: str, *numbers) -> list:
    return _change_presets(lambda: presets.save(name, dict(zip(KEYS, numbers, strict=True))), name, "Saved.")


def _rename(old: str, new: str) -> list:
    return _change_presets(lambda: presets.rename(old, new), new, "Renamed.")


def _delete(name: str) -> list:
    return _change_presets(lambda: presets.delete(name), presets.CUSTOM, "Deleted.")


def _change_presets(action: Callable[[], None], selected: str, message: str) -> list:
    """Updates for the dropdown and the message below it after a change of the user's presets."""
    try:
        action()
    except (DitailError, OSError) as error:
        return [gr.update(), live_line.warning(in_words(error) if isinstance(error, DitailError) else str(error))]
    name = " ".join(selected.split())
    return [gr.update(choices=_preset_choices(), value=name), f"<p>{message}</p>"]
