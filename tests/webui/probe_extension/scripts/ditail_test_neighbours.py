"""Stands in for other extensions in the WebUI under test, and reports on Ditail's cache."""

import copy
import hashlib
import sys
from types import SimpleNamespace

import gradio as gr
import torch
from fastapi import Body, FastAPI
from modules import processing, script_callbacks, scripts, sd_unet, shared, styles
from safetensors.torch import save_file

from ditail.webui import caches, loaded

NOTED = SimpleNamespace(comments=[])


class PromptRewriter(scripts.Script):
    """Writes another word into each image's prompt, as Dynamic Prompts does: `{fox|cat}`."""

    def title(self):
        return "Prompt rewriter of the test"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        for i, prompt in enumerate(p.all_prompts):
            before, brace, rest = prompt.partition("{")
            words, _, after = rest.partition("}")
            if brace:
                p.all_prompts[i] = before + words.split("|")[i % 2] + after


class Detailer(scripts.Script):
    """Samples a part of each finished image again in a job of its own, as ADetailer does.

    Its one argument: "" (off), "alone" (the inner job has no scripts), "all" (it has the outer job's).
    """

    def title(self):
        return "Detailer of the test"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox(visible=False)]

    def postprocess_image(self, p, pp, mode="", *args):
        if not mode or hasattr(p, "_detailed"):
            return
        mask = processing.Image.new("L", pp.image.size, 0)
        mask.paste(255, (32, 32, 96, 96))
        inner = processing.StableDiffusionProcessingImg2Img(
            init_images=[pp.image], resize_mode=0, denoising_strength=0.6, mask=mask, mask_blur=4, inpainting_fill=1,
            inpaint_full_res=True, inpaint_full_res_padding=16, sd_model=p.sd_model, prompt=p.prompt, styles=p.styles,
            seed=p.seed, sampler_name=p.sampler_name, batch_size=1, n_iter=1, steps=4, cfg_scale=p.cfg_scale,
            width=p.width, height=p.height, extra_generation_params=p.extra_generation_params,
            do_not_save_samples=True, do_not_save_grid=True)
        inner.cached_c, inner.cached_uc = [None, None], [None, None]
        inner._detailed = True
        inner.is_api = True
        inner.scripts, inner.script_args = copy.copy(p.scripts), copy.deepcopy(p.script_args)
        if mode == "alone":
            inner.scripts.alwayson_scripts = []
        pp.image = processing.process_images(inner).images[0]

    def postprocess(self, p, processed, *args):
        NOTED.comments = list(p.comments)


class Replacement(sd_unet.SdUnetOption):
    """A U-Net for the SD Unet setting, such as the TensorRT extension's."""

    model_name, label = "none", "[Test] replacement"

    def create_unet(self):
        return sd_unet.SdUnet()


def count_rows() -> None:
    """Note the number of rows of the U-Net's calls, until they are asked for."""
    NOTED.rows = []
    NOTED.handle = loaded.unet().register_forward_pre_hook(lambda _, args: NOTED.rows.append(len(args[0])))


def rows() -> list[int]:
    NOTED.handle.remove()
    return NOTED.rows


def latents() -> list[str]:
    """A digest of each entry of Ditail's cache, in the order of their last use; then the cache is empty."""
    kept = [entry.latents.float().numpy().tobytes() for entry in caches.LATENTS._entries.values()]
    caches.LATENTS.clear()
    return [hashlib.sha256(data).hexdigest()[:16] for data in kept]


def write_control_model(path: str = Body(embed=True)) -> None:  # noqa: B008 (fastapi's way)
    """A ControlNet of random weights for the demo checkpoints' U-Net, whose sizes that extension does not know."""
    guess, cldm = sys.modules["scripts.controlnet_model_guess"], sys.modules["scripts.cldm"]
    sizes = {"model_channels": 64, "channel_mult": [1, 2, 2, 2], "context_dim": 128}
    guess.controlnet_default_config.update(sizes)
    torch.manual_seed(0)
    model = cldm.PlugableControlModel({**guess.controlnet_default_config, "hint_channels": 3, "use_fp16": False})
    weights = {name: 0.05 * torch.randn_like(w) for name, w in model.control_model.state_dict().items()}
    save_file(weights, path)


def add_routes(_, app: FastAPI) -> None:
    shared.prompt_styles.styles["test style"] = styles.PromptStyle("test style", "{prompt} on pink", "blurry")
    app.add_api_route("/ditail-test/rows", count_rows, methods=["POST"])
    app.add_api_route("/ditail-test/rows", rows, methods=["GET"])
    app.add_api_route("/ditail-test/latents", latents, methods=["GET"])
    app.add_api_route("/ditail-test/control-model", write_control_model, methods=["POST"])
    app.add_api_route("/ditail-test/comments", lambda: NOTED.comments, methods=["GET"])


script_callbacks.on_list_unets(lambda found: found.append(Replacement()))
script_callbacks.on_app_started(add_routes)
