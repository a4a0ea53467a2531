"""Images from the real WebUI through its API."""

import subprocess
import sys

import pytest
from PIL import Image

from tests.webui.server import LOADS_TO_GO_BACK
from tests.webui.webui_helpers import SIDE, difference, encode, likeness


def test_content_from_the_image_and_style_from_the_target(webui, ditail, content):
    plain = webui.generate(steps=20)
    mixed = webui.generate(ditail, steps=20)
    assert likeness(mixed.image, content) > likeness(plain.image, content) + 0.1
    assert difference(mixed.image, content) > 5


def test_client_library(webui, base64_content):
    webuiapi = pytest.importorskip("webuiapi")
    api = webuiapi.WebUIApi(baseurl=f"{webui.url}/sdapi/v1")
    settings = {"enabled": True, "image": base64_content, "source_checkpoint": "house-noto"}
    made = api.txt2img(prompt="a fox on pink", seed=1, steps=4, width=SIDE, height=SIDE, sampler_name="DDIM",
                       alwayson_scripts={"Ditail": {"args": [settings]}})
    assert "Ditail alpha: 3" in made.info["infotexts"][0]
    assert made.image.size == (SIDE, SIDE)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_every_sampler_and_scheduler(webui, base64_content, tab):
    samplers = [s["name"] for s in webui.call("/sdapi/v1/samplers").json]
    schedulers = [s["label"] for s in webui.call("/sdapi/v1/schedulers").json]
    assert len(samplers) >= 20 and len(schedulers) >= 12
    # UniPC refuses less than three steps, with Ditail or without.
    own = {"init_images": [base64_content], "denoising_strength": 0.8} if tab == "img2img" else {}
    failed = []
    for sampler, scheduler in [(s, "Automatic") for s in samplers] + [("Euler", s) for s in schedulers]:
        asked = {"sampler_name": sampler, "scheduler": scheduler, "steps": 4, "tab": tab, **own}
        plain, mixed = webui.generate(**asked), webui.generate({"image": base64_content}, **asked)
        if mixed.status != 200 or difference(plain.image, mixed.image) < 1 or "Ditail alpha" not in mixed.infotext:
            failed.append((sampler, scheduler, mixed.status, mixed.error))
    assert failed == []


def test_loads_cold_and_none_warm(webui, ditail):
    webui.generate()
    before = webui.checkpoint_loads()
    cold = webui.generate({**ditail, "alpha": 2.25})
    assert webui.checkpoint_loads() - before == 1 + LOADS_TO_GO_BACK
    warm = webui.generate({**ditail, "alpha": 2.25})
    assert webui.checkpoint_loads() - before == 1 + LOADS_TO_GO_BACK
    assert cold.image.tobytes() == warm.image.tobytes()


def test_nothing_is_loaded_for_the_same_checkpoint(webui, base64_content):
    webui.generate()
    before = webui.checkpoint_loads()
    webui.generate({"image": base64_content, "alpha": 2.5})
    assert webui.checkpoint_loads() == before


@pytest.mark.parametrize("changed", [{"alpha": 1.0}, {"beta": 2.0}, {"source_prompt": "a boat"}, {"image": None},
                                     {"source_checkpoint": "house-flat"}, {"resize_mode": "fill"}])
def test_changed_settings_are_not_served_from_the_cache(webui, content, changed):
    wide = encode(content.resize((SIDE * 2, SIDE)))
    settings = {"image": wide, "source_checkpoint": "house-noto", "alpha": 2.75}
    first = webui.generate(settings)
    changed = {**changed, **({"image": encode(content.rotate(180))} if "image" in changed else {})}
    assert difference(first.image, webui.generate({**settings, **changed}).image) > 0.5


def test_without_injection_and_from_noise_it_is_the_plain_image(webui, ditail):
    plain = webui.generate().image.tobytes()
    nowhere = encode(Image.new("L", (SIDE, SIDE), 0))
    assert webui.generate({**ditail, "start": "noise", "conv_ratio": 0, "attn_ratio": 0}).image.tobytes() == plain
    assert webui.generate({**ditail, "start": "noise", "mask": nowhere}).image.tobytes() == plain


