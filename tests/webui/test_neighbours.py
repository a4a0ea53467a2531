"""Other scripts and extensions in the same job."""

import os
import subprocess
import sys

import pytest

from tests.webui.data_folder import ROOT
from tests.webui.server import FLAGS, OFFLINE
from tests.webui.webui_helpers import SIDE, difference, encode


@pytest.fixture
def init(base64_content) -> dict:
    return {"tab": "img2img", "init_images": [base64_content], "denoising_strength": 0.7}


def inversions(webui) -> int:
    return webui.loads_and_inversions()[1]


def test_a_script_that_rewrites_prompts(webui, ditail):
    """Each image's own prompt is its source's, too."""
    before = inversions(webui)
    made = webui.generate({**ditail, "alpha": 1.9}, prompt="a {fox|cat} on pink", batch_size=2, n_iter=2)
    assert inversions(webui) - before == 2
    for i, image in enumerate(made.images):
        alone = webui.generate({**ditail, "alpha": 1.9}, prompt=f"a {('fox', 'cat')[i % 2]} on pink", seed=1 + i)
        assert difference(image, alone.image) < 1


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
@pytest.mark.parametrize("mode", ["alone", "all"])
def test_a_script_with_a_job_of_its_own(webui, ditail, init, tab, mode):
    """The outer job goes on as if nothing had been, inside the box and out."""
    asked = {"n_iter": 2, **(init if tab == "img2img" else {})}
    settings = {**ditail, "image": ditail["image"] if tab == "txt2img" else None, "alpha": 2.1}
    scripts = {"Ditail": {"args": [{"enabled": True, **settings}]}, "Detailer of the test": {"args": [mode]}}
    before, usual = webui.state(), webui.generate(settings, **asked)
    made = webui.generate(None, **asked, alwayson_scripts=scripts)
    outside, inside = (0, 0, SIDE, 16), (40, 40, 88, 88)
    for ours, detailed, text in zip(usual.images, made.images, made.infotexts, strict=True):
        assert difference(ours.crop(outside), detailed.crop(outside)) < 0.5
        assert difference(ours.crop(inside), detailed.crop(inside)) > 1
        hashes = [t.partition("Ditail image hash: ")[2][:10] for t in (text, usual.infotext)]
        assert hashes[0] == hashes[1]
    same = {key: value for key, value in webui.state().items() if key not in ("torch_rng", "weights")}
    assert same == {key: before[key] for key in same}


def test_img2img_alternative_is_refused(webui, ditail, init):
    answer = webui.generate({**ditail, "image": None}, script_name="img2img alternative test",
                            script_args=["", True, True, "a fox", "", True, 4, True, 1, 0, False], **init)
    assert answer.status == 422 and answer.error.startswith("enabled: ") and "img2img alternative" in answer.error


def test_sd_upscale(webui, ditail, init):
    """Each tile is its own content."""
    before = inversions(webui)
    asked = {"script_name": "SD upscale", "script_args": ["", 32, "Lanczos", 1.5], **init}
    made = webui.generate({**ditail, "image": None, "alpha": 2.2}, **asked)
    assert inversions(webui) - before == 4
    assert made.image.size == (192, 192)
    assert difference(made.image, webui.generate(**asked).image) > 1


@pytest.mark.parametrize("own", [False, True])
def test_sd_upscale_whose_last_batch_is_not_full(webui, ditail, content, own):
    """Six tiles in batches of four."""
    asked = {"tab": "img2img", "init_images": [encode(content.resize((192, 128)))], "denoising_strength": 0.7,
             "script_name": "SD upscale", "script_args": ["", 32, "Lanczos", 1.5]}
    settings = {**ditail, "image": ditail["image"] if own else None, "alpha": 2.2}
    made, one_by_one = (webui.generate(settings, batch_size=size, **asked) for size in (4, 1))
    assert made.status == 200, made.json
    assert made.image.size == one_by_one.image.size == (288, 192)
    # The first tile has the same seed in both.
    assert difference(made.image.crop((0, 0, 90, 90)), one_by_one.image.crop((0, 0, 90, 90))) < 1


