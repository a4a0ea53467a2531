"""Every label of the tab has an entry in each language. The WebUI replaces a text that is there word for word."""

import ast
import json
from pathlib import Path

import pytest

from ditail.content.presets import PRESETS
from ditail.content.settings import FIELDS

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = sorted((ROOT / "localizations").glob("*.json"))
WEBUI = [ROOT / "ditail" / "webui" / f"{name}.py" for name in ("ui", "folder", "caches", "send", "ui_events")]
# Keyword arguments of gradio's components and the WebUI's settings that are shown.
SHOWN = {"label", "info", "tooltip"}
NOT_IN_THE_TAB = ("enabled", "sources", "collage")


def labels() -> set[str]:
    """The labels and helps of the settings that the tab has, their choices, and the presets' names."""
    texts = {text for field in FIELDS if field.key not in NOT_IN_THE_TAB for text in _texts(field)}
    return texts | set(PRESETS)


def _texts(field) -> list[str]:
    # The tab has its own texts for the preset, the images and the source.
    helps = [] if field.key in ("preset", "image", "mask") else [field.help]
    return [field.label, *helps, *((field.choices or ()) if field.key != "source" else ())]


def literals() -> set[str]:
    """The texts of the page in the modules that build it: labels, and texts of buttons."""
    texts = set()
    for module in WEBUI:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                texts |= {k.value.value for k in node.keywords if k.arg in SHOWN and _is_text(k.value)}
                is_button = getattr(node.func, "attr", "") in ("Button", "Accordion", "OptionInfo")
                texts |= {a.value for a in node.args[:2] if is_button and _is_text(a)}
    return texts


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_there_are_the_two_languages():
    assert [file.stem for file in LANGUAGES] == ["ja_JP", "zh_CN"]
    assert len(labels()) > 40 and len(literals()) > 20


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda file: file.stem)
def test_every_label_has_an_entry(file):
    entries = json.loads(file.read_text(encoding="utf-8"))
    assert sorted((labels() | literals()) - entries.keys()) == []
    assert all(isinstance(text, str) and text.strip() for text in entries.values())
