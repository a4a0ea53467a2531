"""The settings beyond the paper in the real WebUI: each does what it says, and changes nothing if it is absent."""

import pytest
from PIL import ImageStat

from tests.webui.server import IS_FORGE
from tests.webui.webui_helpers import difference, encode

CONTENT = {"source_checkpoint": "house-noto"}
CFG = 6
# Rows that are computed beside others round a little differently: grey levels of 255.
ROUNDING = 1.0


@pytest.fixture
def ditail(content):
    return {**CONTENT, "image": encode(content)}


def test_guidance_that_ends_at_once_is_a_cfg_scale_of_1(webui, ditail):
    ended = webui.generate({**ditail, "guidance_until": 0.0}, cfg_scale=CFG)
    assert difference(ended.image, webui.generate(ditail, cfg_scale=1).image) < ROUNDING
    assert difference(ended.image, webui.generate(ditail, cfg_scale=CFG).image) > ROUNDING
    assert "NGMS" not in ended.infotext


# Forge's DDIM CFG++ needs the rows: `test_forge.py` has its own test.
@pytest.mark.parametrize("sampler", ["DDIM", "Euler a", "DPM++ 2M", "Heun", "UniPC", "LCM",
                                     *([] if IS_FORGE else ["DDIM CFG++"])])
def test_guidance_that_ends_half_way_saves_rows(webui, ditail, sampler):
    before = webui.call("/ditail-test/options").json
    webui.generate(ditail, cfg_scale=CFG, sampler_name=sampler)  # loads the source, whose latents are cached then
    rows = []
    for until in (1.0, 0.5):
        webui.call("/ditail-test/rows", {})
        assert webui.generate({**ditail, "guidance_until": until}, cfg_scale=CFG, sampler_name=sampler).images
        rows.append(webui.call("/ditail-test/rows").json)
    assert sum(rows[1]) < sum(rows[0])
    assert webui.call("/ditail-test/options").json == before


@pytest.mark.parametrize("prompts", [
    {}, {"negative_prompt": "blurry, " * 60}, {"prompt": "a fox on pink AND a red hat"}, {"batch_size": 2},
    {"batch_size": 2, "prompt": "a fox on pink AND a red hat", "negative_prompt": "blurry, " * 60},
], ids=["plain", "unequal lengths", "AND", "batch", "all"])
def test_injection_into_the_cond_rows_is_the_same_in_one_call_and_in_two(webui, ditail, options, prompts):
    settings = {**ditail, "inject": "cond"}
    together = webui.generate(settings, cfg_scale=CFG, **prompts).images
    options(batch_cond_uncond=False)
    for one, other in zip(together, webui.generate(settings, cfg_scale=CFG, **prompts).images, strict=True):
        assert difference(one, other) < ROUNDING
    assert difference(together[0], webui.generate(ditail, cfg_scale=CFG, **prompts).image) > ROUNDING


def test_with_a_cfg_scale_of_1_there_are_cond_rows_only(webui, ditail):
    images = [webui.generate({**ditail, "inject": inject, "guidance_until": 0.0}).image for inject in ("cond", "both")]
    assert difference(*images) < ROUNDING


def test_a_generated_source_is_inverted_and_keeps_more_of_it(webui):
    source = webui.generate(None, override_settings={"sd_model_checkpoint": "house-noto"}, seed=7).image
    asked = {**CONTENT, "source": "generate"}
    inverted, kept = (webui.generate({**asked, "source_latents": how}, seed=7) for how in ("inverted", "kept"))
    assert difference(inverted.image, webui.generate(asked, seed=7).image) == 0
    plain = webui.generate(None, seed=7).image
    assert difference(inverted.image, plain) > difference(kept.image, plain)
    assert difference(inverted.image, source) < difference(kept.image, source)
    assert "Ditail source latents: inverted" in inverted.infotext


def test_a_share_of_the_inversion(webui, ditail):
    def steps_in_log(**settings):
        at = len(webui.log.read_text())
        image = webui.generate({**ditail, "beta": 0.45, **settings}).image
        return image, [line for line in webui.log.read_text()[at:].splitlines() if "inverted the content" in line]

    whole, lines = steps_in_log()
    assert " 7 steps" in lines[0]  # the WebUI's DDIM takes one less
    half, lines = steps_in_log(inversion_steps=0.5)
    assert " 5 steps" in lines[0]  # the fewest that there are
    assert difference(whole, half) > 0


@pytest.mark.parametrize("sampler", ["DDIM", "Euler a", "DPM++ 2M", "Heun", "UniPC", "LCM", "DDIM CFG++"])
def test_contours_bring_shapes_nearer_at_no_cost(webui, ditail, content, sampler):
    """Nothing else is injected, and the content's own model samples, so that only contours can."""
    settings = {**ditail, "conv_ratio": 0.0, "attn_ratio": 0.0, "start": "noise"}
    images, rows = [], []
    for contours in (0.0, 1.0):
        webui.generate({**settings, "contours": contours}, sampler_name=sampler)  # its source latents are cached now
        webui.call("/ditail-test/rows", {})
        images.append(webui.generate({**settings, "contours": contours}, sampler_name=sampler))
        rows.append(webui.call("/ditail-test/rows").json)
    assert rows[0] == rows[1]
    far, near = (difference(image.image, content) for image in images)
    assert near < far - ROUNDING
    assert "Ditail contours: 1" in images[1].infotext


def test_tone_moves_colours_and_is_cached(webui, ditail):
    plain = webui.generate(ditail).image
    settings = {**ditail, "tone": 1.0}
    first = webui.generate(settings)
    at = len(webui.log.read_text())
    assert difference(first.image, webui.generate(settings).image) == 0
    assert "estimated" not in webui.log.read_text()[at:]
    assert difference(first.image, plain) > ROUNDING


def test_a_preset_is_its_settings_and_others_override_it(webui, ditail):
    named = webui.generate({**ditail, "preset": "Structure"})
    assert "Ditail preset: Structure" in named.infotext
    assert "Ditail inject: cond" in named.infotext
    other = webui.generate({**ditail, "preset": "Structure", "inject": "both"})
    assert "Ditail inject: both" in other.infotext
    assert difference(named.image, other.image) > 0
    assert "preset: " in webui.generate({**ditail, "preset": "Nonsense"}).error


def test_the_diagonal_of_a_matrix_of_a_content_image_is_the_models_own_sampling_of_it(webui, ditail):
    values = {"checkpoints": ["house-noto", "house-ink"], "image": ditail["image"]}
    images = webui.generate(None, script_name="Ditail matrix", script_args=[values]).images
    own = webui.generate({**ditail, "source_checkpoint": "house-ink"}).image
    assert difference(images[4], own) == 0


def test_colours_of_the_content_image(webui, ditail, content):
    """By default nothing changes; asked for, the image has the content's mean colour at its own lightness."""
    plain, style = (webui.generate({**ditail, **given}) for given in ({}, {"colours": "style"}))
    matched = webui.generate({**ditail, "colours": "content"})
    assert difference(plain.image, style.image) == 0
    assert "Ditail colours: content" in matched.infotext
    wanted, before, after = (image.convert("LAB").split() for image in (content, plain.image, matched.image))
    means = [[ImageStat.Stat(channel).mean[0] for channel in image[1:]] for image in (wanted, before, after)]
    away, left = (sum(abs(x - y) for x, y in zip(means[0], other, strict=True)) for other in means[1:])
    assert left < away / 2
    assert abs(ImageStat.Stat(before[0]).mean[0] - ImageStat.Stat(after[0]).mean[0]) < 4
