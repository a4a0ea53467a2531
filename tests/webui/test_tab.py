"""What the tab says and does beside making images, in headless Chromium."""

import base64
import json
import re
import time
import zipfile

import pytest
from PIL import Image

from ditail.content.images import read_image
from ditail.content.presets import PRESETS
from ditail.job.plan import image_hash
from tests.webui.browser import (
    choose,
    choose_image,
    fill,
    generate,
    line_of,
    notice_of,
    open_advanced,
    open_page,
    open_tab,
    screenshot,
    show_tab,
    value_of,
    wait_for_line,
    wait_for_the_end,
)
from tests.webui.data_folder import ROOT

NO_SOURCE = "Ditail: interrupted before the source was ready, so there is no image"


@pytest.fixture
def own_presets():
    """The file of the user's own presets, which is as it was afterwards."""
    file = ROOT / "ditail_presets.json"
    before = file.read_bytes() if file.exists() else None
    file.unlink(missing_ok=True)
    yield file
    if before is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(before)


@pytest.fixture
def tab(page, image):
    """txt2img with a content image, ready for a small job."""
    open_tab(page, "txt2img")
    choose_image(page, "txt2img", image)
    fill(page, "txt2img", prompt="a fox on pink", seed=1, steps=4, width=128, height=128, cfg_scale=5)
    return page


def clear_image(page) -> None:
    """Empty the slot of the content image, by the button of gradio 3 or of gradio 4."""
    page.click("#txt2img_ditail_image :is(button[aria-label=Clear], button[aria-label='Remove Image'])")


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_first_level_has_at_most_eight_controls(page, tab):
    open_tab(page, tab)
    names = ("enabled-checkbox", "enabled-visible-checkbox", "image", "use_size", "preview", "source",
             "source_checkpoint", "preset", "balance", "forget", "advanced", "alpha", "source_prompt")
    seen = [name for name in names if page.is_visible(f"#{tab}_ditail_{name}")]
    first_level = ["image", *(["use_size"] if tab == "txt2img" else []), "preview", "source", "source_checkpoint",
                   "preset", "balance"]
    assert [name for name in seen if "checkbox" not in name] == [*first_level, "advanced"]
    # Nothing else than these, and the box that switches Ditail on.
    others = page.evaluate("""([tab, known]) => [...gradioApp().querySelectorAll(
            `#${tab}_ditail_enabled input:not([type=file]), #${tab}_ditail_enabled textarea`)]
        .filter(e => e.offsetParent && !known.some(name => e.closest(`#${tab}_ditail_${name}`)))
        .map(e => e.outerHTML)""", [tab, [*first_level, "advanced", "enabled-visible-checkbox"]])
    assert [html for html in others if "visible-checkbox" not in html] == []


def test_balance_moves_the_numbers_and_a_number_makes_it_custom(page):
    open_tab(page, "txt2img", advanced=True)
    fill(page, "txt2img", ditail_balance=1)
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_preset input').value === 'Structure'")
    assert float(page.input_value("#txt2img_ditail_contours input[type=number]")) == PRESETS["Structure"]["contours"]
    fill(page, "txt2img", ditail_balance=0.75)
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_preset input').value === 'Custom'")
    choose(page, "txt2img_ditail_preset", "Style")
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_balance input[type=number]').value === '0'")
    fill(page, "txt2img", ditail_alpha=2.5)
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_preset input').value === 'Custom'")


