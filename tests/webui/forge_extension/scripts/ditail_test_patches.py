"""Stands in for extensions that patch Forge's U-Net, as ControlNet's reference, FreeU and ControlNet itself do."""

import gc

import gradio as gr
import torch
from backend.diffusion_engine.base import ForgeDiffusionEngine
from modules import script_callbacks, scripts

FIRST_CHANNELS = 64  # of the first block of the demo checkpoints


class Control:
    """A ControlNet that adds the same to the first block of every row."""

    previous_controlnet = None

    def set_previous_controlnet(self, other):
        self.previous_controlnet = other

    def pre_run(self, *_):
        pass

    def cleanup(self):
        pass

    def get_models(self):
        return []

    def inference_memory_requirements(self, _):
        return 0

    def get_control(self, x, *_):
        channels = torch.randn(1, FIRST_CHANNELS, 1, 1, generator=torch.Generator().manual_seed(0)).to(x)
        return {"input": [0.5 * channels], "middle": [], "output": []}


def attention(q, k, v, options):
    from backend.attention import attention_function

    return attention_function(q, k, v, options["n_heads"]) * 1.1


class Patcher(scripts.Script):
    """Its one argument says what to patch."""

    def title(self):
        return "Patcher of the test"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox(visible=False)]

    def process_before_every_sampling(self, p, mode="", *args, **kwargs):
        if not mode:
            return
        unet = p.sd_model.forge_objects.unet.clone()
        if mode == "reference":
            unet.set_model_replace_all(attention, "attn1")
        if mode == "norm":
            unet.set_group_norm_wrapper(lambda norm, x, options: norm(x))
        if mode == "FreeU":
            unet.set_model_output_block_patch(lambda h, skip, options: (h * 1.1, skip))
        if mode == "control":
            unet.add_patched_controlnet(Control())
        p.sd_model.forge_objects.unet = unet


def engines() -> int:
    """How many models of Forge's are in memory."""
    gc.collect()
    return sum(isinstance(one, ForgeDiffusionEngine) for one in gc.get_objects())


script_callbacks.on_app_started(
    lambda _, app: app.add_api_route("/ditail-test/engines", engines, methods=["GET"]))
