"""The content's colours in an image, and when a job's images get them."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from ditail.colours import match_colours
from ditail.job.finish import finish_image


def lab(image: Image.Image) -> np.ndarray:
    return rgb2lab(np.asarray(image))


def even(red: int, green: int, blue: int, seed: int, size: int = 24) -> Image.Image:
    """An even ground with some grain, which no colour is cut off by."""
    grain = np.random.default_rng(seed).normal(0, 12, (size, size, 3))
    return Image.fromarray((np.array([red, green, blue]) + grain).clip(0, 255).astype(np.uint8), "RGB")


def test_hue_and_chroma_are_the_contents_and_the_lightness_is_kept():
    image, content = even(120, 140, 120, 1), even(170, 110, 90, 2)
    matched = match_colours(image, content)
    expected, pixels = lab(content), lab(matched)
    assert np.abs(expected[..., 1:].mean((0, 1)) - pixels[..., 1:].mean((0, 1))).max() < 1.5
    assert np.abs(lab(image)[..., 0] - pixels[..., 0]).mean() < 2
    assert np.abs(lab(image)[..., 1:].mean((0, 1)) - pixels[..., 1:].mean((0, 1))).max() > 10


def test_the_same_image_is_unchanged_and_a_uniform_one_gets_no_noise():
    image = even(120, 140, 120, 1)
    assert np.abs(np.asarray(match_colours(image, image), int) - np.asarray(image, int)).mean() < 4
    plain = match_colours(Image.new("RGB", (8, 8), (128, 128, 128)), image)
    assert np.asarray(plain).std((0, 1)).max() == 0


@pytest.mark.parametrize("colours, mask, changed", [
    ("style", None, False), ("content", None, True), ("content", Image.new("L", (24, 24), 0), False)])
def test_a_job_gets_them_where_it_is_asked_to(colours, mask, changed):
    content = even(170, 110, 90, 2)
    host = SimpleNamespace(job=SimpleNamespace(match_colours=match_colours, sampled_part=lambda image, mode: image))
    source = SimpleNamespace(content_image=lambda latents: content)
    job = SimpleNamespace(
        request=SimpleNamespace(settings=SimpleNamespace(colours=colours, resize_mode="crop"), mask=mask),
        is_plain=False, samplings={False: SimpleNamespace(sources=[source])}, latents={}, host=host)
    image = even(120, 140, 120, 1)
    assert (finish_image(job, image, 0).tobytes() != image.tobytes()) is changed
