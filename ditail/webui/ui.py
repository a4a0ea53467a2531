"""Ditail's controls in a tab, built from the table of settings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import gradio as gr
from modules import sd_models, sd_vae
from modules.ui_common import create_refresh_button
from modules.ui_components import InputAccordion

from ..content.further import WEIGHT
from ..content.settings import BY_KEY, warnings_of
from .controls import AUTOMATIC_VAE, COLLAGE_SLOTS, CONTROLS, IMAGES, SAME_CHECKPOINT, SECOND_SOURCE, TAB_FIELDS
from .infotext import TITLE, PasteKey, second_source_of
from .matrix import MAX_MARGIN

STEP = 0.05


@dataclass
class Controls:
    """The controls in the order of `CONTROLS`, and what pasting infotext does to them."""

    controls: list
    infotext_fields: list[tuple]
    paste_field_names: list[str]


def build(elem_id: Callable[[str], str], *, is_img2img: bool, cfg_scale=None) -> Controls:
    """Make the tab's controls inside the current gradio block. cfg_scale: the tab's own slider, if it is there yet."""
    made = {}
    with InputAccordion(BY_KEY["enabled"].default, label=TITLE, elem_id=elem_id("enabled")) as made["enabled"]:
        with gr.Row():
            with gr.Column():
                made["image"] = _image("image", elem_id, is_img2img)
                if not is_img2img:
                    size = gr.Button("Use this image's size", elem_id=elem_id("use_size"), size="sm")
                    size.click(None, _js=f"() => ditailUseImageSize('{elem_id('image')}')", show_progress=False)
            with gr.Column():
                made["source"] = _control("source", elem_id)
                made["source_checkpoint"] = _checkpoints(elem_id)
                made["resize_mode"] = _control("resize_mode", elem_id)
        for keys in (("alpha", "beta"), ("conv_ratio", "attn_ratio")):
            with gr.Row():
                made |= {key: _control(key, elem_id) for key in keys}
            if "alpha" in keys:
                sliders = {"alpha": made["alpha"], "beta": made["beta"], "cfg_scale": cfg_scale}
                _warnings({key: slider for key, slider in sliders.items() if slider is not None}, elem_id("warnings"))
        with gr.Row():
            made |= {key: _control(key, elem_id) for key in ("source_prompt", "source_negative_prompt")}
        with gr.Accordion("More", open=False, elem_id=elem_id("more")):
            with gr.Row():
                made["source_vae"] = _dropdown("source_vae", vae_choices, sd_vae.refresh_vae_list, elem_id)
                made["start"] = _control("start", elem_id)
            with gr.Row():
                made |= {key: _control(key, elem_id) for key in ("hires", "show_source")}
            made["layers"] = _control("layers", elem_id)
        with gr.Accordion("Mask", open=False, elem_id=elem_id("mask_accordion")):
            made["mask"] = _image("mask", elem_id, is_img2img)
        made |= _second_source(lambda name: elem_id(f"second_{name}"))
        made |= _collage(lambda name: elem_id(f"collage_{name}"))
    keys = {f.key: PasteKey(f) for f in TAB_FIELDS if f.infotext or f.key == "enabled"}
    pasted = [(made[f"second_{name}"], partial(second_source_of, name)) for name in SECOND_SOURCE if name not in IMAGES]
    return Controls([made[name] for name in CONTROLS], [(made[name], key) for name, key in keys.items()] + pasted,
                    list(keys.values()))


def _warnings(sliders: dict, elem_id: str) -> None:
    """A line that says, as the sliders (key: slider) move, which values are outside the safe region."""
    line = gr.HTML(elem_id=elem_id)
    for slider in sliders.values():
        slider.change(lambda *values: " ".join(warnings_of(**dict(zip(sliders, values, strict=True)))),
                      inputs=list(sliders.values()), outputs=[line], show_progress=False, queue=False)


def _second_source(elem_id: Callable[[str], str]) -> dict:
    """The controls of a second source by their names in `CONTROLS`."""
    with InputAccordion(False, label="Second source", elem_id=elem_id("on")) as on:
        with gr.Row():
            source = gr.Radio(label="Second source", choices=list(BY_KEY["source"].choices), value="image",
                              elem_id=elem_id("source"))
            checkpoint = _checkpoints(elem_id)
            weight = gr.Slider(label="Weight, beside the first's 1", minimum=WEIGHT.low, maximum=WEIGHT.high, step=STEP,
                               value=WEIGHT.default, elem_id=elem_id("weight"))
        with gr.Row():
            begin, end = (gr.Slider(label=f"{name} (share of the steps)", minimum=0, maximum=1, step=STEP, value=value,
                                    elem_id=elem_id(name.lower())) for name, value in (("Begin", 0.0), ("End", 1.0)))
        with gr.Row():
            image = _slot_image("Its content image (empty: the first's)", elem_id("image"))
            mask = _slot_image("Where it takes the first's place (empty: shared everywhere)", elem_id("mask"))
    return {"second_on": on, "second_source": source, "second_image": image, "second_source_checkpoint": checkpoint,
            "second_weight": weight, "second_begin": begin, "second_end": end, "second_mask": mask}


def _collage(elem_id: Callable[[str], str]) -> dict:
    """The controls of the collage's slots by their names in `CONTROLS`."""
    controls = {}
    with gr.Accordion("Collage", open=False, elem_id=elem_id("accordion")):
        gr.HTML("<p>Images laid over the content image, or over an even ground without one. Box: left, top, width "
                "and height as shares of the whole, such as 0 0.2 0.5 0.8.</p>")
        for i in range(1, COLLAGE_SLOTS + 1):
            with gr.Row():
                image = _slot_image(f"Picture {i}", elem_id(f"image_{i}"))
                box = gr.Textbox(label=f"Box {i}", placeholder="0 0 0.5 1", lines=1, elem_id=elem_id(f"box_{i}"))
                mask = _slot_image(f"Mask {i} (white = here; empty: all of the box)", elem_id(f"mask_{i}"))
            controls |= {f"collage_image_{i}": image, f"collage_box_{i}": box, f"collage_mask_{i}": mask}
    return controls


