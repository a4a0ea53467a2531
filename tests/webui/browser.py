"""The tabs in headless Chromium. With SD_WEBUI_SCREENSHOTS set to a folder, screenshots are kept there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]
# The plain WebUI's own: its gradio asks a CDN for iframe-resizer, and stumbles over a typed width or height.
ITS_OWN = ("net::ERR_", "Cannot read properties of undefined (reading 'props')")


@contextmanager
def open_browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        path = CHROMIUM if Path(CHROMIUM).exists() else None
        browser = p.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@contextmanager
def open_page(browser, url: str, **viewport: int) -> Iterator:
    """A page of the WebUI at `url`, once it can be used; fails where the page has logged an error."""
    page = browser.new_page(viewport={"width": 1500, "height": 1200, **viewport})
    page.set_default_timeout(150_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_selector("#txt2img_generate", state="visible")
    page.wait_for_function("typeof opts === 'object' && Object.keys(opts).length > 0 && uiUpdateCallbacks.length > 0")
    page.wait_for_timeout(2000)
    yield page
    page.close()
    assert [e for e in errors if not any(known in e for known in ITS_OWN)] == []


def show_tab(page, tab: str) -> None:
    # Forge writes "Txt2img".
    page.click(f"#tabs > .tab-nav > button:has-text('{tab}')")


def open_tab(page, tab: str, *, advanced: bool = False) -> None:
    """Show a tab with Ditail switched on; advanced: with every number, too."""
    show_tab(page, tab)
    page.click(f"#{tab}_ditail_enabled > .label-wrap")
    page.wait_for_selector(f"#{tab}_ditail_balance", state="visible")
    if advanced:
        open_advanced(page, tab)


def open_advanced(page, tab: str) -> None:
    page.click(f"#{tab}_ditail_advanced > .label-wrap")
    page.wait_for_selector(f"#{tab}_ditail_alpha", state="visible")


def choose_image(page, tab: str, file, slot: str = "image") -> None:
    page.set_input_files(f"#{tab}_ditail_{slot} input[type=file]", file)
    page.wait_for_selector(f"#{tab}_ditail_{slot} img")


def line_of(page, tab: str) -> str:
    """The line that says what Generate is going to do."""
    return page.inner_text(f"#{tab}_ditail_line")


def wait_for_line(page, tab: str, text: str, *, gone: bool = False) -> None:
    page.wait_for_function("([tab, text, gone]) => gradioApp().querySelector(`#${tab}_ditail_line`).innerText"
                           ".includes(text) !== gone", arg=[tab, text, gone])


def value_of(page, elem_id: str) -> str:
    return page.input_value(f"#{elem_id} input, #{elem_id} textarea")


def fill(page, tab: str, **values) -> None:
    for name, value in values.items():
        field = "input[type=number]" if isinstance(value, int | float) else "textarea"
        page.fill(f"#{tab}_{name} {field}", str(value))
        page.keyboard.press("Tab")


def choose(page, elem_id: str, text: str) -> None:
    page.click(f"#{elem_id} input")
    page.click(f"#{elem_id} ul.options li:has-text('{text}')")


def generate(page, tab: str) -> str:
    """Press Generate; returns the progress texts that showed, one a line, once the image is there."""
    page.evaluate("""tab => {
        window.ditailSeen = [];
        window.ditailTimer = setInterval(() => {
            const bar = gradioApp().querySelector(`#${tab}_results .progressDiv`);
            const preview = gradioApp().querySelector(`#${tab}_results .livePreview img`);
            window.ditailSeen.push((bar ? bar.innerText : "") + (preview ? " [preview]" : ""));
        }, 40);
    }""", tab)
    page.evaluate("tab => { window.ditailLog = gradioApp().querySelector(`#html_log_${tab}`).innerHTML; }", tab)
    page.click(f"#{tab}_generate")
    # gradio 4 begins a little later, and the line of the image before is still there.
    page.wait_for_function("tab => gradioApp().querySelector(`#${tab}_interrupt`).offsetParent || "
                           "gradioApp().querySelector(`#html_log_${tab}`).innerHTML !== window.ditailLog", arg=tab)
    wait_for_the_end(page, tab)
    return page.evaluate("() => { clearInterval(window.ditailTimer); return window.ditailSeen.join('\\n'); }")


def wait_for_the_end(page, tab: str) -> None:
    # The buttons in Generate's place are shown at once, and gone when the images are there.
    page.wait_for_function(f"!gradioApp().querySelector('#{tab}_interrupt').offsetParent && "
                           f"!gradioApp().querySelector('#{tab}_interrupting').offsetParent && "
                           f"gradioApp().querySelector('#html_log_{tab}').innerText.length > 0", timeout=300_000)
    page.wait_for_timeout(1000)


def notice_of(page, tab: str) -> str:
    """What is said below the gallery: comments, errors and the time that was taken."""
    return page.inner_text(f"#html_log_{tab}")


def screenshot(page, name: str) -> None:
    if folder := os.environ.get("SD_WEBUI_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / name, full_page=True)
