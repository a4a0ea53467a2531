"""What is Forge's own: its model beside the source's, its VAE, its noise schedule, and what patches its U-Net."""

import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.webui.families import with_channels
from tests.webui.like_the_webui import JOBS, image_of, path_of
from tests.webui.server import IS_FORGE
from tests.webui.webui_helpers import difference, negate_lora, on

pytestmark = pytest.mark.skipif(not IS_FORGE, reason="SD_FORGE_DIR is not set")
PATCHER = "Patcher of the test"
SMALL = {"steps": 5}
# Grey levels: DDIM asks at the same timesteps as the WebUI's; k-diffusion's samplers ask Forge at whole ones.
NEAR = {"Euler": 0.5, "DPM++ 2M": 1.0}


def patched(mode: str, ditail: dict | None) -> dict:
    scripts = {PATCHER: {"args": [mode]}}
    if ditail:
        scripts["Ditail"] = {"args": [{"enabled": True, **ditail}]}
    return {"alwayson_scripts": scripts, **SMALL}


def test_the_source_is_unloaded_and_the_target_stays(webui, ditail):
    """Two models are in memory only during the source pass; the target is not loaded again."""
    plain = webui.generate(**SMALL).image.tobytes()
    before, loads = webui.state(), webui.checkpoint_loads()
    assert webui.call("/ditail-test/engines").json == 1
    for alpha, source in ((1.11, "house-noto"), (1.12, "house-flat"), (1.13, "house-noto")):
        assert webui.generate({**ditail, "source_checkpoint": source, "alpha": alpha}, **SMALL).status == 200
    assert webui.checkpoint_loads() - loads == 3
    assert webui.call("/ditail-test/engines").json == 1
    after = webui.state()
    assert (after["others_in_memory"], after["hash"], after["weights"]) == (0, before["hash"], before["weights"])
    assert webui.generate(**SMALL).image.tobytes() == plain


@pytest.mark.parametrize(("mode", "key", "off"), [("reference", "attn_ratio", {"attn_ratio": 0}),
                                                  ("norm", "conv_ratio", {"conv_ratio": 0})])
def test_what_rewrites_an_injected_layer_is_refused(webui, ditail, mode, key, off):
    answer = webui.generate(**patched(mode, ditail))
    assert answer.status == 422 and answer.error.startswith(f"{key}: another extension")
    assert webui.generate(**patched(mode, {**ditail, **off})).status == 200


@pytest.mark.parametrize("mode", ["FreeU", "control"])
def test_other_patches_act_on_the_image_and_not_on_the_source(webui, ditail, mode):
    plain, with_patch = webui.generate(**SMALL), webui.generate(**patched(mode, None))
    mixed, both = webui.generate(ditail, **SMALL), webui.generate(**patched(mode, ditail))
    assert difference(plain.image, with_patch.image) > 0.5 and difference(mixed.image, both.image) > 0.5
    # The source's features are kept, and the same with the patch as without.
    assert webui.generate(ditail, **SMALL).image.tobytes() == mixed.image.tobytes()


def test_zero_terminal_snr(webui, ditail, options):
    usual, plain = webui.generate(ditail, **SMALL), webui.generate(**SMALL)
    before = webui.state()["sigmas"]
    options(sd_noise_schedule="Zero Terminal SNR")
    mixed = webui.generate(ditail, **SMALL)
    assert "Noise Schedule: Zero Terminal SNR" in mixed.infotext
    assert difference(mixed.image, usual.image) > 0.2 and difference(mixed.image, webui.generate(**SMALL).image) > 1
    assert webui.state()["sigmas"] == before
    options(sd_noise_schedule="Default")
    assert webui.generate(**SMALL).image.tobytes() == plain.image.tobytes()


def test_clip_skip(webui, ditail, options):
    nothing = {**ditail, "conv_ratio": 0, "attn_ratio": 0}  # the start alone: what the inversion made
    usual = webui.generate(nothing, **SMALL)
    options(CLIP_stop_at_last_layers=2)
    assert difference(webui.generate(nothing, **SMALL).image, usual.image) > 0.2


def test_emphasis_is_what_it_was_when_the_model_was_loaded(webui, ditail, options):
    """Forge takes this setting over when it loads a model. Until then, so do the cached latents."""
    settings = {**ditail, "source_prompt": "a (fox:1.6) on pink", "conv_ratio": 0, "attn_ratio": 0}
    usual = webui.generate(settings, **SMALL).image.tobytes()
    options(emphasis="Ignore")
    assert webui.generate(settings, **SMALL).image.tobytes() == usual
    webui.generate(steps=1, **on("house-flat"))
    after = webui.generate(settings, **SMALL).image.tobytes()
    webui.call("/ditail-test/faults/empty-caches", {})
    assert webui.generate(settings, **SMALL).image.tobytes() == after != usual
    options(emphasis="Original")
    webui.generate(steps=1, **on("house-flat"))


