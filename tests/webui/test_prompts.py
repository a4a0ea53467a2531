"""What the WebUI's prompts can hold, in the main prompts and in the source's."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditail.standalone import demo_checkpoints
from lab.gallery import SCENES, draw_sheet
from tests.webui.webui_helpers import difference, encode, on

FOX = "a fox on pink"
LONG = ", ".join(["a fox on pink"] * 30)
LORA, OTHER = "<lora:test-lora:1>", "<lora:test-lora:0.4>"
NOWHERE = {"start": "noise", "conv_ratio": 0.0, "attn_ratio": 0.0}


@pytest.fixture(scope="module")
def embedding(webui):
    """A textual inversion of two tokens for the demo models' text encoder, named `test-token`."""
    weights = load_file(webui.data / "models" / "Stable-diffusion" / "house-ink.safetensors")
    table = next(v for k, v in weights.items() if k.endswith("token_embedding.weight"))
    torch.manual_seed(0)
    vectors = table.std() * 3 * torch.randn(2, table.shape[1])
    (webui.data / "embeddings").mkdir(exist_ok=True)
    save_file({"emb_params": vectors}, webui.data / "embeddings" / "test-token.safetensors")
    webui.call("/sdapi/v1/refresh-embeddings", {})
    assert "test-token" in webui.call("/sdapi/v1/embeddings").json["loaded"]


@pytest.fixture
def ditail(base64_content) -> dict:
    """The source's model is the target's, so that nothing has to be loaded."""
    return {"image": base64_content}


def latents_of(webui, ditail, **asked) -> list[str]:
    """Digests of the source latents that a job makes, with nothing cached."""
    webui.call("/ditail-test/latents")
    assert webui.generate(ditail, **asked).status == 200
    return webui.call("/ditail-test/latents").json


def test_a_lora_is_a_model_of_its_own(webui, tmp_path):
    """The demo's LoRA makes of house-noto what house-ink is: one checkpoint is the source and, with it, the target.

    With SD_WEBUI_SCREENSHOTS set to a folder, the image of docs/gallery.md is kept there.
    """
    scenes, number = demo_checkpoints.held_out(), SCENES["mushroom"]
    content, prompt = scenes.images["noto"][number], scenes.captions[number]
    with_lora = f"{prompt} <lora:house-ink-lora:1>"
    asked = {"steps": 20, **on("house-noto")}
    plain = webui.generate(prompt=with_lora, **asked).image
    assert difference(plain, webui.generate(prompt=prompt, steps=20).image) < 2 < difference(
        plain, webui.generate(prompt=prompt, **asked).image)
    settings = {"image": encode(content), "preset": "Balanced"}
    mixed = webui.generate({**settings, "source_prompt": prompt}, prompt=with_lora, **asked).image
    of_two = webui.generate({**settings, "source_checkpoint": "house-noto"}, prompt=prompt, steps=20).image
    assert difference(mixed, of_two) < 2 < difference(mixed, content)
    for name, image in (("content", content), ("mixed", mixed)):
        image.save(tmp_path / f"{name}.png")
    sheet = draw_sheet(tmp_path, [[("content", "content.png"), ("house-noto with the LoRA", "mixed.png")]])
    if folder := os.environ.get("SD_WEBUI_SCREENSHOTS"):
        sheet.save(Path(folder) / "webui-lora.png", optimize=True)


@pytest.mark.parametrize("main", ["a (fox:1.3) on [pink]", LONG, "a fox AND pink :0.5 AND a star", "a [fox:cat:0.5]",
                                  "a fox BREAK on pink", "a test-token on pink"])
@pytest.mark.usefixtures("embedding")
def test_in_the_main_prompt(webui, ditail, main):
    """The source prompt is short, the main one is not, and its syntax counts: it makes another image than `FOX`."""
    settings = {**ditail, "source_prompt": FOX, "source_negative_prompt": "blurry"}
    usual = webui.generate(settings, negative_prompt="worst quality")
    made = webui.generate(settings, prompt=main, negative_prompt="worst quality")
    assert difference(made.image, usual.image) > 0.1
    assert difference(made.image, webui.generate(prompt=main, negative_prompt="worst quality").image) > 1