def _slot_image(label: str, elem_id: str, height: int = 200):
    return gr.Image(label=label, type="pil", source="upload", interactive=True, image_mode="RGBA", height=height,
                    elem_id=elem_id)


def build_matrix(elem_id: Callable[[str], str]) -> list:
    """The controls of the matrix script, in the order that `matrix.run_args` takes them."""
    with gr.Row():
        names = gr.Dropdown(label="Models of the matrix", choices=sd_models.checkpoint_tiles(), multiselect=True,
                            elem_id=elem_id("checkpoints"))
        create_refresh_button(names, sd_models.list_models, lambda: {"choices": sd_models.checkpoint_tiles()},
                              elem_id("refresh_checkpoints"))
    further = gr.Textbox(label="Further models, one a line", lines=2, elem_id=elem_id("further"),
                         placeholder="checkpoint + <lora:name:0.7>")
    one_source = gr.Checkbox(label="One row: the content of Ditail's source checkpoint in every style", value=False,
                             elem_id=elem_id("one_source"))
    margin = gr.Slider(label="Grid margins (px)", minimum=0, maximum=MAX_MARGIN, value=0, step=2,
                       elem_id=elem_id("margin"))
    gr.HTML("<p>The other settings are those of the Ditail section above, whether it is switched on or not. Without a "
            "content image each model generates its own content.</p>")
    return [names, further, one_source, margin]


def checkpoint_choices() -> list[str]:
    return [SAME_CHECKPOINT, *sd_models.checkpoint_tiles()]


def vae_choices() -> list[str]:
    return [AUTOMATIC_VAE, "None", *sd_vae.vae_dict]


def _image(key: str, elem_id, is_img2img: bool):
    field = BY_KEY[key]
    label = f"{field.label} (empty: the init image)" if key == "image" and is_img2img else field.label
    return _slot_image(label, elem_id(key), height=300)


def _checkpoints(elem_id):
    return _dropdown("source_checkpoint", checkpoint_choices, sd_models.list_models, elem_id)


def _dropdown(key: str, choices: Callable[[], list[str]], read_again: Callable[[], object], elem_id):
    with gr.Row():
        made = gr.Dropdown(choices=choices(), **_common(key, elem_id) | {"value": choices()[0]})
        create_refresh_button(made, read_again, lambda: {"choices": choices()}, elem_id(f"refresh_{key}"))
    return made


def _control(key: str, elem_id):
    """The control that fits the setting's type."""
    field = BY_KEY[key]
    if field.choices:
        return gr.Radio(choices=list(field.choices), **_common(key, elem_id))
    if isinstance(field.default, bool):
        return gr.Checkbox(**_common(key, elem_id))
    if isinstance(field.default, float):
        return gr.Slider(minimum=field.low, maximum=field.high, step=STEP, **_common(key, elem_id))
    return gr.Textbox(lines=1, **_common(key, elem_id))


def _common(key: str, elem_id) -> dict:
    field = BY_KEY[key]
    return {"label": field.label, "value": field.default, "info": field.help, "elem_id": elem_id(key)}
