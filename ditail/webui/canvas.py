"""A canvas to paint a mask on: gradio's own, or in Forge, whose gradio has none, Forge's."""

import gradio as gr
from PIL import Image

from ..content.images import read_mask
from . import loaded

LABEL = "Painted mask (paint what takes the content)"
WHITE = "#ffffff"


def mask_canvas(elem_id: str, height: int) -> tuple:
    """The component that holds what is painted, and the one that holds what it is painted on."""
    if loaded.IS_FORGE:
        from modules_forge.forge_canvas.canvas import ForgeCanvas

        gr.HTML(f"<p>{LABEL}</p>")
        canvas = ForgeCanvas(height=height, scribble_color=WHITE, scribble_color_fixed=True, scribble_width=20,
                             elem_id=elem_id)
        return canvas.foreground, canvas.background
    canvas = gr.Image(label=LABEL, type="pil", source="upload", tool="sketch", interactive=True, image_mode="RGB",
                      brush_color=WHITE, height=height, elem_id=elem_id)
    return canvas, canvas


def painted(value) -> Image.Image | None:
    """The mask that was painted; None for an empty canvas, or one that nothing was painted on."""
    if isinstance(value, Image.Image):  # Forge's: what is painted, transparent elsewhere
        mask = value.getchannel("A") if value.mode == "RGBA" else None
    else:
        mask = value.get("mask") if isinstance(value, dict) else None
        mask = mask and read_mask(mask)
    return mask if mask and mask.getbbox() else None
