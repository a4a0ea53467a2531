"""Forge's image beside the one that AUTOMATIC1111's WebUI makes of the same content image, seed and checkpoints.

    SD_WEBUI_DIR=... SD_WEBUI_PYTHON=... python -m tests.webui.like_the_webui    writes the WebUI's images
    SD_FORGE_DIR=... SD_FORGE_PYTHON=... python -m tests.webui.like_the_webui    says how near Forge's are
"""

import tempfile
from pathlib import Path

from PIL import Image

from tests.webui.data_folder import ASSETS, HERE, prepare
from tests.webui.server import IS_FORGE, NO_HALF, running
from tests.webui.webui_helpers import SIDE, difference, encode

IMAGES = HERE / "webui_images"
STEPS = 20
JOBS = {
    "DDIM": {}, "Euler": {"sampler_name": "Euler"}, "DPM++ 2M": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
    "DDIM img2img": {"tab": "img2img", "denoising_strength": 0.75}, "DDIM cond": {"inject": "cond"},
    "DDIM early guidance": {"guidance_until": 0.6}, "DDIM tone": {"tone": 0.5, "inversion_steps": 0.5},
}


def content() -> Image.Image:
    return Image.open(ASSETS / "held_out_noto.png").convert("RGB").crop((0, 0, SIDE, SIDE))


def image_of(webui, name: str) -> Image.Image:
    """The image that a host makes: noto's content in ink's style."""
    overrides = dict(JOBS[name])
    settings = {"image": encode(content()), "source_checkpoint": "house-noto"}
    keys = ("inject", "guidance_until", "tone", "inversion_steps")
    settings |= {key: overrides.pop(key) for key in keys if key in overrides}
    if overrides.get("tab") == "img2img":
        overrides["init_images"] = [settings.pop("image")]
    return webui.generate(settings, steps=STEPS, **overrides).image


def path_of(name: str) -> Path:
    return IMAGES / f"{name.replace(' ', '-')}.png"


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running(prepare(Path(folder) / "data"), *NO_HALF) as webui:
        for name in JOBS:
            image = image_of(webui, name)
            if IS_FORGE:
                print(f"{name}: {difference(image, Image.open(path_of(name))):.4f} of 255 levels")  # noqa: T201
            else:
                image.save(path_of(name))


if __name__ == "__main__":
    main()
