"""What people use today between a content image and another checkpoint, measured in the real WebUI; prints a table.

    SD_WEBUI_DIR=... SD_WEBUI_PYTHON=... SD_WEBUI_CONTROLNET_DIR=... python -m tests.webui.measure_rivals [SCENES]

The same scenes, prompts, seeds, steps and CFG scale for all, in all six directions between the demo checkpoints; style
and structure as in `lab.metrics`. ControlNet's models (canny, tile) are trained for SD 1.5 and don't fit the demo
checkpoints; its reference preprocessors need no model.
"""

import sys
import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np

from ditail.content.images import image_to_tensor
from ditail.content.presets import PRESETS
from ditail.standalone import demo_checkpoints
from lab import metrics
from tests.webui.data_folder import prepare
from tests.webui.server import running
from tests.webui.webui_helpers import encode

SCENES = 20
USUAL = {"steps": 10, "cfg_scale": 5, "sampler_name": "DDIM"}
IMG2IMG = {"denoising_strength": 0.6}


def reference(module: str, image: str) -> dict:
    """The script's arguments of a ControlNet unit without a model."""
    unit = {"enabled": True, "module": module, "model": "None", "image": image, "weight": 1.0, "threshold_a": 0.5,
            "control_mode": "Balanced", "pixel_perfect": True}
    return {"alwayson_scripts": {"ControlNet": {"args": [unit]}}}


def jobs(image: str, source: str) -> dict[str, tuple]:
    """(Ditail's settings, tab, further keys of the request), by the method's name."""
    init = {"init_images": [image], **IMG2IMG}
    ditail = {"image": image, "source_checkpoint": source}
    return {
        "plain": (None, "txt2img", {}),
        "img2img 0.6": (None, "img2img", init),
        "reference_only": (None, "txt2img", reference("reference_only", image)),
        "reference_only in img2img 0.6": (None, "img2img", {**init, **reference("reference_only", image)}),
        "reference_adain+attn": (None, "txt2img", reference("reference_adain+attn", image)),
        "Ditail, Paper": (ditail, "txt2img", {}),
        "Ditail, Balanced": ({**ditail, **PRESETS["Balanced"]}, "txt2img", {}),
    }


def main(count: int) -> None:
    scenes = demo_checkpoints.held_out()
    styles = demo_checkpoints.STYLES
    classifier = metrics.load_classifier(demo_checkpoints.classifier_path(), len(styles))
    scores: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, running(prepare(Path(folder)), "--no-half") as webui:
        # By target, so that checkpoints are changed as seldom as can be.
        for source, target in sorted(permutations(styles, 2), key=lambda pair: pair[1]):
            for number in range(count):
                content = scenes.images[source][number]
                edges = metrics.find_edges(np.asarray(content, float) / 255)
                for name, (ditail, tab, asked) in jobs(encode(content), f"house-{source}").items():
                    answer = webui.generate(ditail, tab, prompt=scenes.captions[number], seed=number, **USUAL, **asked,
                                            override_settings={"sd_model_checkpoint": f"house-{target}"})
                    image = answer.image
                    style = float(classifier.probabilities(image_to_tensor(image))[0, styles.index(target)])
                    structure = metrics.edge_f1(metrics.find_edges(np.asarray(image, float) / 255), edges)
                    scores.setdefault(name, []).append((style, structure))
            print(f"{source} to {target}: done", file=sys.stderr, flush=True)
    print("| method | images | style | edge F1 |\n| --- | ---: | ---: | ---: |")
    for name, values in scores.items():
        means, errors = np.mean(values, 0), np.std(values, 0, ddof=1) / len(values) ** 0.5
        cells = [f"{mean:.3f} ±{error:.3f}" for mean, error in zip(means, errors, strict=True)]
        print(f"| {name} | {len(values)} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SCENES)