@pytest.mark.parametrize("script", [
    {"script_name": "SD upscale", "script_args": ["", 32, "Lanczos", 1.5]},
    {"script_name": "Loopback", "script_args": [2, 0.7, "Linear", "None"]},
    {"script_name": "Prompt matrix", "script_args": [False, False, "positive", "comma", 0],
     "prompt": "a fox|on pink|a star"},
    {"script_name": "Ditail matrix",
     "script_args": [{"checkpoints": ["house-ink", "house-noto"], "show_source": True}]},
], ids=lambda script: script["script_name"])
def test_no_source_is_shown_to_a_script_that_lays_its_jobs_images_out(webui, ditail, init, script):
    settings = {**ditail, "image": None}
    usual = webui.generate(settings, **init, **_without_show_source(script))
    shown = webui.generate({**settings, "show_source": True}, **init, **script)
    comment = f"Ditail: the content images are not shown with the script {script['script_name']}"
    assert comment in webui.call("/ditail-test/comments").json
    assert len(shown.images) == len(usual.images) == len(shown.infotexts)
    assert max(map(difference, shown.images, usual.images)) < 0.1


def _without_show_source(script: dict) -> dict:
    args = [{key: value for key, value in arg.items() if key != "show_source"} if isinstance(arg, dict) else arg
            for arg in script["script_args"]]
    return {**script, "script_args": args}


def test_sources_are_shown_in_jobs_of_a_plot(webui, ditail):
    """The plot reads only the first image of each job."""
    usual, shown = (webui.plot({**ditail, "show_source": show}, ("[Ditail] Alpha", "1, 2")) for show in (False, True))
    assert [image.tobytes() for image in shown.images] == [image.tobytes() for image in usual.images]


def test_loopback(webui, ditail, init):
    """Each loop's content is what the loop before made."""
    asked = {"script_name": "Loopback", "script_args": [2, 0.7, "Linear", "None"], **init}
    before = inversions(webui)
    made = webui.generate({**ditail, "image": None, "alpha": 2.3}, **asked)
    assert inversions(webui) - before == 2
    plain = webui.generate(**asked)
    assert difference(made.images[-1], plain.images[-1]) > 1


def test_prompt_matrix(webui, ditail):
    before = inversions(webui)
    made = webui.generate({**ditail, "alpha": 2.4}, prompt="a fox|on pink|a star", script_name="Prompt matrix",
                          script_args=[False, False, "positive", "comma", 0])
    assert inversions(webui) - before == 4 and len(made.images) == 5
    alone = webui.generate({**ditail, "alpha": 2.4}, prompt="a fox, on pink")
    assert difference(made.images[2], alone.image) < 1


def test_sd_unet_is_refused(webui, ditail):
    answer = webui.generate(ditail, override_settings={"sd_unet": "[Test] replacement"})
    assert answer.status == 422 and answer.error.startswith("sd_unet: ") and "[Test] replacement" in answer.error
    assert webui.generate(ditail, override_settings={"sd_unet": "None"}).status == 200


@pytest.fixture(scope="module")
def control(webui, content) -> dict:
    """A unit with a control model of random weights, and an image for it."""
    folder = webui.data / "models" / "ControlNet"
    folder.mkdir(exist_ok=True)
    webui.call("/ditail-test/control-model", {"path": str(folder / "test-control.safetensors")})
    found = webui.call("/controlnet/model_list?update=true").json["model_list"]
    return {"enabled": True, "module": "none", "model": next(name for name in found if "test-control" in name),
            "image": encode(content.rotate(90)), "weight": 1.0}