def test_user_presets(page, own_presets):
    open_tab(page, "txt2img", advanced=True)
    fill(page, "txt2img", ditail_alpha=2.5, ditail_preset_name="Mine")
    page.click("#txt2img_ditail_preset_save")
    page.wait_for_selector("#txt2img_ditail_preset_said :text('Saved')")
    assert json.loads(own_presets.read_text())["Mine"]["alpha"] == 2.5
    show_tab(page, "img2img")  # the other tab has it, too
    page.click("#img2img_ditail_enabled > .label-wrap")
    wait_for_line(page, "img2img", "Inverts")
    choose(page, "img2img_ditail_preset", "Mine")
    show_tab(page, "txt2img")
    choose(page, "txt2img_ditail_preset", "Paper")
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_alpha input[type=number]').value === '3'")
    choose(page, "txt2img_ditail_preset", "Mine")
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_alpha input[type=number]').value === '2.5'")
    fill(page, "txt2img", ditail_preset_name="Other")
    page.click("#txt2img_ditail_preset_rename")
    page.wait_for_selector("#txt2img_ditail_preset_said :text('Renamed')")
    assert value_of(page, "txt2img_ditail_preset") == "Other"
    page.click("#txt2img_ditail_preset_delete")
    page.wait_for_selector("#txt2img_ditail_preset_said :text('Deleted')")
    assert json.loads(own_presets.read_text()) == {}
    fill(page, "txt2img", ditail_preset_name="Balanced")
    page.click("#txt2img_ditail_preset_save")
    page.wait_for_selector("#txt2img_ditail_preset_said :text('comes with the extension')")


def test_the_line_says_what_generate_does_and_what_is_unwise(page, image):
    open_tab(page, "txt2img")
    wait_for_line(page, "txt2img", "There is no content image yet")
    assert "There is no prompt" in line_of(page, "txt2img")
    choose_image(page, "txt2img", image)
    wait_for_line(page, "txt2img", "no content image", gone=True)
    fill(page, "txt2img", prompt="a fox on pink")
    wait_for_line(page, "txt2img", "There is no prompt", gone=True)
    assert "until the prompt changes, as there is no source prompt" in line_of(page, "txt2img")
    open_advanced(page, "txt2img")
    fill(page, "txt2img", ditail_alpha=10, ditail_beta=10)
    wait_for_line(page, "txt2img", "Alpha or Beta is so large")
    choose(page, "txt2img_ditail_source_checkpoint", "house-noto")
    wait_for_line(page, "txt2img", "Inverts the content image with house-noto, then samples with house-ink in 20 steps")
    assert "times a plain image" in line_of(page, "txt2img")
    fill(page, "txt2img", ditail_guidance_until=0)
    wait_for_line(page, "txt2img", "0.64 while the source is cached")
    fill(page, "txt2img", prompt="a fox AND pink")
    wait_for_line(page, "txt2img", "1.08 while the source is cached")
    choose(page, "txt2img_ditail_source_checkpoint", "other-architecture")
    wait_for_line(page, "txt2img", "SDXL")
    page.click("#txt2img_ditail_source label:has-text('Generated')")
    wait_for_line(page, "txt2img", "Generates the content with")
    page.wait_for_selector("#txt2img_ditail_image", state="hidden")
    assert not page.is_visible("#txt2img_ditail_use_size")
    page.click("#txt2img_ditail_enabled-visible-checkbox")
    wait_for_line(page, "txt2img", "Generates", gone=True)


def test_the_line_names_a_checkpoint_that_is_gone(page, webui):
    file = webui.data / "models" / "Stable-diffusion" / "house-flat.safetensors"
    open_tab(page, "txt2img")
    choose(page, "txt2img_ditail_source_checkpoint", "house-flat")
    try:
        file.rename(file.with_suffix(".away"))
        page.click("#txt2img_ditail_refresh_source_checkpoint")
        wait_for_line(page, "txt2img", "Source checkpoint: the")
    finally:
        file.with_suffix(".away").rename(file)
        webui.call("/sdapi/v1/refresh-checkpoints", {})


@pytest.mark.parametrize("name", ["16 bit.png", "palette.png", "turned.jpg", "moving.gif"])
def test_images_of_every_kind_are_read_as_the_api_reads_them(page, content, tmp_path, name):
    """gradio's own conversion would clip 16 bits to white."""
    file, exif = tmp_path / name, Image.Exif()
    exif[0x0112] = 6
    images = {
        "16 bit.png": (Image.frombytes("I;16", content.size, bytes(grey for pixel in content.convert("L").tobytes()
                                                                   for grey in (pixel, pixel))), {}),
        "palette.png": (content.quantize(32), {"transparency": 0}), "turned.jpg": (content, {"exif": exif}),
        "moving.gif": (content, {"save_all": True, "append_images": [content.rotate(90)]}),
    }
    image, options = images[name]
    image.save(file, **options)
    open_tab(page, "txt2img")
    choose_image(page, "txt2img", file)
    fill(page, "txt2img", prompt="a fox on pink", seed=1, steps=2, width=128, height=128)
    generate(page, "txt2img")
    assert f"Ditail image hash: {image_hash(read_image(file))}" in page.inner_text("#html_info_txt2img")