@pytest.mark.parametrize(("source", "same"), [
    ("a (fox:1.3) on [pink]", None), (LONG, None), ("a [fox:cat:0.5] on pink", None),
    ("a fox BREAK on pink", None), ("a test-token on pink", None), ("a fox AND pink :0.5", "a fox , pink"),
])
@pytest.mark.usefixtures("embedding")
def test_in_the_source_prompt(webui, ditail, source, same):
    """Its syntax counts, as other latents than of the plain words show; `same` is another way to write it."""
    made = latents_of(webui, {**ditail, "source_prompt": source})
    assert made != latents_of(webui, {**ditail, "source_prompt": FOX})
    assert made == latents_of(webui, {**ditail, "source_prompt": same or source})
    assert latents_of(webui, {**ditail, "source_prompt": FOX, "source_negative_prompt": source}) != made


def test_prompt_editing_counts_the_steps_that_the_webui_counts(webui, ditail):
    """Of all steps, though img2img takes only some of them; the hires pass begins where the first one ends."""
    edited, fox, cat = ({**ditail, "source_prompt": f"a {of} on pink"} for of in ("[fox:cat:0.5]", "fox", "cat"))
    asked = {"tab": "img2img", "init_images": [ditail["image"]], "steps": 10}
    for strength, is_before in ((0.4, True), (0.8, False)):
        made = latents_of(webui, edited, **asked, denoising_strength=strength)
        assert (made == latents_of(webui, fox, **asked, denoising_strength=strength)) == is_before
    asked = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6, "steps": 4}
    first, second = (set(latents_of(webui, source, **asked)) for source in (edited, cat))
    assert len(first) == 2 and len(first & second) == 1


def test_styles(webui, ditail):
    """Without a source prompt the styles are the source's, too."""
    by_style = latents_of(webui, ditail, prompt="a fox", styles=["test style"])
    assert by_style == latents_of(webui, ditail, prompt=FOX, negative_prompt="blurry")
    styled = webui.generate(ditail, prompt="a fox", styles=["test style"])
    assert styled.image.tobytes() == webui.generate(ditail, prompt=FOX, negative_prompt="blurry").image.tobytes()


@pytest.mark.parametrize("checkpoint", ["", "house-noto"])
def test_each_pass_has_its_own_networks_and_no_others(webui, ditail, checkpoint):
    ditail = {**ditail, "source_checkpoint": checkpoint}
    plain, with_lora = webui.generate(), webui.generate(prompt=f"{FOX} {LORA}")
    assert difference(plain.image, with_lora.image) > 0.1
    bare = latents_of(webui, {**ditail, "source_prompt": FOX})
    of_source = {tag: latents_of(webui, {**ditail, "source_prompt": f"{FOX} {tag}"}) for tag in (LORA, OTHER)}
    assert bare != of_source[LORA] != of_source[OTHER] != bare
    # On the target only; on both, alike and with different weights.
    for tag, expected in (("", bare), (LORA, of_source[LORA]), (OTHER, of_source[OTHER])):
        settings = {**ditail, "source_prompt": f"{FOX} {tag}"}
        assert latents_of(webui, settings, prompt=f"{FOX} {LORA}") == expected
        target_alone = webui.generate({**settings, **NOWHERE}, prompt=f"{FOX} {LORA}")
        assert target_alone.image.tobytes() == with_lora.image.tobytes()
    # On the source only.
    assert webui.generate({**ditail, **NOWHERE, "source_prompt": f"{FOX} {LORA}"}).image.tobytes() == (
        plain.image.tobytes())
    # Without a source prompt of its own, the source has the main one's.
    assert latents_of(webui, ditail, prompt=f"{FOX} {OTHER}") == of_source[OTHER]
    assert webui.generate().image.tobytes() == plain.image.tobytes()


def test_networks_that_do_not_exist_are_named(webui, ditail):
    """As the WebUI does it: the image is made without, and a comment names them."""
    bare = latents_of(webui, {**ditail, "source_prompt": FOX})
    assert latents_of(webui, {**ditail, "source_prompt": f"{FOX} <lora:none-such:1>"}) == bare
    assert "Lora not found: none-such (source prompt)" in webui.call("/ditail-test/comments").json
    webui.generate({**ditail, "source_prompt": FOX}, prompt=f"{FOX} <lora:none-such:1>")
    assert webui.call("/ditail-test/comments").json == ["Lora not found: none-such"]
