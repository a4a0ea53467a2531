"""Runs inside the WebUI under test: what Ditail's caches hold and gave, and somebody else's always-on script."""

import random
import sys

import gradio as gr
import numpy
import torch
from fastapi import Body
from modules import script_callbacks, scripts, sd_models, shared

from ditail.webui import caches, loaded

hits = 0


def count_hits() -> None:
    get = caches.FEATURES.get

    def counted(key, step):
        global hits
        found = get(key, step)
        hits += found is not None
        return found

    caches.FEATURES.get = counted


def state() -> dict:
    kept = {"latents": caches.LATENTS, "files": caches.FOLDER, "features": caches.FEATURES}
    return {"hits": hits, **{name: [len(cache), cache.nbytes] for name, cache in kept.items()}}


def restart() -> None:
    """What a restart does: no latents in RAM, and the hypernetworks listed anew."""
    caches.LATENTS._entries.clear()
    if not loaded.IS_FORGE:
        shared.reload_hypernetworks()


def forget_loras() -> None:
    """Forge keeps what it has read of the last five files, whatever becomes of them."""
    if loaded.IS_FORGE:
        sys.modules["networks"].load_lora_state_dict.cache_clear()


def start_afresh(checkpoint: str = Body(embed=True)) -> None:  # noqa: B008 (fastapi's way)
    """Make a job independent of earlier ones: its checkpoint loaded, the caches empty, global generators seeded.

    Loading draws from torch's global generator, and so does img2img's encoder.
    """
    sd_models.reload_model_weights(info=sd_models.get_closet_checkpoint_match(checkpoint))
    caches.clear()
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


class SomebodyElses(scripts.Script):
    def title(self):
        return "Ditail test script"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox(visible=False)]


def add_routes(_, app) -> None:
    app.add_api_route("/ditail-test/caches", state, methods=["GET"])
    app.add_api_route("/ditail-test/restart", restart, methods=["POST"])
    app.add_api_route("/ditail-test/forget-loras", forget_loras, methods=["POST"])
    app.add_api_route("/ditail-test/start-afresh", start_afresh, methods=["POST"])


count_hits()
script_callbacks.on_app_started(add_routes)