def test_a_file_that_is_no_image_is_said_to_be_none(page, tmp_path):
    file = tmp_path / "text.png"
    file.write_text("not an image")
    open_tab(page, "txt2img")
    choose_image(page, "txt2img", file)
    wait_for_line(page, "txt2img", "The content image can't be read")


def test_preview(tab, webui):
    choose(tab, "txt2img_ditail_source_checkpoint", "house-noto")
    webui.call("/ditail-test/latents")  # empties the cache
    before = webui.loads_and_inversions()[1]
    files = set(webui.data.rglob("*.png"))
    tab.click("#txt2img_ditail_preview")
    tab.wait_for_function("gradioApp().querySelector('#html_info_txt2img').innerText.includes('Ditail preview')")
    assert "% of it comes back from house-noto" in tab.inner_text("#html_info_txt2img")
    assert tab.locator("#txt2img_gallery .thumbnails img").count() == 4
    assert webui.loads_and_inversions()[1] - before == 1
    assert set(webui.data.rglob("*.png")) == files
    tab.wait_for_timeout(1000)
    assert save(tab, webui) == 4
    generate(tab, "txt2img")
    assert "Ditail preset" not in tab.inner_text("#html_info_txt2img")
    assert "Steps: 4" in tab.inner_text("#html_info_txt2img")
    assert webui.loads_and_inversions()[1] - before == 1
    assert tab.locator("#txt2img_gallery .thumbnails img").count() <= 1


def save(page, webui) -> int:
    """Press the buttons that save the gallery as files and as an archive; returns how many images are in that."""
    before = set(webui.data.rglob("log/**/*"))
    for button, kind in (("save_txt2img", "png"), ("save_zip_txt2img", "zip")):
        page.click(f"#{button}")
        deadline = time.monotonic() + 60
        while not (files := set(webui.data.rglob(f"log/**/*.{kind}")) - before):
            assert time.monotonic() < deadline, button
            page.wait_for_timeout(200)
        page.wait_for_timeout(1000)
    return len([name for name in zipfile.ZipFile(files.pop()).namelist() if name.endswith(".png")])


def test_a_gallery_with_a_content_image_is_saved_and_its_infotext_pasted(tab, webui, options):
    options(save_selected_only=False)
    open_advanced(tab, "txt2img")
    tab.click("#txt2img_ditail_show_source input")
    generate(tab, "txt2img")
    assert save(tab, webui) == 2
    # The content image's own settings: those of the job, and the image.
    tab.click("#txt2img_gallery .thumbnails button >> nth=1")
    tab.wait_for_selector("#html_info_txt2img :text('Ditail shows: content image')")
    infotext = tab.inner_text("#html_info_txt2img")
    clear_image(tab)
    fill(tab, "txt2img", prompt=infotext, ditail_alpha=9)
    tab.click("#txt2img_tools #paste")
    tab.wait_for_selector("#txt2img_ditail_image img")
    assert value_of(tab, "txt2img_prompt") == "a fox on pink"
    assert float(tab.input_value("#txt2img_ditail_alpha input[type=number]")) == PRESETS["Balanced"]["alpha"]


def test_a_missing_image_is_said_in_the_tabs_words(page):
    open_tab(page, "txt2img")
    fill(page, "txt2img", prompt="a fox on pink", steps=2, width=128, height=128)
    generate(page, "txt2img")
    assert "Ditail: Content image: a content image is needed in txt2img" in page.inner_text("#html_log_txt2img")
    assert page.get_attribute("#html_log_txt2img .error", "role") == "alert"
    assert page.query_selector("#txt2img_gallery img") is None


def end_the_source_pass(page, webui, button: str) -> None:
    """Generate, and press a button while the content image is inverted."""
    fill(page, "txt2img", steps=150)
    webui.call("/ditail-test/latents")  # empties the cache
    page.click("#txt2img_generate")
    page.wait_for_function("gradioApp().querySelector('#txt2img_results .progressDiv')?.innerText"
                           ".includes('inverting the content image')")
    page.click(f"#txt2img_{button}")
    wait_for_the_end(page, "txt2img")


