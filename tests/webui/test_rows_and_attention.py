"""Options that change which rows a U-Net call has, and how attention is computed."""

import pytest
from PIL import ImageChops

from tests.webui.webui_helpers import difference

LONG = ", ".join(["a fox on pink"] * 40)
# Options, and what the job itself asks for.
ROWS = {
    "separate calls": ({"batch_cond_uncond": False}, {}),
    "unequal prompts": ({}, {"prompt": LONG}),
    "unequal prompts, separate calls": ({"batch_cond_uncond": False}, {"negative_prompt": LONG}),
    "padded": ({"pad_cond_uncond": True}, {"prompt": LONG}),
    "padded as before 1.6": ({"pad_cond_uncond_v0": True}, {"negative_prompt": LONG}),
    "skip early CFG": ({"skip_early_cond": 0.4}, {}),
    "NGMS": ({"s_min_uncond_all": True}, {"s_min_uncond": 15, "sampler_name": "Euler"}),
    "no CFG": ({}, {"cfg_scale": 1}),
    "CFG++": ({}, {"sampler_name": "DDIM CFG++"}),
}


def rows(webui) -> dict[float, list[int]]:
    """The rows of each call of the U-Net since this was last asked, by timestep; the source pass left out."""
    found = {}
    for call in webui.call("/ditail-test/calls").json:
        if not call["job"].startswith("Ditail"):
            found.setdefault(call["t"], []).append(call["rows"])
    return found


@pytest.mark.parametrize("name", ROWS)
def test_rows(webui, ditail, options, name):
    """The same image whether a row comes with others or alone, and the source's row runs once a step."""
    chosen, asked = ROWS[name]
    options(ditail_features_mb=0, **chosen)  # kept features need no source row
    asked = {"batch_size": 2, **asked}
    webui.generate(steps=1)
    rows(webui)
    plain = webui.generate(**asked)
    rows_of_plain = rows(webui)
    mixed = webui.generate({**ditail, "start": "noise"}, **asked)
    injected = int(len(rows_of_plain) * 0.8)
    with_source = {t: [1, *called] if i < injected else called
                   for i, (t, called) in enumerate(sorted(rows_of_plain.items(), reverse=True))}
    assert rows(webui) == with_source
    for i in range(2):
        assert difference(plain.images[i], mixed.images[i]) > 1
    assert webui.generate(**asked).images[0].tobytes() == plain.images[0].tobytes()


def test_calls_change_no_image(webui, ditail, options):
    together = webui.generate(ditail)
    options(batch_cond_uncond=False)
    assert difference(together.image, webui.generate(ditail).image) < 0.1


@pytest.fixture(scope="module")
def usual_attention(webui, base64_content) -> list:
    return [webui.generate({"image": base64_content}).image, webui.generate().image]


@pytest.mark.parametrize("chosen", [
    {"hypertile_enable_unet": True, "hypertile_max_tile_unet": 0}, {"token_merging_ratio": 0.5},
])
def test_off_while_injected(webui, base64_content, options, chosen):
    """What changes the tokens between source and image is off for the job, in both passes, and on again after it."""
    asked = {"steps": 4, "enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    settings = {"image": base64_content}
    usual = webui.generate(settings, **asked)
    options(**chosen)
    plain, mixed = webui.generate(**asked), webui.generate(settings, **asked)
    assert difference(mixed.image, usual.image) < 0.1 < difference(mixed.image, plain.image)
    assert webui.generate(**asked).image.tobytes() == plain.image.tobytes()
    options(**{name: type(value)() for name, value in chosen.items()})
    assert webui.generate(**asked).image.tobytes() != plain.image.tobytes()


OPTIMIZATIONS = ("None", "Doggettx", "InvokeAI", "V1", "sdp", "sdp-no-mem", "sub-quadratic")


@pytest.mark.parametrize("name", OPTIMIZATIONS)
def test_attention(webui, base64_content, options, usual_attention, name):
    """Every optimisation of the WebUI that runs on a CPU makes the same image, with Ditail as without."""
    titles = webui.call("/ditail-test/attention").json
    title = next(t for t in [*titles, "None"] if t.split(" - ")[0] == name)
    options(cross_attention_optimization=title)
    for usual, made in zip(usual_attention, (webui.generate({"image": base64_content}), webui.generate()), strict=True):
        assert max(high for _, high in ImageChops.difference(usual, made.image).getextrema()) <= 2
        assert difference(usual, made.image) < 0.1
