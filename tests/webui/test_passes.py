"""Batches, second passes, inpainting and what changes the noise."""

import pytest
from PIL import Image

from tests.webui.webui_helpers import SIDE, difference, encode, likeness

SAME = {"source_checkpoint": ""}  # the target's own model: nothing is loaded
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 6, "denoising_strength": 0.6}
INSIDE, OUTSIDE = (72, 40, 104, 88), (0, 0, 40, SIDE)


@pytest.fixture
def inpainting(base64_content) -> dict:
    """A job on the content image with a box at its right masked."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (64, 32, 112, 96))
    return {"tab": "img2img", "init_images": [base64_content], "mask": encode(mask), "mask_blur": 0,
            "denoising_strength": 0.8, "inpainting_fill": 1, "inpaint_full_res": False, "inpaint_full_res_padding": 16}


def test_one_inversion_and_one_source_row(webui, ditail):
    """For all of two batches of three; the U-Net's rows are one for the source, and two for each image."""
    webui.generate(steps=1)  # the rows are counted at the U-Net that is loaded now
    before = webui.loads_and_inversions()[1]
    webui.call("/ditail-test/rows", {})
    made = webui.generate({**ditail, **SAME, "alpha": 1.1, "start": "noise"}, batch_size=3, n_iter=2, seed=5)
    rows = webui.call("/ditail-test/rows").json
    assert webui.loads_and_inversions()[1] - before == 1
    steps = rows.count(6) // 2
    assert rows.count(1) == steps + 2 * int(0.8 * steps) and set(rows) == {1, 6}
    assert [f"Seed: {5 + i}," in text for i, text in enumerate(made.infotexts[-6:])] == [True] * 6
    assert len({image.tobytes() for image in made.images[-6:]}) == 6


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_hires_off_leaves_the_second_pass_alone(webui, ditail, upscaler):
    """The second pass then makes of the first one's image what img2img without Ditail makes of it."""
    asked = {**HIRES, "hr_upscaler": upscaler}
    ditail = {**ditail, **SAME, "start": "noise"}
    on, off = (webui.generate({**ditail, "hires": hires}, **asked) for hires in (True, False))
    assert difference(on.image, off.image) > 0.3
    assert ["Ditail hires: False" in made.infotext for made in (on, off)] == [False, True]
    nothing = {**ditail, "conv_ratio": 0.0, "attn_ratio": 0.0}
    plain = webui.generate(**asked).image.tobytes()
    assert all(webui.generate({**nothing, "hires": hires}, **asked).image.tobytes() == plain for hires in (True, False))


def test_hires_with_a_generated_source(webui):
    """Its image is inverted in each pass, at that pass's size."""
    before = webui.loads_and_inversions()[1]
    settings = {"source": "generate", "source_checkpoint": "house-noto", "show_source": True}
    made = webui.generate(settings, **HIRES, hr_upscaler="Latent", seed=7)
    assert webui.loads_and_inversions()[1] - before == 2
    large, source = made.images
    assert large.size == (192, 192) and source.size == (SIDE, SIDE)
    plain = webui.generate(**HIRES, hr_upscaler="Latent", seed=7).image
    assert likeness(large, source.resize((192, 192))) > likeness(plain, source.resize((192, 192)))


@pytest.mark.parametrize("full_res", [False, True])
@pytest.mark.parametrize("fill", [0, 1, 2, 3])
def test_inpainting(webui, ditail, inpainting, content, full_res, fill):
    asked = {**inpainting, "inpaint_full_res": full_res, "inpainting_fill": fill}
    plain, mixed = webui.generate(**asked), webui.generate({**ditail, **SAME, "image": None}, **asked)
    assert difference(mixed.image.crop(OUTSIDE), content.crop(OUTSIDE)) < 1
    assert difference(mixed.image.crop(INSIDE), content.crop(INSIDE)) > 1
    assert difference(mixed.image.crop(INSIDE), plain.image.crop(INSIDE)) > 1
    assert "Ditail alpha: 3" in mixed.infotext


@pytest.mark.parametrize("full_res", [False, True])
def test_a_content_image_covers_the_whole_init_image(webui, ditail, inpainting, content, full_res):
    """Only masked: the part of it that is sampled. The init image given as the content image changes nothing."""
    asked = {**inpainting, "inpaint_full_res": full_res}
    own = webui.generate({**ditail, **SAME, "image": None}, **asked)
    given = webui.generate({**ditail, **SAME, "image": encode(content)}, **asked)
    turned = webui.generate({**ditail, **SAME, "image": encode(content.rotate(180))}, **asked)
    assert difference(own.image, given.image) < 0.5 < difference(own.image, turned.image)


