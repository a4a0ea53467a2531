"""The m x m matrix in both tabs of the real WebUI."""

import threading
import time

import pytest

from tests.webui.webui_helpers import SIDE, difference, likeness

HOUSE = ["house-noto", "house-flat", "house-ink"]


def matrix(webui, tab="txt2img", settings=None, checkpoints=tuple(HOUSE), **overrides):
    return webui.generate(tab=tab, script_name="Ditail matrix",
                          script_args=[{"checkpoints": list(checkpoints), **(settings or {})}], **overrides)


def plain(webui, name, **overrides):
    return webui.generate(override_settings={"sd_model_checkpoint": name}, **overrides).image


def test_of_generated_content(webui):
    webui.generate()
    before = webui.checkpoint_loads()
    made = matrix(webui, settings={"conv_ratio": 1.0, "attn_ratio": 1.0}, steps=15, sampler_name="Euler a")
    assert webui.checkpoint_loads() - before <= 2 * len(HOUSE)
    assert len(made.images) == len(made.infotexts) == 1 + 9
    assert made.images[0].width > 3 * SIDE and made.images[0].height > 3 * SIDE
    cells = made.images[1:]
    for i, name in enumerate(HOUSE):
        assert difference(cells[4 * i], plain(webui, name, steps=15, sampler_name="Euler a")) == 0
        assert "Ditail" not in made.infotexts[1 + 4 * i]
        for j in range(3):
            assert f"Model: {HOUSE[j]}" in made.infotexts[1 + 3 * i + j]
            if i != j:
                assert f"Ditail source checkpoint: {name}" in made.infotexts[1 + 3 * i + j]
    # One seed makes alike images anyway; a cell is nearer to its row's than the plain image of its column is.
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    mixed = sum(likeness(cells[3 * i + j], cells[4 * i]) for i, j in pairs)
    unmixed = sum(likeness(cells[4 * j], cells[4 * i]) for i, j in pairs)
    assert mixed > unmixed


def test_a_cell_is_what_the_tab_makes(webui):
    cells = matrix(webui, checkpoints=HOUSE[:2]).images[1:]
    alone = webui.generate({"source": "generate", "source_checkpoint": HOUSE[0]},
                           override_settings={"sd_model_checkpoint": HOUSE[1]})
    assert difference(cells[1], alone.image) < 0.6


@pytest.mark.parametrize("one_source", [False, True])
def test_of_an_init_image(webui, base64_content, one_source):
    asked = {"init_images": [base64_content], "denoising_strength": 0.8}
    before = webui.checkpoint_loads()
    settings = {"one_source": one_source, "source_checkpoint": "house-noto", "alpha": 2.0}
    made = matrix(webui, "img2img", settings, **asked)
    assert webui.checkpoint_loads() - before <= 2 * len(HOUSE)
    assert len(made.images) == 1 + (3 if one_source else 9)
    # The diagonal is the model's own inversion and sampling of the init image, no plain image.
    for image, target in zip(made.images[1:3], ("house-noto", "house-flat"), strict=True):
        alone = webui.generate({"source_checkpoint": "house-noto", "alpha": 2.0}, "img2img",
                               override_settings={"sd_model_checkpoint": target}, **asked)
        assert difference(image, alone.image) < 0.001  # with the target's features cached, rounding may differ


def test_of_a_collage(webui, base64_content):
    piece = {"image": base64_content, "box": [0, 0, 0.5, 1]}
    made = matrix(webui, settings={"collage": [piece]}, checkpoints=HOUSE[:2])
    assert "Ditail source: image" in made.infotexts[2] and "Ditail collage: 0 0 0.5 1" in made.infotexts[2]


def test_lora_models(webui):
    names = ["house-noto", "house-noto + <lora:test-lora:1>"]
    made = matrix(webui, checkpoints=names)
    with_lora = plain(webui, "house-noto", prompt="a fox on pink <lora:test-lora:1>")
    assert difference(made.images[4], with_lora) == 0
    assert difference(made.images[1], plain(webui, "house-noto")) == 0
    assert difference(made.images[2], made.images[3]) > 0.5


def test_lora_models_with_a_prompt_of_the_hires_pass(webui):
    """A model's tags are its own in both passes."""
    asked = {"steps": 4, "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    names, tag = ["house-noto", "house-noto + <lora:test-lora:1>"], "<lora:test-lora:1>"
    made = matrix(webui, checkpoints=names, **asked, hr_prompt="a fox on mint")
    with_lora = plain(webui, "house-noto", prompt=f"a fox on pink {tag}", hr_prompt=f"a fox on mint {tag}", **asked)
    assert difference(made.images[4], with_lora) == 0


def test_batches(webui):
    made = matrix(webui, checkpoints=HOUSE[:2], batch_size=2, steps=4)
    assert len(made.images) == 1 + 4 * 2


@pytest.mark.parametrize(("settings", "key"), [
    ({"checkpoints": []}, "checkpoints"), ({"checkpoints": ["house-ink"]}, "checkpoints"),
    ({"checkpoints": "house-ink"}, "checkpoints"), ({"checkpoints": ["house-ink", "none-such"]}, "checkpoints"),
    ({"checkpoints": ["house-ink", 3]}, "checkpoints"), ({"alpha": 11}, "alpha"), ({"nonsense": 1}, "nonsense"),
    ({"checkpoints": ["house-ink", "other-architecture"]}, "checkpoints"), ({"one_source": "yes"}, "one_source"),
    ({"source": "image"}, "image"),
])
def test_bad_input_is_refused_before_anything_is_made(webui, settings, key):
    answer = matrix(webui, settings={"checkpoints": HOUSE, **settings})
    assert answer.status == 422 and answer.error.startswith(f"{key}: ")


def test_interrupting_gives_what_is_done(webui):
    webui.generate()
    webui.generate()  # the WebUI writes a checkpoint's full title into the setting only where it has to load it
    before = webui.state()
    answers = []
    job = threading.Thread(target=lambda: answers.append(matrix(webui, steps=40)))
    job.start()
    deadline = time.monotonic() + 120
    while "4 out of 9" not in str(webui.call("/sdapi/v1/progress?skip_current_image=true").json["state"]):
        assert time.monotonic() < deadline and job.is_alive()
        time.sleep(0.1)
    webui.call("/sdapi/v1/interrupt", {})
    job.join(120)
    made = answers[0]
    assert made.status == 200 and 4 <= len(made.images) < 10
    assert made.images[0].width > 3 * SIDE
    webui.generate()
    after = webui.state()
    assert {k: v for k, v in after.items() if k != "torch_rng"} == {k: v for k, v in before.items() if k != "torch_rng"}
