"""Fixtures of the tests in a real WebUI, or in a real Forge: see `server.py`."""

import pytest
from PIL import Image

from tests.webui.browser import open_browser, open_page
from tests.webui.data_folder import HERE, prepare, scene, write_families
from tests.webui.forge import mark_items
from tests.webui.server import FOLDER, NO_HALF, running
from tests.webui.webui_helpers import encode


def pytest_collection_modifyitems(items):
    ours = [item for item in items if HERE in item.path.parents]
    if FOLDER is None:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="neither SD_WEBUI_DIR nor SD_FORGE_DIR is set"))
    mark_items(ours)


@pytest.fixture(scope="session")
def webui(tmp_path_factory):
    data = prepare(tmp_path_factory.mktemp("webui-data"))
    with running(data, *NO_HALF) as ui:
        yield ui


@pytest.fixture
def options(webui):
    """Set options of the WebUI as its settings page does; they are set back after the test."""
    # The API's own list lacks extensions' options where another extension (ControlNet) imports the API before theirs.
    before = webui.call("/ditail-test/options").json
    changed = set()

    def choose(**values) -> None:
        changed.update(values)
        assert webui.call("/sdapi/v1/options", values).status == 200

    yield choose
    choose(**{name: before[name] for name in changed})


@pytest.fixture(scope="session")
def families(webui) -> None:
    """Checkpoints of every topology among the WebUI's own: `families.py` says which."""
    write_families(webui.data)
    webui.call("/sdapi/v1/refresh-checkpoints", {})


@pytest.fixture(scope="session")
def content() -> Image.Image:
    """The first held-out image in the style noto: a fox on pink."""
    return scene(0)


@pytest.fixture(scope="session")
def other_content() -> Image.Image:
    """The second one: an avocado."""
    return scene(1)


@pytest.fixture(scope="session")
def base64_content(content) -> str:
    return encode(content)


@pytest.fixture
def ditail(base64_content) -> dict:
    """Settings for the usual job: the content image, inverted with the demo checkpoint noto."""
    return {"image": base64_content, "source_checkpoint": "house-noto"}


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, webui):
    with open_page(browser, webui.url) as page:
        yield page


@pytest.fixture
def image(content, tmp_path):
    """The content image as a file."""
    path = tmp_path / "content.png"
    content.save(path)
    return path
