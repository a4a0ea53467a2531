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
# Of gradio's components and the WebUI's settings: what their keyword arguments show.
SHOWN = {"label", "info", "tooltip"}
NOT_IN_THE_TAB = ("enabled", "sources", "collage")


def labels() -> set[str]:
    """The labels and helps of the settings that the tab has, their choices, and the presets' names."""
    shown = {text for field in FIELDS if field.key not in NOT_IN_THE_TAB for text in _texts(field)}
    return shown | set(PRESETS)


def _texts(field) -> list[str]:
    # The preset, the images and the source have labels of their own in the tab.
    helps = [] if field.key in ("preset", "image", "mask") else [field.help]
    return [field.label, *helps, *((field.choices or ()) if field.key != "source" else ())]


def literals() -> set[str]:
    """What the modules that build the page write as a text for a person: labels, and buttons' words."""
    found = set()
    for module in WEBUI:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found |= {k.value.value for k in node.keywords if k.arg in SHOWN and _is_text(k.value)}
                is_button = getattr(node.func, "attr", "") in ("Button", "Accordion", "OptionInfo")
                found |= {a.value for a in node.args[:2] if is_button and _is_text(a)}
    return found


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_there_are_the_two_languages():
    assert [file.stem for file in LANGUAGES] == ["ja_JP", "zh_CN"]
    assert len(labels()) > 40 and len(literals()) > 20


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda file: file.stem)
def test_every_label_has_an_entry(file):
    known = json.loads(file.read_text(encoding="utf-8"))
    assert sorted((labels() | literals()) - known.keys()) == []
    assert all(isinstance(text, str) and text.strip() for text in known.values())
