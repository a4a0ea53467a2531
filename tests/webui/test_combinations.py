"""Settings of the WebUI that meet those of Ditail: sums of prompts, Skip, what keys name."""

import shutil
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.webui.faulty import Faulty
from tests.webui.webui_helpers import difference, on

# Rows that are computed beside others round a little differently: grey levels of 255.
ROUNDING = 1.0
SUM = "a fox on pink AND a red hat :0.5"
LORA = "a fox on pink <lora:test-lora:1>"
GENERATED = {"source": "generate", "source_checkpoint": "house-noto"}


@pytest.fixture(scope="module")
def faulty(webui):
    return Faulty(webui)


@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
@pytest.mark.parametrize("prompt", [SUM, "a fox on pink AND a red hat", "a fox on pink :1.5"])
def test_guidance_that_ends_leaves_no_part_of_a_sum_of_prompts_out(webui, ditail, sampler, prompt):
    asked = {"prompt": prompt, "sampler_name": sampler}
    settings = {**ditail, "source_prompt": "a fox on pink"}
    ended = webui.generate({**settings, "guidance_until": 0.0}, cfg_scale=6, **asked)
    # At 1 exactly Forge leaves the negative prompt out.
    assert difference(ended.image, webui.generate(settings, cfg_scale=1.00001, **asked).image) < ROUNDING
    assert difference(ended.image, webui.generate(settings, cfg_scale=6, **asked).image) > ROUNDING
    assert "NGMS" not in ended.infotext


def test_guidance_that_ends_in_the_hires_pass_leaves_no_part_of_a_sum_of_prompts_out(webui, ditail):
    asked = {"prompt": SUM, "steps": 4, "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent",
             "denoising_strength": 0.6}
    settings = {**ditail, "source_prompt": "a fox on pink"}
    scales = ({"cfg_scale": 6, "hr_cfg": 6}, {"cfg_scale": 1.00001, "hr_cfg": 1.00001})
    ended, low = (webui.generate({**settings, "guidance_until": until}, **asked, **scale).image
                  for until, scale in zip((0.0, 1.0), scales, strict=True))
    assert difference(ended, low) < ROUNDING