@pytest.mark.parametrize("button", ["interrupt", "skip"])
def test_a_source_pass_that_is_interrupted_says_so(tab, webui, button):
    """There is no image then; a notice beside the empty gallery says why, and the next Generate makes one."""
    end_the_source_pass(tab, webui, button)
    assert NO_SOURCE in notice_of(tab, "txt2img")
    assert tab.query_selector("#txt2img_gallery .thumbnails img, #txt2img_gallery .preview img") is None
    fill(tab, "txt2img", steps=2)
    generate(tab, "txt2img")
    assert NO_SOURCE not in notice_of(tab, "txt2img")
    assert tab.query_selector("#txt2img_gallery img")


@pytest.mark.parametrize("script", ["Ditail matrix", "Ditail folder"])
def test_a_script_that_is_interrupted_before_its_first_image_says_so(tab, webui, image, script):
    tab.click("#txt2img_script_container #script_list input")
    tab.click(f"#txt2img_script_container #script_list ul.options li:has-text('{script}')")
    if script == "Ditail matrix":
        tab.wait_for_selector("#txt2img_ditail_matrix_checkpoints", state="visible")
        for name in ("house-noto", "house-ink"):
            choose(tab, "txt2img_ditail_matrix_checkpoints", name)
    else:
        fill(tab, "txt2img", ditail_folder_folder=str(image.parent))
    end_the_source_pass(tab, webui, "interrupt")
    assert NO_SOURCE in notice_of(tab, "txt2img")
    assert tab.query_selector("#txt2img_gallery .thumbnails img, #txt2img_gallery .preview img") is None


def test_a_folder_of_images_with_their_text_files(page, content, tmp_path, webui, options):
    """Twice: the second run's files have names of their own, and later images have the usual ones again."""
    options(samples_save=True)
    for name in ("red fox", "turned"):
        content.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    (tmp_path / "broken.png").write_text("not an image")
    open_tab(page, "txt2img")
    fill(page, "txt2img", seed=1, steps=2, width=128, height=128, cfg_scale=5)
    page.click("#txt2img_script_container #script_list input")
    page.click("#txt2img_script_container #script_list ul.options li:has-text('Ditail folder')")
    generate(page, "txt2img")
    assert "Ditail folder: choose images or a folder" in notice_of(page, "txt2img")
    fill(page, "txt2img", ditail_folder_folder=str(tmp_path))
    page.click("#txt2img_ditail_folder_prompts label:has-text('.txt')")
    for number in ("", "-1"):
        generate(page, "txt2img")
        assert "broken.png is skipped: it is not an image that can be read" in notice_of(page, "txt2img")
        page.wait_for_function("name => [...gradioApp().querySelectorAll('#txt2img_gallery .thumbnails img')]"
                               ".some(image => decodeURI(image.src).includes(name))", arg=f"/red fox{number}.png")
        infotext = page.wait_for_selector("#html_info_txt2img :text('Ditail image name: red fox.png')").inner_text()
        assert infotext.startswith("a red fox\n")
    page.click("#txt2img_script_container #script_list input")
    page.click("#txt2img_script_container #script_list ul.options li:text-is('None')")
    choose_image(page, "txt2img", tmp_path / "turned.png")
    generate(page, "txt2img")
    saved = sorted(file.name for file in (webui.data / "outputs").rglob("*.png"))
    assert [name for name in saved if "fox" in name or "turned" in name] == [
        "red fox-1.png", "red fox.png", "turned-1.png", "turned.png"]


def test_kept_images_come_back_with_their_infotext(tab):
    generate(tab, "txt2img")
    infotext = tab.inner_text("#html_info_txt2img")
    assert "Ditail image name: content.png" in infotext
    clear_image(tab)
    tab.wait_for_selector("#txt2img_ditail_image img", state="detached")
    fill(tab, "txt2img", prompt=infotext)
    tab.click("#txt2img_tools #paste")
    tab.wait_for_selector("#txt2img_ditail_image img")
    assert value_of_hidden(tab, "image_name") == "content.png" and value_of_hidden(tab, "missing") == ""
    generate(tab, "txt2img")
    assert tab.inner_text("#html_info_txt2img") == infotext


