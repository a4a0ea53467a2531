"""The buttons "Send to Ditail" under the galleries and in PNG Info."""

import gradio as gr
from modules.ui_components import ToolButton

from .ui_events import script

# elem_id of the WebUI's button that ours follows -> the argument of `ditailSend`: where the image is.
AFTER = {"txt2img_send_to_extras": "txt2img", "img2img_send_to_extras": "img2img", "extras_tab": "pnginfo"}
TOOLTIP = "Send image to Ditail, as its content image in txt2img."


def on_after_component(component, elem_id: str | None = None, **_) -> None:
    """The WebUI's callback after every component: adds a button after those in AFTER, in the same row."""
    place = AFTER.get(elem_id or "")
    if place is None:
        return
    if place == "pnginfo":
        button = gr.Button("Send to Ditail", elem_id="ditail_tab")
    else:
        button = ToolButton("🍹", elem_id=f"{place}_send_to_ditail", tooltip=TOOLTIP)
    button.click(None, None, None, **script(f"() => ditailSend('{place}')"))