def test_mask_keeps_the_content_on_its_side(webui, ditail, content):
    left = Image.new("L", (SIDE, SIDE), 0)
    left.paste(255, (0, 0, SIDE // 2, SIDE))
    plain = webui.generate(steps=12)
    masked = webui.generate({**ditail, "start": "noise", "mask": encode(left)}, steps=12)
    halves = ((0, 0, SIDE // 2, SIDE), (SIDE // 2, 0, SIDE, SIDE))
    changed = [difference(plain.image.crop(box), masked.image.crop(box)) for box in halves]
    assert changed[0] > changed[1]


def test_custom_layers(webui, ditail):
    usual = webui.generate(ditail)
    assert webui.generate({**ditail, "layers": "f4 a4-11"}).image.tobytes() == usual.image.tobytes()
    chosen = webui.generate({**ditail, "layers": "f4@0.2-0.9 a3-8"})
    assert difference(chosen.image, usual.image) > 0.3
    assert "Ditail layers: f4@0.2-0.9 a3-8" in chosen.infotext
    answer = webui.generate({**ditail, "layers": "a2-11"})
    assert answer.status == 422 and answer.error.startswith("layers: ") and "output_blocks.2" in answer.error


def test_init_image_is_the_content_in_img2img(webui, ditail, base64_content, content):
    own = {"tab": "img2img", "init_images": [base64_content]}
    by_default = webui.generate({**ditail, "image": None}, denoising_strength=0.75, **own)
    as_given = webui.generate(ditail, denoising_strength=0.75, **own)
    assert difference(by_default.image, as_given.image) < 1
    depths = [webui.generate({**ditail, "image": None}, denoising_strength=d, **own) for d in (0.3, 0.9)]
    assert difference(depths[0].image, content) < difference(depths[1].image, content)


def test_every_image_of_a_batch(webui, ditail):
    settings = {**ditail, "start": "noise"}
    batch = webui.generate(settings, batch_size=2, n_iter=2, seed=5)
    assert len(batch.images) == 4
    for i, image in enumerate(batch.images):
        assert difference(image, webui.generate(settings, seed=5 + i).image) < 1


def test_hires_fix_takes_the_content_in_both_passes(webui, ditail, content):
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    plain, mixed = webui.generate(**hires), webui.generate(ditail, **hires)
    large = content.resize((192, 192))
    assert mixed.image.size == (192, 192)
    assert likeness(mixed.image, large) > likeness(plain.image, large)


def test_same_image_as_the_command_line(webui, ditail, content, tmp_path):
    content.save(tmp_path / "in.png")
    models = webui.data / "models" / "Stable-diffusion"
    subprocess.run([
        sys.executable, "-m", "ditail", "mix", "--source", str(models / "house-noto.safetensors"), "--target",
        str(models / "house-ink.safetensors"), "--image", str(tmp_path / "in.png"), "--out", str(tmp_path / "out.png"),
        "--prompt", "a fox on pink", "--cfg", "5", "--steps", "20", "--sampler", "DDIM (WebUI)",
    ], check=True)
    ours = webui.generate(ditail, steps=20).image
    theirs = Image.open(tmp_path / "out.png").convert("RGB")
    assert difference(ours, theirs) < 1


@pytest.mark.parametrize(("cfg_scale", "count"), [(5.0, 0), (10.0, 0), (25.0, 1)])
def test_a_job_outside_the_safe_region_has_a_warning(webui, ditail, cfg_scale, count):
    assert webui.generate(ditail, cfg_scale=cfg_scale, steps=2).status == 200
    comments = webui.call("/ditail-test/comments").json
    assert sum(f"CFG scale {cfg_scale:g} is above 10" in comment for comment in comments) == count
    assert sum("burnt colours" in comment for comment in comments) == count
