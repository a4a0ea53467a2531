"""The tabs in headless Chromium. With SD_WEBUI_SCREENSHOTS set to a folder, both tabs are kept there as images."""

import pytest

from tests.webui.browser import (
    choose,
    choose_image,
    fill,
    generate,
    open_advanced,
    open_tab,
    screenshot,
    show_tab,
    wait_for_line,
)
from tests.webui.data_folder import scene
from tests.webui.server import IS_FORGE


def test_txt2img(page, tmp_path, webui):
    scene(44).save(tmp_path / "fox.png")
    open_tab(page, "txt2img")
    choose_image(page, "txt2img", tmp_path / "fox.png")
    page.click("#txt2img_ditail_use_size")
    assert page.input_value("#txt2img_width input[type=number]") == "128"
    fill(page, "txt2img", prompt="a fox on cream", seed=1, steps=40, cfg_scale=5)
    choose(page, "txt2img_ditail_source_checkpoint", "house-noto")
    wait_for_line(page, "txt2img", "Inverts the content image with house-noto")
    seen = generate(page, "txt2img")
    assert "Ditail: inverting the content image" in seen and "[preview]" in seen
    assert "Ditail: sampling with house-ink" in seen
    screenshot(page, "webui-txt2img.png")
    open_advanced(page, "txt2img")
    screenshot(page, "webui-advanced.png")
    fill(page, "txt2img", ditail_alpha=1.75, steps=4)
    generate(page, "txt2img")
    infotext = page.inner_text("#html_info_txt2img")
    assert "Ditail alpha: 1.75" in infotext and "Ditail source checkpoint: house-noto" in infotext

    fill(page, "txt2img", ditail_alpha=9, prompt=infotext)
    page.click("#txt2img_tools #paste")
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_alpha input[type=number]').value == '1.75'")
    assert page.input_value("#txt2img_prompt textarea") == "a fox on cream"
    assert "house-noto" in page.input_value("#txt2img_ditail_source_checkpoint input")
    assert page.is_visible("#txt2img_ditail_alpha")


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_a_warning_follows_the_cfg_scale(page, tab):
    """Outside the safe region the tab says so at once, and nothing within it."""
    open_tab(page, tab)
    fill(page, tab, cfg_scale=25)
    wait_for_line(page, tab, "CFG scale 25 is above 10")
    fill(page, tab, cfg_scale=5)
    wait_for_line(page, tab, "CFG scale", gone=True)


def test_plain_infotext_switches_ditail_off(page):
    open_tab(page, "txt2img")
    fill(page, "txt2img", prompt="a cat\nSteps: 7, Sampler: Euler, CFG scale: 4, Seed: 3, Size: 128x128")
    page.click("#txt2img_tools #paste")
    page.wait_for_selector("#txt2img_ditail_balance", state="hidden")


def test_img2img(page, image):
    open_tab(page, "img2img")
    page.set_input_files("#img2img_image input[type=file]", image)
    page.wait_for_selector("#img2img_image img")
    fill(page, "img2img", prompt="a fox on pink", seed=1, steps=20, cfg_scale=5, width=128, height=128)
    choose(page, "img2img_ditail_source_checkpoint", "house-noto")
    generate(page, "img2img")
    assert "Ditail inversion steps: 0.5" in page.inner_text("#html_info_img2img")
    screenshot(page, "webui-img2img.png")


def test_upscale_button(page, image, webui):
    """The hires pass alone, on a finished image: its content is inverted at the large size, and only there."""
    open_tab(page, "txt2img")
    choose_image(page, "txt2img", image)
    open_advanced(page, "txt2img")
    fill(page, "txt2img", prompt="a fox on pink", seed=1, steps=4, width=128, height=128, ditail_alpha=1.15)
    generate(page, "txt2img")
    before = webui.loads_and_inversions()[1]
    page.click("#txt2img_upscale")
    page.wait_for_function("gradioApp().querySelector('#html_info_txt2img').innerText.includes('Hires upscale')",
                           timeout=120_000)
    assert "Ditail alpha: 1.15" in page.inner_text("#html_info_txt2img")
    assert webui.loads_and_inversions()[1] - before == 1


def choose_folder(page) -> None:
    """Choose the tab that takes a folder, and wait until the server has heard of it: gradio 4 has no websocket."""
    tab = "#img2img_batch_source > .tab-nav > button:text-is('From directory')"
    if IS_FORGE:
        with page.expect_response(lambda answer: "queue/join" in answer.url):
            page.click(tab)
        page.wait_for_timeout(1000)
        return
    with page.expect_websocket() as event:
        page.click(tab)
    if not event.value.is_closed():
        event.value.wait_for_event("close")


def test_batch_tab(page, content, tmp_path, webui):
    """A folder of images: each is its own content."""
    for i in range(3):
        content.rotate(90 * i).save(tmp_path / f"{i}.png")
    open_tab(page, "img2img", advanced=True)
    page.click("#mode_img2img > .tab-nav > button:text-is('Batch')")
    choose_folder(page)
    page.fill("#img2img_batch_input_dir textarea", str(tmp_path))
    fill(page, "img2img", prompt="a fox on pink", seed=1, steps=8, cfg_scale=5, width=128, height=128,
         ditail_alpha=1.35)
    webui.call("/ditail-test/latents")  # empties the cache
    before = webui.loads_and_inversions()[1]
    generate(page, "img2img")
    assert webui.loads_and_inversions()[1] - before == 3
    assert "Ditail alpha: 1.35" in page.inner_text("#html_info_img2img")


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_matrix(page, image, tab):
    show_tab(page, tab)
    fill(page, tab, prompt="a fox on mint", seed=7, steps=15, cfg_scale=5, width=128, height=128)
    if tab == "img2img":
        page.set_input_files("#img2img_image input[type=file]", image)
        page.wait_for_selector("#img2img_image img")
        fill(page, tab, prompt="a fox on pink", denoising_strength=0.9)
    page.click(f"#{tab}_script_container #script_list input")
    page.click(f"#{tab}_script_container #script_list ul.options li:has-text('Ditail matrix')")
    page.wait_for_selector(f"#{tab}_ditail_matrix_checkpoints", state="visible")
    for name in ("house-noto", "house-flat", "house-ink"):
        choose(page, f"{tab}_ditail_matrix_checkpoints", name)
    seen = generate(page, tab)
    assert "Ditail, 4 of 9: " in seen
    assert page.locator(f"#{tab}_gallery .thumbnails img").count() == 10
    screenshot(page, f"webui-matrix-{tab}.png")