@pytest.mark.parametrize("full_res", [False, True])
def test_the_boxes_of_a_collage_are_of_the_whole_init_image(webui, ditail, inpainting, content, full_res):
    asked = {**inpainting, "inpaint_full_res": full_res}
    left = {"image": encode(content.crop((0, 0, SIDE // 2, SIDE))), "box": [0, 0, 0.5, 1]}
    own = webui.generate({**ditail, **SAME, "image": None}, **asked)
    laid = webui.generate({**ditail, **SAME, "image": None, "collage": [left]}, **asked)
    assert difference(own.image, laid.image) < 0.5


def test_soft_inpainting(webui, ditail, inpainting, content):
    """Ditail acts inside, and it leaves the outside as soft inpainting does alone."""
    scripts = {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}
    asked = {**inpainting, "mask_blur": 4, "sampler_name": "Euler", "alwayson_scripts": scripts}
    plain = webui.generate(None, **asked)
    scripts["Ditail"] = {"args": [{**ditail, **SAME, "enabled": True, "image": None}]}
    mixed = webui.generate(None, **asked)
    assert "Soft inpainting enabled: True" in mixed.infotext and "Ditail alpha: 3" in mixed.infotext
    assert difference(mixed.image.crop(INSIDE), plain.image.crop(INSIDE)) > 1
    assert difference(mixed.image.crop(OUTSIDE), content.crop(OUTSIDE)) < 2


@pytest.mark.parametrize("source", ["image", "generate"])
def test_refiner(webui, ditail, source):
    """Both of the target's models are injected into; the refiner has no part in the source."""
    asked = {"refiner_checkpoint": "house-flat", "refiner_switch_at": 0.4}
    plain = webui.generate(**asked)  # after it the WebUI writes its own checkpoint's name in another way
    webui.generate()
    before = webui.state()
    settings = {**ditail, "source": source, "attn_ratio": 1.0, "conv_ratio": 1.0}
    mixed = webui.generate(settings, **asked)
    early = webui.generate({**settings, "attn_ratio": 0.3, "conv_ratio": 0.3}, **asked)
    assert difference(mixed.image, plain.image) > 1
    assert difference(mixed.image, early.image) > 0.3
    assert mixed.image.tobytes() == webui.generate(settings, **asked).image.tobytes()
    webui.generate()
    after = webui.state()
    assert {k: after[k] for k in after if k != "torch_rng"} == {k: before[k] for k in before if k != "torch_rng"}


def test_refiner_in_infotext(webui, ditail):
    """Also where guidance has ended when it takes over."""
    asked = {"refiner_checkpoint": "house-flat", "refiner_switch_at": 0.7}
    plain = webui.generate(**asked)
    webui.generate()
    ended = webui.generate({**ditail, "guidance_until": 0.5}, **asked)
    for made in (plain, ended):
        assert "Refiner: house-flat" in made.infotext and "Refiner switch at: 0.7" in made.infotext
    assert "NGMS" not in ended.infotext


def test_tiling(webui, ditail):
    """The source is tiled, too: its latents are others."""
    webui.call("/ditail-test/latents")
    plain = webui.generate().image.tobytes()
    tiled = webui.generate({**ditail, "alpha": 1.2}, tiling=True)
    usual = webui.generate({**ditail, "alpha": 1.2})
    assert len(set(webui.call("/ditail-test/latents").json)) == 2
    assert difference(tiled.image, usual.image) > 0.3
    assert not webui.state()["circular"] and webui.generate().image.tobytes() == plain


@pytest.mark.parametrize("changed", [{"subseed": 9, "subseed_strength": 0.5},
                                     {"seed_resize_from_w": 64, "seed_resize_from_h": 64}])
def test_variation_seeds(webui, ditail, changed):
    """They change what is generated, be it the source or the noise that sampling starts from, and no inversion."""
    generated = {"source": "generate", "source_checkpoint": ""}
    for settings in (generated, {**ditail, **SAME, "start": "noise"}):
        assert difference(webui.generate(settings).image, webui.generate(settings, **changed).image) > 0.5
    inverted = webui.generate({**ditail, **SAME}).image.tobytes()
    assert webui.generate({**ditail, **SAME}, **changed).image.tobytes() == inverted
    batch = webui.generate(generated, batch_size=2, seed=5, **changed)
    # The second of a batch has the next subseed; without one, the next seed.
    second = {**changed, "subseed": 10, "seed": 5} if "subseed" in changed else {**changed, "seed": 6}
    assert difference(batch.images[-1], webui.generate(generated, **second).image) < 1