def test_an_image_that_is_not_kept_is_named(tab, options):
    options(ditail_images_mb=0)
    generate(tab, "txt2img")
    infotext = re.sub(r"Ditail image hash: \w+", "Ditail image hash: 0123456789", tab.inner_text("#html_info_txt2img"))
    clear_image(tab)
    tab.wait_for_selector("#txt2img_ditail_image img", state="detached")
    fill(tab, "txt2img", prompt=infotext)
    tab.click("#txt2img_tools #paste")
    wait_for_line(tab, "txt2img", "The pasted settings were made with content.png (hash 0123456789)")
    generate(tab, "txt2img")
    assert "content.png (hash 0123456789), which is not kept here" in tab.inner_text("#html_log_txt2img")
    tab.click("#txt2img_ditail_forget")
    wait_for_line(tab, "txt2img", "The pasted settings", gone=True)


def value_of_hidden(page, name: str) -> str:
    return page.evaluate(f"gradioApp().querySelector('#txt2img_ditail_{name} textarea').value")


def test_send_to_ditail_and_the_prompt_from_the_image(tab):
    generate(tab, "txt2img")
    tab.click("#txt2img_send_to_ditail")
    tab.wait_for_function("gradioApp().querySelector('#txt2img_ditail_source_prompt textarea').value"
                          " === 'a fox on pink'")
    assert tab.query_selector("#txt2img_ditail_image img")
    tab.wait_for_function("gradioApp().querySelector('#txt2img_ditail_source_checkpoint input').value"
                          ".includes('house-ink')")
    wait_for_line(tab, "txt2img", "as there is no source prompt", gone=True)


def test_a_described_image_fills_an_empty_prompt(page, webui, ditail, tmp_path):
    file = tmp_path / "made.png"
    made = webui.generate(ditail, steps=2, prompt="a fox", styles=["test style"])  # which adds "on pink"
    file.write_bytes(base64.b64decode(made.json["images"][0]))
    open_tab(page, "txt2img", advanced=True)
    choose_image(page, "txt2img", file)
    page.click("#txt2img_ditail_take_prompt")
    page.wait_for_function("gradioApp().querySelector('#txt2img_prompt textarea').value === 'a fox on pink'")
    assert value_of_hidden(page, "source_prompt") == "a fox on pink"
    wait_for_line(page, "txt2img", "There is no prompt", gone=True)


def test_a_page_after_a_refresh_takes_what_the_image_describes(browser, page, webui, ditail, tmp_path):
    """The refresh button sets the choices of the component, from which the next page starts."""
    file = tmp_path / "made.png"
    file.write_bytes(base64.b64decode(webui.generate(ditail, steps=2).json["images"][0]))
    open_tab(page, "txt2img")
    page.click("#txt2img_ditail_refresh_source_checkpoint")
    page.wait_for_timeout(3000)
    with open_page(browser, webui.url) as later:
        open_tab(later, "txt2img", advanced=True)
        choose_image(later, "txt2img", file)
        later.click("#txt2img_ditail_take_prompt")
        later.wait_for_function("gradioApp().querySelector('#txt2img_ditail_source_checkpoint input').value"
                                ".includes('house-ink')")


def test_send_to_img2img_carries_nothing_of_ditail(tab):
    generate(tab, "txt2img")
    tab.click("#txt2img_send_to_img2img")
    tab.wait_for_selector("#img2img_image img")
    tab.wait_for_timeout(1500)
    assert not tab.is_visible("#img2img_ditail_balance")


def test_pnginfo_sends_to_ditail(page, tmp_path, webui, ditail):
    answer = webui.generate(ditail, steps=2)
    file = tmp_path / "made.png"
    file.write_bytes(base64.b64decode(answer.json["images"][0]))
    show_tab(page, "PNG Info")
    page.set_input_files("#pnginfo_image input[type=file]", file)
    page.wait_for_function("gradioApp().querySelector('#tab_pnginfo').innerText.includes('a fox on pink')")
    page.click("#ditail_tab")
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_source_prompt textarea').value"
                           " === 'a fox on pink'")
    assert page.is_visible("#txt2img_ditail_balance")


