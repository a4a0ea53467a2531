"""Checkpoints of every family: injected as they should be, or refused with a sentence that names them.

The models of `families.py` have random weights, so what is asserted is what holds for any weights: that injection
happens and alpha counts, that inversion and sampling undo each other, and that everything is as it was afterwards.
"""

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.webui.server import IS_FORGE
from tests.webui.webui_helpers import SIDE, difference, encode, on

RANDOM = ("sd2-eps", "sd2-v", "sdxl-eps", "sdxl-v")
# With CFG 1 and one prompt the sampler goes back the way that the inversion came.
THERE_AND_BACK = {"alpha": 1, "beta": 0, "conv_ratio": 1, "attn_ratio": 1}
DDIM_CALLS = 7  # of the 8 steps that the tests' jobs have
CFG_1 = {"cfg_scale": 1, "steps": 20}


def source_pass(webui) -> list[dict]:
    """The source pass's calls of a U-Net since the last time that calls were asked for."""
    return [call for call in webui.call("/ditail-test/calls").json if call["job"].startswith("Ditail")]


@pytest.mark.usefixtures("families")
class TestFamilies:
    @pytest.mark.parametrize("family", RANDOM)
    def test_injection_and_alpha(self, webui, base64_content, family):
        target = on(f"{family}-a")
        source = {"image": base64_content, "source_checkpoint": f"{family}-b"}
        plain = webui.generate(**target)
        source_pass(webui)
        mixed = webui.generate(source, **target)
        calls = source_pass(webui)
        assert [call["rows"] for call in calls] == [1] * DDIM_CALLS
        assert [call["t"] for call in calls] == sorted(call["t"] for call in calls)
        start_only = webui.generate({**source, "conv_ratio": 0, "attn_ratio": 0}, **target)
        assert source_pass(webui) == []  # its latents are kept
        other_alpha = webui.generate({**source, "alpha": 1}, **target)
        for other in (plain, start_only, other_alpha):
            assert difference(mixed.image, other.image) > 0.1
        assert webui.generate(**target).image.tobytes() == plain.image.tobytes()

    @pytest.mark.parametrize("family", RANDOM)
    def test_there_and_back(self, webui, base64_content, content, family):
        target = on(f"{family}-a")
        back = webui.generate({"image": base64_content, **THERE_AND_BACK}, **CFG_1, **target)
        plain = webui.generate(**CFG_1, **target)
        assert difference(back.image, content) < difference(plain.image, content) / 4

    @pytest.mark.parametrize("family", RANDOM)
    def test_contours(self, webui, base64_content, content, family):
        alone = {"image": base64_content, "conv_ratio": 0, "attn_ratio": 0, "start": "noise"}
        far, near = (webui.generate({**alone, "contours": contours}, **CFG_1, **on(f"{family}-a")).image
                     for contours in (0, 1))
        assert difference(near, content) < 0.9 * difference(far, content)

    def test_size_and_crop_of_sdxl(self, webui, base64_content, options):
        """SDXL is told size and crop; the source latents and the null prompt's features depend on them."""
        target = on("sdxl-v-a")
        first = webui.generate({"image": base64_content}, **target)
        source_pass(webui)
        options(sdxl_crop_left=64)
        cropped = webui.generate({"image": base64_content}, **target)
        assert len(source_pass(webui)) == DDIM_CALLS
        assert difference(first.image, cropped.image) > 0

    def test_inpainting_checkpoints(self, webui, base64_content):
        """Trained weights: the demo checkpoints', with further channels that change little."""
        reference = webui.generate({"image": base64_content, "source_checkpoint": "house-noto"}, **on("house-ink"))
        for source, target in (("inpainting-noto", "inpainting-ink"), ("inpainting-noto", "house-ink")):
            plain = webui.generate(**on(target))
            mixed = webui.generate({"image": base64_content, "source_checkpoint": source}, **on(target))
            assert difference(mixed.image, reference.image) < difference(plain.image, reference.image) / 2
            assert webui.generate(**on(target)).image.tobytes() == plain.image.tobytes()

    def test_inpainting_checkpoint_with_a_mask(self, webui, base64_content):
        right = Image.new("L", (SIDE, SIDE), 0)
        right.paste(255, (SIDE // 2, 0, SIDE, SIDE))
        own = {"tab": "img2img", "init_images": [base64_content], "mask": encode(right), "inpainting_fill": 1,
               "denoising_strength": 0.8, **on("inpainting-ink")}
        before = webui.generate(**on("inpainting-ink"))
        plain, mixed = webui.generate(**own), webui.generate({"source_checkpoint": "house-noto"}, **own)
        assert difference(plain.image, mixed.image) > 1
        assert webui.generate(**on("inpainting-ink")).image.tobytes() == before.image.tobytes()

    @pytest.mark.parametrize("target", ["inpainting-ink", "sdxl-inpainting"])
    @pytest.mark.parametrize(("case", "sampler"), [("txt2img", "DDIM"), ("txt2img", "Euler"), ("mask", "DDIM"),
                                                   ("calls", "Euler"), ("AND", "DDIM")])
    def test_guidance_ends_in_an_inpainting_checkpoint(self, webui, base64_content, options, target, case, sampler):
        """Where rows are left out, so are their further channels."""
        settings, asked = {"image": base64_content}, {**on(target), "sampler_name": sampler}
        options(batch_cond_uncond=case != "calls")
        if case == "mask":
            left = Image.new("L", (SIDE, SIDE), 0)
            left.paste(255, (0, 0, SIDE // 2, SIDE))
            settings = {}
            asked |= {"tab": "img2img", "init_images": [base64_content], "mask": encode(left), "inpainting_fill": 1}
        if case == "AND":
            asked |= {"prompt": "a fox on pink AND a red hat", "batch_size": 2}
        ended = webui.generate({**settings, "guidance_until": 0.0}, **asked)
        if case != "AND":  # whose parts have weights of their own
            assert difference(ended.image, webui.generate(settings, **{**asked, "cfg_scale": 1}).image) < 1
        rows = []
        for until in (1.0, 0.6):
            webui.call("/ditail-test/rows", {})
            assert webui.generate({**settings, "guidance_until": until}, **asked).status == 200
            rows.append(sum(webui.call("/ditail-test/rows").json))
        assert rows[1] < rows[0]

    @pytest.mark.parametrize(("target", "refiner"), [("house-ink", "sd2-eps-a"), ("sdxl-eps-a", "sdxl-refiner")])
    def test_a_refiner_of_another_family(self, webui, base64_content, target, refiner):
        """Refused before anything is computed, unless nothing is left to inject when it takes over."""
        asked = {**on(target), "refiner_checkpoint": refiner, "refiner_switch_at": 0.6}
        settings = {"image": base64_content, "conv_ratio": 0.3, "attn_ratio": 0.3, "contours": 0.5}
        plain, mixed = webui.generate(**asked), webui.generate(settings, **asked)
        assert difference(plain.image, mixed.image) > 0.1
        assert f"Refiner: {refiner}" in mixed.infotext
        source_pass(webui)
        settings["alpha"] = 1.7  # the source is not in the cache
        for changed, at in (({"conv_ratio": 1.0}, 0.6), ({"layers": "a5@0.8-1"}, 0.6), ({}, 0.1)):
            refused = webui.generate({**settings, **changed}, **{**asked, "refiner_switch_at": at})
            assert refused.status == 422 and refused.error.startswith(f"refiner_checkpoint: {refiner} is ")
        assert source_pass(webui) == []

    def test_a_hires_checkpoint_of_another_family(self, webui, base64_content):
        def asked(checkpoint: str) -> dict:
            return {**on("house-ink"), "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Lanczos",
                    "denoising_strength": 0.6, "hr_checkpoint_name": checkpoint}

        one, other = (webui.generate({"image": base64_content, "hires": hires}, **asked("house-flat")).image
                      for hires in (True, False))
        assert difference(one, other) > 0.3
        refused = webui.generate({"image": base64_content}, **asked("sdxl-eps-a"))
        assert refused.status == 422
        assert refused.error.startswith("hr_checkpoint_name: sdxl-eps-a is SDXL, the target house-ink is SD 1.x")
        assert webui.generate({"image": base64_content, "hires": False}, **asked("sdxl-eps-a")).status == 200

    def test_a_refiner_without_a_header_ends_its_own_cell_alone(self, webui, base64_content):
        """A pickle is read when it takes over; the plot goes on with the cells after it."""
        asked = {**on("house-ink"), "refiner_checkpoint": "sdxl-pickle", "refiner_switch_at": 0.6}
        settings = {"image": base64_content, "attn_ratio": 0.0}
        refused = webui.generate({**settings, "conv_ratio": 1.0}, **asked)
        assert refused.status == 422
        assert refused.error.startswith("refiner_checkpoint: sdxl-pickle is SDXL, the target house-ink is SD 1.x")
        alone = webui.generate({**settings, "conv_ratio": 0.3}, **asked).image
        plot = webui.plot(settings, ("[Ditail] Feature ratio", "1, 0.3"), **asked)
        assert difference(plot.images[-1], alone) < 0.01
        assert webui.state()["hooks"] == 0

    @pytest.mark.parametrize(("source", "target", "sentence"), [
        ("sdxl-eps-a", "house-ink", "source_checkpoint: sdxl-eps-a is SDXL, the target house-ink is SD 1.x"),
        ("sd2-eps-a", "house-ink", "source_checkpoint: sd2-eps-a is SD 2.x, the target house-ink is SD 1.x"),
        ("house-ink", "sdxl-v-a", "source_checkpoint: house-ink is SD 1.x, the target sdxl-v-a is SDXL"),
        ("sdxl-pickle", "house-ink", "source_checkpoint: sdxl-pickle is SDXL, the target house-ink is SD 1.x"),
        ("pix2pix", "house-ink", "source_checkpoint: pix2pix is InstructPix2Pix"),
        ("sd3", "house-ink", "source_checkpoint: sd3 is SD3"),
        ("", "pix2pix", "the target pix2pix is InstructPix2Pix"),
        ("", "sd3", "the target sd3 is SD3: Ditail needs"),
    ])
    def test_refused(self, webui, base64_content, source, target, sentence):
        webui.generate(steps=1)
        refused = webui.generate({"image": base64_content, "source_checkpoint": source}, **on(target))
        assert refused.status == 422 and refused.error.startswith(sentence)
        assert webui.generate(**on("house-ink")).status == 200
        assert webui.state()["hooks"] == 0


class TestSchedules:
    def test_zero_terminal_snr(self, webui, families, base64_content, content, options):
        """The schedule counts from the first job after it was chosen, in the inversion and in the sampling."""
        target = {**on("sd2-v-a"), "sampler_name": "Euler"}
        usual = webui.generate({"image": base64_content}, **target)
        options(sd_noise_schedule="Zero Terminal SNR")
        first = webui.generate({"image": base64_content}, **target)
        again = webui.generate({"image": base64_content}, **target)
        assert first.image.tobytes() == again.image.tobytes()
        assert difference(first.image, usual.image) > 0.1
        back = webui.generate({"image": base64_content, **THERE_AND_BACK}, **CFG_1, **target)
        plain = webui.generate(**CFG_1, **target)
        assert difference(back.image, content) < difference(plain.image, content) / 4

    def test_downcast_alphas(self, webui, ditail, options):
        usual = webui.generate(ditail)
        options(use_downcasted_alpha_bar=True)
        plain, mixed = webui.generate(), webui.generate(ditail)
        assert difference(mixed.image, usual.image) < 5 < difference(mixed.image, plain.image)


class TestTextEncoder:
    @pytest.mark.parametrize(("target", "chosen"), [
        ("house-ink", {"CLIP_stop_at_last_layers": 2}),
        # Forge has one setting for both families; the small text encoder has two layers.
        ("sdxl-v-a", {"CLIP_stop_at_last_layers": 3} if IS_FORGE else {"sdxl_clip_l_skip": True}),
    ])
    def test_clip_skip(self, webui, families, base64_content, options, target, chosen):
        settings = {"image": base64_content, "conv_ratio": 0, "attn_ratio": 0}
        usual = webui.generate(settings, **on(target))
        source_pass(webui)
        options(**chosen)
        skipped = webui.generate(settings, **on(target))
        assert len(source_pass(webui)) == DDIM_CALLS
        assert difference(usual.image, skipped.image) > 0.1


@pytest.fixture(scope="module")
def other_vae(webui) -> str:
    """A VAE with another encoder, and a checkpoint that has it inside."""
    models = webui.data / "models"
    checkpoint = load_file(models / "Stable-diffusion" / "house-noto.safetensors")
    prefix = "first_stage_model."
    vae = {k.removeprefix(prefix): v for k, v in checkpoint.items() if k.startswith(prefix)}
    vae["encoder.conv_out.weight"] = vae["encoder.conv_out.weight"] * 1.3
    (models / "VAE").mkdir(exist_ok=True)
    save_file(vae, models / "VAE" / "other.safetensors")
    save_file({**checkpoint, **{prefix + k: v for k, v in vae.items()}},
              models / "Stable-diffusion" / "noto-with-other-vae.safetensors", metadata={"format": "pt"})
    config = (models / "Stable-diffusion" / "house-noto.yaml").read_text()
    (models / "Stable-diffusion" / "noto-with-other-vae.yaml").write_text(config)
    webui.call("/sdapi/v1/refresh-vae", {})
    webui.call("/sdapi/v1/refresh-checkpoints", {})
    return "other.safetensors"


class TestVAE:
    def test_a_source_with_another_vae(self, webui, ditail, other_vae):
        """By `source_vae` or inside the checkpoint is the same for the source, and the target keeps its own."""
        webui.generate(steps=1)
        plain, before = webui.generate(), webui.state()
        usual = webui.generate(ditail)
        chosen = webui.generate({**ditail, "source_vae": other_vae})
        inside = webui.generate({**ditail, "source_checkpoint": "noto-with-other-vae"})
        assert chosen.image.tobytes() == inside.image.tobytes()
        assert difference(usual.image, chosen.image) > 1
        assert webui.state() == before
        assert webui.generate().image.tobytes() == plain.image.tobytes()

    def test_another_vae_for_the_same_checkpoint(self, webui, base64_content, other_vae):
        webui.generate(steps=1)
        plain, before = webui.generate(), webui.state()
        usual = webui.generate({"image": base64_content})
        loads = webui.checkpoint_loads()
        chosen = webui.generate({"image": base64_content, "source_vae": other_vae})
        assert webui.checkpoint_loads() == loads
        assert difference(usual.image, chosen.image) > 1
        assert webui.state() == before
        assert webui.generate().image.tobytes() == plain.image.tobytes()

    def test_the_targets_own_vae(self, webui, ditail, other_vae, options):
        """A VAE chosen for the WebUI is the target's; the source keeps its checkpoint's."""
        options(sd_vae=other_vae)
        plain, mixed = webui.generate(), webui.generate(ditail)
        assert difference(plain.image, mixed.image) > 1
        assert webui.state()["vae"].endswith(other_vae)
        assert webui.generate().image.tobytes() == plain.image.tobytes()
