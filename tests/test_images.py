"""Reading what users bring, and fitting it."""

import base64

import pytest
import torch
from PIL import Image, ImageChops

from ditail import DitailError
from ditail.content.images import (
    decode_base64,
    fit,
    image_to_tensor,
    mask_to_latent,
    read_image,
    read_mask,
    shrunk_to_cover,
    tensor_to_images,
)
from tests.drawings import BLUE, RED, encoded, halves


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGB", "LA", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = read_image(encoded(halves().convert("L").convert(mode), kind))
    assert image.mode == "RGB"
    assert image.size == (40, 20)


def test_transparency_is_laid_over_white_and_is_no_mask():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read_image(encoded(image)).getpixel((0, 0)) == (255, 255, 255)
    assert read_mask(encoded(Image.new("RGBA", (4, 4), (255, 255, 255, 0)))).getpixel((0, 0)) == 0


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(encoded(halves(), "JPEG", exif=exif.tobytes(), quality=95))
    assert image.size == (20, 40)
    top, bottom = image.getpixel((10, 5)), image.getpixel((10, 35))
    assert top[0] > 200 > 50 > top[2]
    assert bottom[2] > 200 > 50 > bottom[0]


def test_exif_rotation_is_applied_to_sixteen_bits():
    exif = Image.Exif()
    exif[0x0112] = 6
    left_is_grey = Image.frombytes("I;16", (40, 20), (b"\x9b\x9b" * 20 + b"\0\0" * 20) * 20)
    image = read_image(encoded(left_is_grey, exif=exif))
    assert image.size == (20, 40) and [image.getpixel((10, y))[0] for y in (5, 35)] == [155, 0]


def test_sixteen_bits_keep_their_scale():
    assert read_image(Image.new("I;16", (4, 4), 40000)).getpixel((0, 0)) == (155, 155, 155)


@pytest.mark.parametrize("data", [b"", b"hello", encoded(halves())[:60], b"\x89PNG\r\n\x1a\n" + b"x" * 50])
def test_the_error_names_a_file_that_is_no_image(data):
    with pytest.raises(DitailError, match="^image: ") as caught:
        read_image(data)
    assert caught.value.key == "image"


def test_a_missing_file_and_a_huge_image_are_named(tmp_path):
    with pytest.raises(DitailError, match="nowhere.png does not exist"):
        read_image(tmp_path / "nowhere.png")
    # 16384 x 16384 in one bit a pixel: small as a file, gigabytes as RGB.
    with pytest.raises(DitailError, match="megapixels"):
        read_image(encoded(Image.new("1", (16384, 16384))))


def test_base64_with_and_without_a_data_url():
    data = encoded(halves())
    text = base64.b64encode(data).decode()
    assert decode_base64(text) == decode_base64(f"data:image/png;base64,{text}") == data
    with pytest.raises(DitailError, match="^mask: is not base64"):
        decode_base64("not base64!", "mask")


def test_fit_crops_the_middle_fills_with_the_edge_or_stretches():
    image = halves(80, 20)
    crop, fill, stretch = (fit(image, 32, 32, mode) for mode in ("crop", "fill", "stretch"))
    assert crop.size == fill.size == stretch.size == (32, 32)
    for fitted in (crop, fill, stretch):
        assert fitted.getpixel((1, 16)) == RED
        assert fitted.getpixel((30, 16)) == BLUE
    assert fit(Image.new("RGB", (1, 1), RED), 16, 8, "fill").getpixel((15, 7)) == RED
    with pytest.raises(DitailError, match="resize_mode"):
        fit(image, 8, 8, "0")


def test_pixels_come_back_from_tensors():
    tensor = image_to_tensor(halves())
    assert tensor.shape == (1, 3, 20, 40)
    assert tensor.min() == -1 and tensor.max() == 1
    assert tensor_to_images(tensor)[0].tobytes() == halves().tobytes()


def test_an_image_is_shrunk_until_it_just_covers_a_size():
    wide = halves(900, 300)
    assert shrunk_to_cover(wide, 200, 100).size == (300, 100)
    assert shrunk_to_cover(wide, 200, 200).size == (600, 200)
    assert shrunk_to_cover(wide, 100, 300) is wide and shrunk_to_cover(wide, 1000, 1000) is wide
    near = fit(shrunk_to_cover(wide, 128, 128), 64, 64)
    assert max(high for _, high in ImageChops.difference(near, fit(wide, 64, 64)).getextrema()) <= 2


def test_an_image_in_memory_is_not_copied():
    image, mask = halves(), halves().convert("L")
    assert read_image(image) is image and read_mask(mask) is mask
    turned = halves()
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    assert read_image(turned).size == halves().size[::-1]


@pytest.mark.parametrize(("side", "cells"), [(132, 16), (127, 15), (8, 1), (4, 1)])
def test_a_mask_has_the_latents_size_at_any_size(side, cells):
    assert mask_to_latent(Image.new("L", (side, side), 255), side, side).shape == (1, 1, cells, cells)


def test_a_mask_on_the_latents_grid():
    mask = mask_to_latent(halves(128, 64).convert("L").point(lambda v: 255 if v > 50 else 0), 128, 64)
    assert mask.shape == (1, 1, 8, 16)
    expected = torch.zeros(1, 1, 8, 16)
    expected[..., :8] = 1
    assert torch.equal(mask, expected)
