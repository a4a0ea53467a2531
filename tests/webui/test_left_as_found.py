"""Whatever happens in a job with Ditail, the WebUI is as it was, and a plain image is the same to the bit."""

import threading
import time

import pytest

from tests.webui.server import IS_FORGE

TIMEOUT = 60


@pytest.fixture
def untouched(webui):
    """Checks after the test that the state and a plain image are those from before it."""
    plain = webui.generate().image.tobytes()
    before = webui.state()
    yield
    assert webui.state() == before
    assert webui.generate().image.tobytes() == plain


def start(request, *args, **kwargs) -> tuple[threading.Thread, list]:
    answers = []
    thread = threading.Thread(target=lambda: answers.append(request(*args, **kwargs)))
    thread.start()
    return thread, answers


def wait_until(webui, reached) -> dict:
    """The first progress report whose state is as asked."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        progress = webui.call("/sdapi/v1/progress").json
        if reached(progress["state"]):
            return progress
        time.sleep(0.05)
    raise AssertionError(f"the progress never got there; it is at {progress['state']}")


def wait_for_source_pass(webui) -> dict:
    """The first progress report from inside the source pass, preview included."""
    return wait_until(webui, lambda state: state["job"].startswith("Ditail: ") and state["sampling_step"] > 12)


@pytest.mark.usefixtures("untouched")
class TestLeftAsFound:
    def test_success(self, webui, ditail):
        assert webui.generate({**ditail, "alpha": 1.25}).status == 200

    def test_img2img_and_options(self, webui, ditail, base64_content):
        made = webui.generate({**ditail, "image": None, "alpha": 1.25, "source_vae": "None"}, tab="img2img",
                              init_images=[base64_content])
        assert made.status == 200

    def test_hires(self, webui, ditail):
        assert webui.generate(ditail, enable_hr=True, hr_scale=1.5, hr_upscaler="Latent", denoising_strength=0.5,
                              hr_second_pass_steps=3).status == 200

    def test_generated_source(self, webui):
        assert webui.generate({"source": "generate", "source_checkpoint": "house-flat"}, cfg_scale=6).status == 200

    def test_refused_settings(self, webui, ditail):
        assert webui.generate({**ditail, "alpha": 11}).status == 422

    def test_checkpoint_that_is_none(self, webui, ditail):
        assert webui.generate({**ditail, "source_checkpoint": "broken"}).status == 422

    @pytest.mark.parametrize("call", [3, 15])
    def test_out_of_memory(self, webui, base64_content, call):
        """Call 3 is in the source pass (the same checkpoint: no new U-Net), call 15 in the sampling."""
        webui.call("/ditail-test/fail", {"call": call})
        answer = webui.generate({"image": base64_content, "alpha": 4 + call / 100})
        assert answer.status == 500 and "no memory left" in str(answer.json)

    def test_out_of_memory_with_another_checkpoint(self, webui, ditail):
        webui.generate({**ditail, "alpha": 4.5})
        webui.call("/ditail-test/fail", {"call": 4})
        assert webui.generate({**ditail, "alpha": 4.5}).status == 500

    @pytest.mark.parametrize("button", ["interrupt", "skip"])
    def test_stopped_in_the_source_pass(self, webui, ditail, button):
        thread, answers = start(webui.generate, {**ditail, "alpha": 5.5 if button == "skip" else 5.25}, steps=120)
        progress = wait_for_source_pass(webui)
        webui.call(f"/sdapi/v1/{button}", {})
        thread.join(TIMEOUT)
        assert answers[0].status == 200 and answers[0].images == []
        assert progress["state"]["job_count"] == 2 and progress["state"]["job_no"] == 0
        assert progress["current_image"]

    def test_interrupted_in_the_sampling(self, webui, base64_content):
        thread, answers = start(webui.generate, {"image": base64_content, "alpha": 5.75}, steps=100)
        wait_until(webui, lambda state: state["job_no"] == 1 and state["sampling_step"] > 0)
        webui.call("/sdapi/v1/interrupt", {})
        thread.join(TIMEOUT)
        assert len(answers[0].images) == 1


def test_interrupted_sweep(webui, ditail):
    """In the sampling of the second cell, when both of its models have been away from where they belong."""
    # A plot without Ditail, too, writes the checkpoint's name in full, and draws no noise for the cells that are left.
    like_a_plain_plot = {"options", "torch_rng"}
    plain = webui.generate().image.tobytes()
    before = webui.state()
    thread, answers = start(
        webui.plot, {**ditail, "alpha": 5.85}, ("[Ditail] Source checkpoint", ["house-noto", "house-flat"]),
        ("Checkpoint name", ["house-flat", "house-ink"]), steps=60, override_settings_restore_afterwards=True)
    wait_until(webui, lambda state: state["job"] == "2 out of 4")
    webui.call("/sdapi/v1/interrupt", {})
    thread.join(TIMEOUT)
    assert answers[0].status == 200
    if IS_FORGE:
        webui.generate(steps=1)  # until then Forge keeps the last cell's checkpoint, after a plain plot, too
    after = webui.state()
    assert {key for key in before if after[key] != before[key]} <= like_a_plain_plot
    assert webui.generate().image.tobytes() == plain


def test_progress_only_grows(webui, ditail):
    webui.generate(steps=1)
    thread, answers = start(webui.generate, {**ditail, "alpha": 6.25}, steps=60)
    seen = []
    while thread.is_alive():
        report = webui.call("/sdapi/v1/progress?skip_current_image=true").json
        if report["state"]["job_count"] > 0:
            seen.append((report["progress"], report["textinfo"]))
        time.sleep(0.05)
    values = [value for value, _ in seen]
    assert values == sorted(values) and max(values) > 0.7
    assert any(text == "Ditail: inverting the content image" for _, text in seen)
    assert answers[0].status == 200


def test_reload_of_the_ui(webui, ditail):
    plain = webui.generate().image.tobytes()
    before = webui.state()
    mixed = webui.generate(ditail).image.tobytes()
    starts = webui.log.read_text(errors="replace").count("Startup time:")
    webui.call("/ditail-test/reload-ui", {})
    webui.wait_for_start(webui.process, starts + 1)
    assert webui.generate().image.tobytes() == plain
    after = webui.state()
    assert (after["hooks"], after["callbacks"], after["checkpoint"]) == (
        before["hooks"], before["callbacks"], before["checkpoint"])
    assert webui.generate(ditail).image.tobytes() == mixed