def test_skip_ends_no_later_job_of_a_plot(webui, faulty, base64_content):
    """The second cell has a source of its own to invert."""
    def cells():
        faulty.post("empty-caches")
        return webui.plot({"image": base64_content}, ("[Ditail] Alpha", "2.5, 3.5"), steps=3).images

    with faulty.armed() as seen:
        expected = cells()
    with faulty.armed(point="unet.call", call=seen["counts"]["unet.call"] // 2, action="skip") as seen:
        skipped = cells()
    assert seen["fired"]
    assert difference(skipped[2], expected[2]) == 0


# What a source depends on: an image from the cache is the image without it.

def image(webui, settings, **asked) -> list[str]:
    """Digests of a job's images."""
    return [sha256(i.tobytes()).hexdigest() for i in webui.generate(settings, steps=4, **asked).images]


def test_the_decoded_image_of_a_source_depends_on_how_it_is_decoded(webui, faulty, options):
    settings = {**GENERATED, "show_source": True}
    image(webui, settings)
    options(sd_vae_decode_method="Approx cheap")
    warm = image(webui, settings)
    faulty.post("empty-caches")
    assert image(webui, settings) == warm


def test_a_default_network_has_its_multiplier(webui, faulty, ditail, options):
    options(sd_lora="test-lora")
    image(webui, ditail)
    options(extra_networks_default_multiplier=0.25)
    warm = image(webui, ditail)
    faulty.post("empty-caches")
    assert image(webui, ditail) == warm


def test_a_source_without_extra_networks_is_another(webui, faulty, ditail):
    settings = {**ditail, "source_prompt": LORA}
    faulty.post("empty-caches")
    expected = image(webui, settings)
    faulty.post("empty-caches")
    assert image(webui, settings, disable_extra_networks=True) != expected
    assert image(webui, settings) == expected


def test_a_hypernetwork_file_that_is_replaced(webui, faulty, ditail):
    torch.manual_seed(0)
    folder = webui.data / "models" / "hypernetworks"
    folder.mkdir(exist_ok=True)
    path, settings = folder / "changing-hyper.pt", {**ditail, "source_prompt": "a fox <hypernet:changing-hyper:1>"}

    def write(scale: float) -> None:
        layers = tuple({f"linear.{i}.{name}": torch.randn(*shape) * scale for i in (0, 1)
                        for name, shape in (("weight", (128, 128)), ("bias", (128,)))} for _ in range(2))
        # The WebUI refuses the files of a newer torch as unsafe; the old layout has not changed.
        torch.save({128: layers, "layer_structure": [1, 1, 1]}, path, _use_new_zipfile_serialization=False)

    try:
        write(0.05)
        webui.call("/ditail-test/restart", {})
        first = image(webui, settings)
        write(0.1)
        warm = image(webui, settings)
        faulty.post("empty-caches")
        assert image(webui, settings) == warm != first
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def changing(webui):
    """A checkpoint `changing` like house-ink; yields a function that replaces its file by house-flat's."""
    folder = webui.data / "models" / "Stable-diffusion"
    path = folder / "changing.safetensors"
    shutil.copy(folder / "house-ink.yaml", folder / "changing.yaml")
    shutil.copy(folder / "house-ink.safetensors", path)
    webui.call("/sdapi/v1/refresh-checkpoints", {})

    def replace() -> None:
        shutil.copy(folder / "house-flat.safetensors", folder / "new")
        (folder / "new").replace(path)

    yield replace
    webui.generate(steps=1)
    path.unlink()
    (folder / "changing.yaml").unlink()
    webui.call("/sdapi/v1/refresh-checkpoints", {})


def test_a_checkpoint_file_that_is_replaced_while_it_is_loaded(webui, faulty, ditail, changing):
    """The WebUI goes on with the old weights until it loads the file again."""
    settings, asked = {"image": ditail["image"], "tone": 0.5}, on("changing")
    webui.generate(steps=1, **asked)
    changing()
    old = image(webui, settings, **asked)
    webui.generate(steps=1)
    warm = image(webui, settings, **asked)
    faulty.post("empty-caches")
    assert image(webui, settings, **asked) == warm != old


def test_a_checkpoint_file_that_is_replaced_while_the_webui_keeps_its_weights(webui, faulty, ditail, options, changing):
    """With "Checkpoints to cache in RAM" it does not read the file again, as long as it keeps them."""
    settings, asked = {"image": ditail["image"]}, on("changing")
    options(sd_checkpoint_cache=3)
    webui.generate(steps=1, **asked)
    webui.generate(steps=1)
    changing()
    old = image(webui, settings, **asked)
    options(sd_checkpoint_cache=0)
    webui.generate(steps=1)
    warm = image(webui, settings, **asked)
    faulty.post("empty-caches")
    assert image(webui, settings, **asked) == warm != old


@pytest.mark.parametrize("kept", [0, 2])
def test_a_vae_file_that_is_replaced_while_it_is_loaded(webui, faulty, ditail, options, kept):
    """Also if the WebUI keeps the weights of VAEs that it has read ("VAE Checkpoints to cache in RAM")."""
    settings, folder = {"image": ditail["image"]}, webui.data / "models" / "VAE"
    vae = folder / "changing.safetensors"
    shutil.copy(folder / "test.vae.safetensors", vae)
    webui.call("/sdapi/v1/refresh-vae", {})
    try:
        options(sd_vae_checkpoint_cache=kept)
        options(sd_vae=vae.name)
        tensors = load_file(vae)
        tensors["encoder.conv_out.weight"] = tensors["encoder.conv_out.weight"] * 1.3
        if kept:
            options(sd_vae="None")
        save_file(tensors, folder / "new")
        (folder / "new").replace(vae)
        options(sd_vae=vae.name)
        old = image(webui, settings)
        options(sd_vae="None")
        options(sd_vae_checkpoint_cache=0)
        options(sd_vae=vae.name)
        warm = image(webui, settings)
        faulty.post("empty-caches")
        assert image(webui, settings) == warm != old
    finally:
        options(sd_vae="None")
        vae.unlink()
        webui.call("/sdapi/v1/refresh-vae", {})
