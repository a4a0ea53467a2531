"""What a job wrote into its image comes back, in the API as in the tab."""

import json
import re

import pytest

from ditail.content.presets import DEFAULT_PRESET, PRESETS
from tests.webui.webui_helpers import SIDE, encode

KEYS = {
    "Ditail source": "image", "Ditail resize mode": "fill", "Ditail alpha": "2.5", "Ditail beta": "0.25",
    "Ditail feature ratio": "0.6", "Ditail attention ratio": "0.4", "Ditail start": "noise",
    "Ditail source prompt": "a fox, red", "Ditail source negative prompt": "blurry: very",
}
SETTINGS = {
    "resize_mode": "fill", "alpha": 2.5, "beta": 0.25, "conv_ratio": 0.6, "attn_ratio": 0.4, "start": "noise",
    "source_prompt": "a fox, red", "source_negative_prompt": "blurry: very",
}


@pytest.fixture
def made(webui, ditail):
    return webui.generate({**ditail, **SETTINGS})


def test_png_info_has_every_setting(webui, made):
    parsed = webui.call("/sdapi/v1/png-info", {"image": "data:image/png;base64," + made.json["images"][0]})
    assert {k: v for k, v in parsed.json["parameters"].items() if k in KEYS} == KEYS
    # With its hash, where the WebUI has been asked for one.
    assert parsed.json["parameters"]["Ditail source checkpoint"].partition(" [")[0] == "house-noto"
    assert len(parsed.json["parameters"]["Ditail image hash"]) == 10


def test_infotext_in_a_request_makes_the_same_image(webui, made, base64_content):
    """The API reads settings from infotext; the content image alone has to be sent along."""
    script = next(s for s in webui.call("/sdapi/v1/script-info").json if s["name"] == "ditail")
    assert [a["label"] for a in script["args"][:2]] == ["Ditail", "Source"]
    # The controls before the image have to be named for the image to be reached by position.
    answer = webui.call("/sdapi/v1/txt2img", {
        "infotext": made.infotext, "scheduler": "Automatic",
        "alwayson_scripts": {"Ditail": {"args": [True, "image", "data:image/png;base64," + base64_content]}},
    })
    assert answer.image.tobytes() == made.image.tobytes()


def test_infotext_beside_settings_of_the_request(webui, made, ditail):
    """The settings' own image counts, and not that of the infotext, which may be missing."""
    infotext = re.sub(r"Ditail image hash: \w+", "Ditail image hash: 0123456789, Ditail image name: other.png",
                      made.infotext)
    assert webui.generate(infotext=infotext).status == 422
    answer = webui.generate({**ditail, **SETTINGS}, infotext=infotext)
    assert answer.status == 200, answer.json
    assert answer.infotext == made.infotext


def test_plain_images_have_no_trace(webui):
    assert "Ditail" not in webui.generate().infotext


def test_hash_tells_content_images_apart(webui, ditail, content):
    def hash_of(answer):
        return answer.infotext.split("Ditail image hash: ")[1][:10]

    other = {**ditail, "image": encode(content.rotate(90))}
    first, again, turned = (webui.generate(s, steps=2) for s in (ditail, {**ditail, "alpha": 1}, other))
    assert hash_of(first) == hash_of(again) != hash_of(turned)


@pytest.mark.parametrize("is_img2img", [False, True])
def test_script_info_has_labels_and_defaults(webui, is_img2img):
    script = next(s for s in webui.call("/sdapi/v1/script-info").json
                  if s["name"] == "ditail" and s["is_img2img"] is is_img2img)
    assert script["is_alwayson"] and all(arg["label"] for arg in script["args"])
    by_label = {arg["label"]: arg for arg in script["args"]}
    assert len(by_label) == len(script["args"])  # the WebUI stores a control's default by its label
    alpha, at_first = by_label["Alpha"], PRESETS[DEFAULT_PRESET]["alpha"]
    assert (alpha["value"], alpha["minimum"], alpha["maximum"]) == (at_first, 0, 10)
    assert "Same as target" in by_label["Source checkpoint"]["choices"]
    assert len([c for c in by_label["Source checkpoint"]["choices"] if c.startswith("house-")]) == 3


def test_stored_defaults_are_of_controls_that_the_user_sees(webui):
    """What hidden controls hold at one moment is no default: a stored `Missing` would refuse every later job."""
    stored = json.loads((webui.data / "ui-config.json").read_text())
    labels = {key.split("/")[-2] for key in stored if "/txt2img/" in f"/{key}"}
    assert {"Alpha", "Source checkpoint", "Second source checkpoint", "Content of the second source"} <= labels
    assert labels & {"Image name", "Missing", "Task", "Facts"} == set()


def test_size_of_the_answer(webui, ditail):
    made = webui.generate(ditail, width=SIDE + 64, height=SIDE, steps=2)
    assert made.image.size == (SIDE + 64, SIDE)
