"""The examples of docs/api.md, run as they are printed against the real WebUI."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.webui.webui_helpers import SIDE, difference, likeness

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
RUN = {"sh": ("bash", "-eu"), "python": (sys.executable,)}


@pytest.fixture
def result_of(webui, content, tmp_path):
    """Runs the page's example in a language, in a folder with a content image; gives the image that it writes."""
    def run(language: str, name: str) -> Image.Image:
        content.save(tmp_path / "fox.png")
        text = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
        assert "http://127.0.0.1:7860" in text
        text = text.replace("http://127.0.0.1:7860", webui.url)
        subprocess.run(RUN[language], input=text, text=True, check=True, cwd=tmp_path, timeout=300)
        return Image.open(tmp_path / name).convert("RGB")

    return run


def test_the_examples_with_curl_and_with_python(webui, content, result_of):
    by_curl, by_python = result_of("sh", "curl.png"), result_of("python", "python.png")
    assert by_curl.size == by_python.size == (SIDE, SIDE)
    assert min(likeness(by_curl, content), likeness(by_python, content)) > 0.3
    assert difference(by_curl, by_python) > 0  # alpha 2 in the one in Python


def test_the_settings_are_in_the_answers_infotext(result_of, tmp_path):
    result_of("sh", "curl.png")
    infotext = json.loads(json.loads((tmp_path / "answer.json").read_text())["info"])["infotexts"][0]
    assert "Ditail preset: Balanced" in infotext and "Ditail source checkpoint: house-noto" in infotext