def test_use_this_images_size_needs_an_image(page):
    open_tab(page, "txt2img")
    assert page.is_disabled("#txt2img_ditail_use_size")


def test_img2img_with_a_content_image_alone_is_refused(page, image):
    open_tab(page, "img2img")
    choose_image(page, "img2img", image)
    wait_for_line(page, "img2img", "There is no image in img2img's own slot yet")
    fill(page, "img2img", prompt="a fox on pink", steps=2, width=128, height=128)
    generate(page, "img2img")
    assert "Ditail: img2img: choose an image" in page.inner_text("#html_log_img2img")


def test_a_second_source_equal_to_the_first_is_reported(tab, image):
    open_advanced(tab, "txt2img")
    tab.click("#txt2img_ditail_second_on > .label-wrap")
    wait_for_line(tab, "txt2img", "The second source is the same as the first")
    choose_image(tab, "txt2img", image, "second_image")
    wait_for_line(tab, "txt2img", "Not counted: the second source")
    assert "is the same as the first" not in line_of(tab, "txt2img")


def test_painted_mask(tab, image):
    """What is painted on the WebUI's canvas takes the content, and nothing else."""
    open_advanced(tab, "txt2img")
    tab.click("#txt2img_ditail_mask_accordion > .label-wrap")
    tab.click("#txt2img_ditail_paint")
    # gradio 3's canvas, or Forge's own
    canvas = tab.wait_for_selector("#txt2img_ditail_painted_mask canvas:is([key=interface], .forge-drawing-canvas)")
    tab.wait_for_timeout(1000)
    canvas.scroll_into_view_if_needed()
    # Beside Forge's image nothing is painted, and its toolbar covers the upper part.
    forges = tab.query_selector("#txt2img_ditail_painted_mask img.forge-image")
    box = (forges or canvas).bounding_box()
    y = box["y"] + box["height"] * (0.9 if forges else 0.5)
    tab.mouse.move(box["x"] + box["width"] / 4, y)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2, y, steps=5)
    tab.mouse.up()
    generate(tab, "txt2img")
    assert "Ditail mask hash" in tab.inner_text("#html_info_txt2img")


def test_by_keyboard_alone(page):
    """Every control of the first level can be reached by Tab, and worked by keys."""
    open_tab(page, "txt2img")
    page.focus("#txt2img_seed input")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("""() => {
            const own = document.activeElement?.closest("[id^=txt2img_ditail_]");
            return own ? own.id.replace("txt2img_ditail_", "") : "";
        }"""))
        if reached[-1] == "advanced":
            break
    first = {"image", "source", "source_checkpoint", "preset", "balance"}
    assert first <= set(reached), reached
    # Headless, the browser shows no dialogue for a key; the click that opens one is the input's own.
    page.focus("#txt2img_ditail_image input[aria-label='Content image']")
    page.evaluate("document.activeElement.addEventListener('click', (e) => { window.ditailOpened = e.isTrusted; })")
    page.keyboard.press("Enter")
    page.wait_for_function("window.ditailOpened !== undefined")
    page.focus("#txt2img_ditail_balance input[type=range]")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("gradioApp().querySelector('#txt2img_ditail_preset input').value === 'Structure'")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone(browser, webui, theme):
    """At 420 pixels nothing of Ditail is wider than the screen, with everything open."""
    with open_page(browser, f"{webui.url}/?__theme={theme}", width=420, height=900) as page:
        open_tab(page, "txt2img", advanced=True)
        for name in ("mask_accordion", "collage_accordion", "second_on"):
            page.click(f"#txt2img_ditail_{name} > .label-wrap")
        page.wait_for_timeout(500)
        wide = page.evaluate("""() => [...gradioApp().querySelectorAll("#txt2img_ditail_enabled *")]
            .filter(e => e.offsetParent && e.getBoundingClientRect().right > window.innerWidth + 1)
            .map(e => e.id || e.className)""")
        assert wide == []
        screenshot(page, f"webui-phone-{theme}.png")
