"""Images in requests, and measures of likeness."""

import base64
import io
from pathlib import Path

import torch
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file, save_file

from ditail.content.images import image_to_tensor

SIDE = 128


def encode(image: Image.Image, image_format: str = "PNG", **options) -> str:
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return base64.b64encode(data.getvalue()).decode()


def negate_lora(path: Path) -> None:
    """Put another LoRA in a file's place; the WebUI still reads the tensors of the one that it has opened."""
    save_file({name: -tensor if "up" in name else tensor for name, tensor in load_file(path).items()},
              path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def on(checkpoint: str, **options) -> dict:
    """A request's overrides for a job on a checkpoint."""
    return {"override_settings": {"sd_model_checkpoint": checkpoint, **options}}


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference of two images of one size, in grey levels."""
    assert a.size == b.size
    return sum(ImageStat.Stat(ImageChops.difference(a, b)).mean) / 3


def likeness(a: Image.Image, b: Image.Image) -> float:
    """How well the edges of two images coincide: the correlation of their gradients, 1 for the same image."""
    def edges(image):
        x = image_to_tensor(image).mean(1)
        x = torch.nn.functional.avg_pool2d(x, 4)
        x = (x.diff(dim=-1)[:, :-1].abs() + x.diff(dim=-2)[:, :, :-1].abs()).flatten()
        return x - x.mean()

    return float(torch.nn.functional.cosine_similarity(edges(a), edges(b), dim=0))