def test_a_vae_for_the_source(webui, ditail):
    own = webui.generate(ditail, **SMALL)
    other = webui.generate({**ditail, "source_vae": "test.vae.safetensors"}, **SMALL)
    assert difference(own.image, other.image) > 0.1
    assert webui.generate({**ditail, "source_vae": "none-such"}).error.startswith("source_vae: ")


def test_networks_of_the_source_that_do_not_exist(webui, ditail):
    """The source is made without them, and a comment names them."""
    bare, missing = (webui.generate({**ditail, "source_prompt": f"a star{tag}"}, **SMALL)
                     for tag in ("", " <lora:none-of-these:1>"))
    assert missing.image.tobytes() == bare.image.tobytes()
    assert "Lora not found: none-of-these (source prompt)" in webui.call("/ditail-test/comments").json


def test_latents_of_a_lora_file_that_was_replaced(webui, ditail):
    """Forge goes on with what it has read of the former file until its next start; so do the cached latents."""
    path = webui.data / "models" / "Lora" / "test-lora.safetensors"
    job = {**ditail, "source_prompt": "a fox on pink <lora:test-lora:1>", "conv_ratio": 0, "attn_ratio": 0}

    def image() -> bytes:
        return webui.generate(job, **SMALL).image.tobytes()

    shutil.copy(path, path.with_suffix(".kept"))
    try:
        first = image()
        negate_lora(path)
        assert image() == first
        webui.call("/ditail-test/forget-loras", {})
        second = image()
        assert second != first
        webui.call("/ditail-test/faults/empty-caches", {})
        assert image() == second
    finally:
        path.with_suffix(".kept").replace(path)
        webui.call("/ditail-test/forget-loras", {})


@pytest.fixture
def inpainting_checkpoint(webui) -> str:
    """The demo's ink model with the five channels of an inpainting model, which count for little."""
    models = webui.data / "models" / "Stable-diffusion"
    tensors = with_channels(load_file(models / "house-ink.safetensors"), 5)
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()},
              models / "inpainting-ink.safetensors", metadata={"format": "pt"})
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    return "inpainting-ink"


def test_inpainting_checkpoints(webui, ditail, inpainting_checkpoint):
    """As the target, and as the source, which then runs with everything masked."""
    for target, source in ((inpainting_checkpoint, "house-noto"), ("house-ink", inpainting_checkpoint)):
        asked = {**SMALL, **on(target)}
        plain, mixed = webui.generate(**asked), webui.generate({**ditail, "source_checkpoint": source}, **asked)
        assert difference(plain.image, mixed.image) > 5


@pytest.mark.parametrize("name", JOBS)
def test_the_image_is_the_webuis(webui, name):
    """Of the same content image, seed and pair of checkpoints (recorded in the WebUI 1.10.1)."""
    near = next((levels for sampler, levels in NEAR.items() if name.startswith(sampler)), 0.05)
    assert difference(image_of(webui, name), Image.open(path_of(name)).convert("RGB")) < near


def test_guidance_that_ends_in_ddim_cfgpp_is_a_cfg_scale_of_1(webui, ditail):
    """The sampler takes its direction from the rows of the negative prompt, which Forge leaves out at 1 exactly."""
    ended, low, whole = (webui.generate({**ditail, "guidance_until": until}, sampler_name="DDIM CFG++", cfg_scale=scale)
                         for until, scale in ((0.0, 6), (1.0, 1.00001), (1.0, 6)))
    assert difference(ended.image, low.image) < 1 < difference(ended.image, whole.image)


def test_an_extension_that_resizes_what_is_injected_is_refused(webui, ditail):
    scripts = {"Kohya HRFix Integrated": {"args": [True, 3, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"]}}
    assert webui.generate(alwayson_scripts=scripts, **SMALL).status == 200
    scripts = {**scripts, "Ditail": {"args": [{"enabled": True, **ditail}]}}
    answer = webui.generate(alwayson_scripts=scripts, **SMALL)
    assert answer.status == 422 and "Kohya HRFix" in answer.error
    assert webui.generate(ditail, **SMALL).status == 200


def test_guidance_that_ends_keeps_what_an_extension_reads_that_replaces_cfg(webui, ditail):
    """Latent Modifier's tonemap: without the rows of the negative prompt it would get zeros for them."""
    tonemap = [True, 0.0, "anisotropic", 0.5, "reinhard", 100.0, 0.0, "subtract", 0.0, 0.0, "gaussian", "add", 0.0,
               100, 127, 0.0, "hard_clamp", 5.0, 0.0, "None", "None"]

    def image(until: float, scale: float) -> Image.Image:
        scripts = {"LatentModifier Integrated": {"args": tonemap},
                   "Ditail": {"args": [{"enabled": True, **ditail, "guidance_until": until}]}}
        return webui.generate(alwayson_scripts=scripts, cfg_scale=scale, **SMALL).image

    ended, low, whole = image(0.0, 6), image(1.0, 1.00001), image(1.0, 6)
    assert difference(ended, low) < 1 < difference(ended, whole)
