"""Bad input is refused in a sentence that names the key, and never ends in a plain image."""

import base64
import io
import struct
import threading
import zlib

import pytest
from PIL import Image

from tests.webui.webui_helpers import SIDE, difference, encode


def huge_png() -> bytes:
    """A PNG of 16384 x 16384 pixels whose data is a few bytes."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16384, 16384, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


BAD = {
    "no image": ({"image": None}, "image"),
    "text as base64": ({"image": "aGVsbG8gd29ybGQ="}, "image"),
    "not base64": ({"image": "C:\\image.png"}, "image"),
    "a number as image": ({"image": 5}, "image"),
    "16k x 16k": ({"image": base64.b64encode(huge_png()).decode()}, "image"),
    "unknown checkpoint": ({"source_checkpoint": "no-such-model"}, "source_checkpoint"),
    "other architecture": ({"source_checkpoint": "other-architecture"}, "source_checkpoint"),
    "no checkpoint at all": ({"source_checkpoint": "broken"}, "source_checkpoint"),
    "unknown VAE": ({"source_vae": "no-such.vae"}, "source_vae"),
    "alpha as text": ({"alpha": "abc"}, "alpha"),
    "alpha -1": ({"alpha": -1}, "alpha"),
    "alpha 11": ({"alpha": 11}, "alpha"),
    "alpha true": ({"alpha": True}, "alpha"),
    "alpha null": ({"alpha": None}, "alpha"),
    "beta 10.5": ({"beta": 10.5}, "beta"),
    "ratio over 1": ({"conv_ratio": 1.5}, "conv_ratio"),
    "ratio a list": ({"attn_ratio": [0.5]}, "attn_ratio"),
    "unknown start": ({"start": "middle"}, "start"),
    "unknown source": ({"source": "video"}, "source"),
    "unknown resize mode": ({"resize_mode": 0}, "resize_mode"),
    "unknown key": ({"alhpa": 1}, "alhpa"),
    "enabled as text": ({"enabled": "yes"}, "enabled"),
    "mask not an image": ({"mask": "aGVsbG8="}, "mask"),
}


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
@pytest.mark.parametrize("case", BAD)
def test_refused_with_the_key(webui, ditail, base64_content, tab, case):
    changed, key = BAD[case]
    if tab == "img2img" and case == "no image":
        pytest.skip("in img2img the init image is the content image")
    own = {"init_images": [base64_content]} if tab == "img2img" else {}
    answer = webui.generate({**ditail, **changed}, tab=tab, steps=2, **own)
    assert answer.status == 422, answer.json
    assert answer.error.startswith(f"{key}: ") and "images" not in answer.json


def test_nan_is_refused(webui, ditail):
    # NaN is not JSON, but Python's parser takes it.
    answer = webui.generate({**ditail, "alpha": float("nan")})
    assert answer.status == 422 and answer.error.startswith("alpha: ")


@pytest.mark.parametrize("args", [[5], ["on"], [[1]]])
def test_arguments_of_no_kind_are_refused(webui, args):
    answer = webui.generate(steps=2, alwayson_scripts={"Ditail": {"args": args}})
    assert answer.status == 422 and "must be" in answer.error


def test_an_inversion_that_diverges_raises(webui, ditail):
    """By a LoRA of a weight that no float32 holds the product of."""
    plain = webui.generate(steps=2).image.tobytes()
    answer = webui.generate({**ditail, "source_prompt": "a fox on pink <lora:test-lora:1e38>"}, steps=2)
    assert answer.status == 422 and "no longer finite at step 1" in answer.error, answer.json
    assert webui.generate(steps=2).image.tobytes() == plain


def test_odd_images_are_taken(webui, content, ditail):
    rgba = content.convert("RGBA")
    rgba.putalpha(128)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright = webui.generate({**ditail, "image": encode(content.rotate(-90))})
    turned = webui.generate({**ditail, "image": encode(content, "PNG", exif=exif)})
    assert difference(upright.image, turned.image) < 1
    jpeg_url = "data:image/jpeg;base64," + encode(content, "JPEG", quality=95)
    for image in (encode(Image.new("RGB", (1, 1), "red")), encode(content.convert("L")), encode(rgba), jpeg_url,
                  encode(content.resize((600, 90)))):
        assert webui.generate({**ditail, "image": image}, steps=2).image.size == (SIDE, SIDE)


def test_checkpoint_deleted_while_running(webui, ditail):
    models = webui.data / "models" / "Stable-diffusion"
    doomed = models / "doomed.safetensors"
    doomed.write_bytes((models / "house-flat.safetensors").read_bytes())
    doomed.with_suffix(".yaml").write_text((models / "house-flat.yaml").read_text())
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    plain = webui.generate().image.tobytes()
    doomed.unlink()
    answer = webui.generate({**ditail, "source_checkpoint": "doomed"})
    assert answer.status == 422 and answer.error.startswith("source_checkpoint: ")
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    assert webui.generate().image.tobytes() == plain


def test_two_requests_at_once(webui, ditail):
    expected = [webui.generate({**ditail, "alpha": a}).image.tobytes() for a in (1.5, 3.5)]
    answers = {}
    threads = [threading.Thread(target=lambda a=a: answers.update({a: webui.generate({**ditail, "alpha": a})}))
               for a in (1.5, 3.5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[a].image.tobytes() for a in (1.5, 3.5)] == expected


def test_image_bytes_are_what_the_test_means():
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(huge_png()))