@pytest.mark.skipif("SD_WEBUI_CONTROLNET_DIR" not in os.environ, reason="SD_WEBUI_CONTROLNET_DIR is not set")
class TestControlNet:
    def generate(self, webui, unit, ditail=None, **asked):
        scripts = {"ControlNet": {"args": [unit]}}
        if ditail is not None:
            scripts["Ditail"] = {"args": [{"enabled": True, **ditail}]}
        return webui.generate(None, alwayson_scripts=scripts, **asked)

    @pytest.mark.parametrize("tab", ["txt2img", "img2img"])
    @pytest.mark.parametrize("checkpoint", ["", "house-noto"])
    def test_it_acts_on_the_image_and_not_on_the_source(self, webui, ditail, init, control, checkpoint, tab):
        ditail, asked = {**ditail, "source_checkpoint": checkpoint}, init if tab == "img2img" else {}
        plain, alone = webui.generate(**asked), webui.generate(ditail, **asked)
        expected = webui.call("/ditail-test/latents").json[-1:]
        both = self.generate(webui, control, ditail, **asked)
        assert webui.call("/ditail-test/latents").json == expected
        assert difference(both.image, alone.image) > 1
        # Warm, with the models as the job found them.
        warm = self.generate(webui, control, ditail, **asked)
        assert difference(both.image, warm.image) < 1
        controlled = self.generate(webui, control, **asked)
        nothing = {**ditail, "start": "noise", "conv_ratio": 0.0, "attn_ratio": 0.0}
        assert difference(self.generate(webui, control, nothing, **asked).image, controlled.image) < 0.1
        assert webui.generate(**asked).image.tobytes() == plain.image.tobytes()

    def test_hires_and_loopback(self, webui, ditail, init, control):
        hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
        alone, both = webui.generate(ditail, **hires), self.generate(webui, control, ditail, **hires)
        assert difference(alone.image, both.image) > 1
        looped = self.generate(webui, control, {**ditail, "image": None}, script_name="Loopback",
                               script_args=[2, 0.7, "Linear", "None"], **init)
        assert difference(looped.images[-1], looped.images[-2]) > 1

    def test_reference_only(self, webui, ditail, control):
        """It rewrites the self-attention that Ditail injects into: refused, unless only features are injected."""
        unit = {**control, "module": "reference_only", "model": "None"}
        answer = self.generate(webui, unit, ditail)
        assert answer.status == 422 and answer.error.startswith("attn_ratio: ControlNet's reference")
        features = {**ditail, "attn_ratio": 0.0}
        assert difference(self.generate(webui, unit, features).image, webui.generate(features).image) > 0.5
        assert difference(self.generate(webui, unit, features).image, self.generate(webui, unit).image) > 0.5


LOAD = """
import sys
sys.argv = ["webui.py", *{flags}, "--skip-load-model-at-start", "--data-dir", {data!r}]
from modules import initialize
initialize.imports()
initialize.initialize()
from pathlib import Path
from modules import scripts
names = {{f"{{Path(data.path).parts[-3]}}/{{data.script_class.__name__}}" for data in scripts.scripts_data}}
print("loaded:", *sorted(name for name in names if "/Ditail" in name))
"""


@pytest.mark.skipif("SD_WEBUI_DITAIL_DIR" not in os.environ, reason="SD_WEBUI_DITAIL_DIR is not set")
@pytest.mark.parametrize(("ours", "theirs", "sentence", "loaded"), [
    ("a-ditail", "b-ditail", "Ditail: b-ditail can't work beside this extension",
     "a-ditail/DitailFolder a-ditail/DitailMatrix a-ditail/DitailScript"),
    ("b-ditail", "a-ditail", "Ditail is off: another extension has brought its own package", "a-ditail/DitailScript"),
])
def test_the_published_extension_of_the_same_name(tmp_path, ours, theirs, sentence, loaded):
    """Whichever loads first works; one sentence names the other. (Theirs, if second, fails with a traceback.)"""
    extensions = tmp_path / "extensions"
    extensions.mkdir()
    (extensions / ours).symlink_to(ROOT)
    (extensions / theirs).symlink_to(os.environ["SD_WEBUI_DITAIL_DIR"])
    python = os.environ.get("SD_WEBUI_PYTHON", sys.executable)
    done = subprocess.run([python, "-c", LOAD.format(flags=FLAGS, data=str(tmp_path))],
                          cwd=os.environ["SD_WEBUI_DIR"], env={**os.environ, **OFFLINE}, capture_output=True, text=True)
    scripts = [line for line in done.stdout.splitlines() if line.startswith("loaded: ")]
    assert scripts == [f"loaded: {loaded}"], done.stderr
    said = done.stdout + done.stderr
    assert said.count(sentence) == 1 and said.count("Disable") == 1
    assert f"{extensions / ours}/scripts" not in said
