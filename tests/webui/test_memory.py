"""Options about memory and precision: how many checkpoints are kept, and how their weights are stored."""

import pytest

from tests.webui.webui_helpers import difference, on


@pytest.fixture
def with_one_checkpoint(webui, ditail):
    """The usual image, made with the WebUI's defaults."""
    return webui.generate(ditail)


@pytest.mark.parametrize("keep_in_cpu", [True, False])
def test_two_checkpoints_loaded(webui, ditail, with_one_checkpoint, options, keep_in_cpu):
    """Where the WebUI keeps two, nothing is loaded again for a source that is there, and the images are the same."""
    options(sd_checkpoints_limit=2, sd_checkpoints_keep_in_cpu=keep_in_cpu)
    plain = webui.generate()
    assert webui.generate({**ditail, "alpha": 2.2 + keep_in_cpu}).status == 200
    loads, before = webui.checkpoint_loads(), webui.state()
    again = webui.generate({**ditail, "alpha": 1.2 + keep_in_cpu})
    img2img = webui.generate({**ditail, "alpha": 1.3 + keep_in_cpu}, tab="img2img", init_images=[ditail["image"]])
    assert again.status == img2img.status == 200
    assert webui.checkpoint_loads() == loads
    assert webui.state() == before and before["loaded_models"] == 2
    options(sd_checkpoints_limit=1)
    assert webui.generate({**ditail, "alpha": 1.2 + keep_in_cpu}).image.tobytes() == again.image.tobytes()
    assert webui.generate(ditail).image.tobytes() == with_one_checkpoint.image.tobytes()
    assert webui.generate().image.tobytes() == plain.image.tobytes()


@pytest.mark.parametrize(("target", "source"), [("house-ink", "house-noto"), ("sdxl-eps-a", "sdxl-eps-b")])
def test_weights_stored_in_8_bits(webui, families, base64_content, options, target, source):
    """On a CPU the WebUI then computes in bfloat16."""
    settings = {"image": base64_content, "source_checkpoint": source}
    usual = webui.generate(settings, **on(target))
    options(fp8_storage="Enable")
    # Whatever the WebUI loads from now on has alphas_cumprod rounded, also when this is switched off again.
    webui.generate(**on(source))
    plain, mixed = webui.generate(**on(target)), webui.generate(settings, **on(target))
    assert "FP8 weight: Enable" in mixed.infotext
    assert 0 < difference(mixed.image, usual.image) < difference(mixed.image, plain.image) / 2
    assert webui.generate(**on(target)).image.tobytes() == plain.image.tobytes()
    options(fp8_storage="Disable")
    assert difference(webui.generate(settings, **on(target)).image, usual.image) < 2
