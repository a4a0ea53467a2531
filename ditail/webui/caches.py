"""The caches of source latents, features and content images, and their settings page.

The caches hold tensors and images, never a model. As globals of this package they also survive "Reload UI".
"""

import logging
import os
from pathlib import Path

import gradio as gr
from modules import cache, devices, shared
from modules.ui_common import refresh_symbol
from modules.ui_components import ToolButton

from ..cache.features import FeatureCache
from ..cache.folder import LatentFolder
from ..cache.images import ImageFolder
from ..cache.latents import LatentCache

log = logging.getLogger("ditail")

MB = 2**20
IN_RAM, ON_GPU = "in RAM", "on the GPU"
OPTIONS = {
    "ditail_cache_mb": shared.OptionInfo(
        256, "Source latents kept in RAM (MB)", gr.Slider, {"minimum": 0, "maximum": 4096, "step": 64},
    ).info("one content image takes 1.3 MB for 20 steps at 512x512; with its latents kept, it is not inverted again"),
    "ditail_disk": shared.OptionInfo(False, "Keep source latents on disk, too").info(
        "so that they are there after a restart, too"),
    "ditail_disk_mb": shared.OptionInfo(
        1024, "Source latents kept on disk (MB)", gr.Slider, {"minimum": 0, "maximum": 65536, "step": 256},
    ),
    "ditail_features_mb": shared.OptionInfo(
        512, "Features of the target kept (MB)", gr.Slider, {"minimum": 0, "maximum": 16384, "step": 64},
    ).info("0 = off; a further image from the same source latents with the same target then costs no more than a "
           "plain one. 20 steps at 512x512 take 142 MB in half precision; what doesn't fit is computed"),
    "ditail_features_place": shared.OptionInfo(
        IN_RAM, "Keep features", gr.Radio, {"choices": [IN_RAM, ON_GPU]},
    ),
    "ditail_images_mb": shared.OptionInfo(
        256, "Content images and masks kept (MB)", gr.Slider, {"minimum": 0, "maximum": 4096, "step": 64},
    ).info("in the extension's folder, so that pasting an image's settings brings them back; 0 = none are kept"),
}

LATENTS = LatentCache(OPTIONS["ditail_cache_mb"].default * MB)
FOLDER = LatentFolder(os.path.join(cache.cache_dir, "ditail"), OPTIONS["ditail_disk_mb"].default * MB)
FEATURES = FeatureCache(OPTIONS["ditail_features_mb"].default * MB)
# Files in the extension's folder that git ignores survive updates.
ROOT = Path(__file__).resolve().parents[2]
IMAGES = ImageFolder(ROOT / "kept_images", OPTIONS["ditail_images_mb"].default * MB)


def apply_settings() -> None:
    """Apply the settings to the caches, dropping what no longer fits."""
    LATENTS.budget, FOLDER.budget = _bytes("ditail_cache_mb"), _bytes("ditail_disk_mb")
    LATENTS.folder = FOLDER if _option("ditail_disk") else None
    LATENTS.trim()
    on_gpu = _option("ditail_features_place") == ON_GPU
    FEATURES.resize(_bytes("ditail_features_mb"), devices.device if on_gpu else "cpu")
    if IMAGES.budget != _bytes("ditail_images_mb"):
        IMAGES.budget = _bytes("ditail_images_mb")
        IMAGES.trim()


def _option(name: str):
    return getattr(shared.opts, name, OPTIONS[name].default)


def _bytes(name: str) -> int:
    return int(_option(name) * MB)  # the settings page and the API may set a float


def clear() -> None:
    """Empty all caches, the folder even if it is switched off. Content images stay: they can't be computed again."""
    LATENTS.clear()
    FOLDER.clear()
    FEATURES.clear()
    devices.torch_gc()


def sizes() -> str:
    """The caches' numbers of entries and sizes, as HTML."""
    rows = [("Source latents in RAM", len(LATENTS), LATENTS.nbytes), ("on disk", len(FOLDER), FOLDER.nbytes),
            ("features of steps", len(FEATURES), FEATURES.nbytes), ("content images", len(IMAGES), IMAGES.nbytes)]
    return "; ".join(f"{name}: {count} ({nbytes / MB:.1f} MB)" for name, count, nbytes in rows)


def add_options() -> None:
    """Add the settings and the caches' sizes to the settings page."""
    note = shared.OptionHTML("Latents and features only save time: without them, the same images come out.")
    note.component = _sizes_and_buttons
    for name, option in shared.options_section(("ditail", "Ditail"), {**OPTIONS, "ditail_caches": note}).items():
        option.onchange = apply_settings
        shared.opts.add_option(name, option)


def _sizes_and_buttons(label: str, value, elem_id: str):
    """The caches' sizes and a button that empties them. Returns the component that shows the option's text."""
    with gr.Row(elem_id="ditail_caches"):
        table = gr.HTML(sizes, elem_id="ditail_cache_sizes")
        refresh = ToolButton(refresh_symbol, elem_id="ditail_refresh_caches", tooltip="Refresh")
        empty = gr.Button("Empty the caches", elem_id="ditail_empty_caches")
    refresh.click(sizes, outputs=[table], show_progress=False)
    empty.click(clear).then(sizes, outputs=[table], show_progress=False)
    return gr.HTML(value, elem_id=elem_id, elem_classes="settings-info")
