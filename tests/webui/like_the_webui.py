"""Forge's image beside the one that AUTOMATIC1111's WebUI makes of the same content image, seed and checkpoints.

    SD_WEBUI_DIR=... SD_WEBUI_PYTHON=... python -m tests.webui.like_the_webui    writes the WebUI's images
    SD_FORGE_DIR=... SD_FORGE_PYTHON=... python -m tests.webui.like_the_webui    says how near Forge's are

Beside the grey levels, style and structure of both images, as the evaluation measures them.
"""

import tempfile
from pathlib import Path

from PIL import Image

from ditail.content.images import image_to_tensor
from ditail.standalone import demo_checkpoints
from lab.metrics import StyleClassifier, edge_f1, find_edges, load_classifier, to_arrays
from tests.webui.data_folder import ASSETS, HERE, prepare
from tests.webui.server import IS_FORGE, NO_HALF, running
from tests.webui.webui_helpers import SIDE, difference, encode

IMAGES = HERE / "webui_images"
STEPS = 20
TARGET = "ink"
JOBS = {
    "DDIM": {}, "Euler": {"sampler_name": "Euler"}, "DPM++ 2M": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
    "DDIM img2img": {"tab": "img2img", "denoising_strength": 0.75}, "DDIM cond": {"inject": "cond"},
    "DDIM contours": {"contours": 0.4},
    "DDIM early guidance": {"guidance_until": 0.6}, "DDIM tone": {"tone": 0.5, "inversion_steps": 0.5},
}


def content() -> Image.Image:
    return Image.open(ASSETS / "held_out_noto.png").convert("RGB").crop((0, 0, SIDE, SIDE))


def image_of(webui, name: str) -> Image.Image:
    """The image that a host makes: noto's content in ink's style."""
    overrides = dict(JOBS[name])
    settings = {"image": encode(content()), "source_checkpoint": "house-noto"}
    keys = ("inject", "guidance_until", "contours", "tone", "inversion_steps")
    settings |= {key: overrides.pop(key) for key in keys if key in overrides}
    if overrides.get("tab") == "img2img":
        overrides["init_images"] = [settings.pop("image")]
    return webui.generate(settings, steps=STEPS, **overrides).image


def path_of(name: str) -> Path:
    return IMAGES / f"{name.replace(' ', '-')}.png"


def style_and_structure(image: Image.Image, classifier: StyleClassifier) -> tuple[float, float]:
    """(the classifier's probability of the target's style, F1 of the edges against the content image's)."""
    pixels = image_to_tensor(image)
    edges, content_edges = (find_edges(to_arrays(x)[0]) for x in (pixels, image_to_tensor(content())))
    style = classifier.probabilities(pixels)[0, demo_checkpoints.STYLES.index(TARGET)]
    return float(style), edge_f1(edges, content_edges)


def compare(name: str, image: Image.Image, classifier: StyleClassifier) -> str:
    """How near Forge's image is to the WebUI's, in words."""
    other = Image.open(path_of(name)).convert("RGB")
    hosts = {"WebUI": other, "Forge": image}
    values = [f"{host} style {style:.4f}, edge F1 {edges:.4f}" for host, (style, edges) in
              ((host, style_and_structure(one, classifier)) for host, one in hosts.items())]
    return f"{name}: {difference(image, other):.4f} of 255 levels; {'; '.join(values)}"


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    classifier = load_classifier(demo_checkpoints.classifier_path())
    with tempfile.TemporaryDirectory() as folder, running(prepare(Path(folder) / "data"), *NO_HALF) as webui:
        for name in JOBS:
            image = image_of(webui, name)
            if IS_FORGE:
                print(compare(name, image, classifier))  # noqa: T201
            else:
                image.save(path_of(name))


if __name__ == "__main__":
    main()
