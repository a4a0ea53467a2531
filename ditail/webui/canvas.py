"""A canvas for painting a mask: gradio 3's, or Forge's own, as gradio 4 has none."""

import gradio as gr
from PIL import Image

from ..content.images import read_mask
from . import loaded

LABEL = "Painted mask"
WHITE = "#ffffff"


def mask_canvas(elem_id: str, height: int) -> tuple:
    """(component of the painted mask, component of the image below it); one component in gradio 3."""
    if loaded.IS_FORGE:
        from modules_forge.forge_canvas.canvas import ForgeCanvas

        gr.HTML(f"<p>{LABEL}</p>")
        # Its toolbar lies over the image.
        canvas = ForgeCanvas(height=2 * height, scribble_color=WHITE, scribble_color_fixed=True, scribble_width=20,
                             elem_id=elem_id)
        return canvas.foreground, canvas.background
    canvas = gr.Image(label=LABEL, type="pil", source="upload", tool="sketch", interactive=True, image_mode="RGB",
                      brush_color=WHITE, height=height, elem_id=elem_id)
    return canvas, canvas


def painted(value) -> Image.Image | None:
    """The painted mask; None if the canvas is empty or nothing is painted."""
    if isinstance(value, Image.Image):  # Forge: the strokes on a transparent image
        mask = value.getchannel("A") if value.mode == "RGBA" else None
    else:
        mask = value.get("mask") if isinstance(value, dict) else None
        mask = mask and read_mask(mask)
    return mask if mask and mask.getbbox() else None
