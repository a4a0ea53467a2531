"""Every text of the tab has an entry in each language. The WebUI replaces a text that is there word for word."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from ditail.content.presets import PRESETS
from ditail.content.settings import BY_KEY, FIELDS

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = sorted((ROOT / "localizations").glob("*.json"))
WEBUI = ROOT / "ditail" / "webui"
PAGE = ("ui", "folder", "caches", "send", "ui_events", "live_line")
# Keyword arguments of gradio's components and the WebUI's settings that are shown.
SHOWN = {"label", "info", "tooltip", "placeholder"}
# The number of the positional argument that is shown, by function.
ARGUMENTS = {"Button": 0, "Accordion": 0, "HTML": 0, "OptionHTML": 0, "OptionInfo": 1, "info": 0, "_slot_image": 0,
             "_change_presets": 2}
# Names of constants, by module, whose texts are shown.
CONSTANTS = {"infotext": ("TITLE",), "matrix": ("MATRIX_TITLE",), "presets": ("CUSTOM",), "canvas": ("LABEL",),
             "folder": ("FOLDER_TITLE", "PROMPTS"), "send": ("TOOLTIP",),
             "controls": ("SAME_CHECKPOINT", "SAME_SOURCE"), "caches": ("IN_RAM", "ON_GPU"), "ui": ("SOURCE_WORDS",)}
# Values of the names in f-strings.
VALUES = {"i": (1, 2, 3), "name": ("Begin", "End"), "AT_ONCE": (64,)}
NOT_IN_THE_TAB = ("enabled", "sources", "collage")


def labels() -> set[str]:
    """The labels and helps of the settings that the tab has, their choices, and the presets' names."""
    texts = {text for field in FIELDS if field.key not in NOT_IN_THE_TAB for text in _texts(field)}
    return texts | set(PRESETS)


def _texts(field) -> list[str]:
    # The tab has its own texts for the preset, the images and the source.
    helps = [] if field.key in ("preset", "image", "mask") else [field.help]
    return [field.label, *helps, *((field.choices or ()) if field.key != "source" else ())]


def tree_of(module: str) -> ast.Module:
    return ast.parse((WEBUI / f"{module}.py").read_text(encoding="utf-8"))


def literals() -> set[str]:
    """The texts in the modules that build the page: labels, buttons, notes, and warnings without variable parts."""
    nodes = [node for module in PAGE for node in _shown(tree_of(module))]
    nodes += [node.value for module, names in CONSTANTS.items() for node in tree_of(module).body
              if isinstance(node, ast.Assign) and _names(node) & set(names)]
    return {text for node in nodes for text in _values(node) if len(re.findall(r"[A-Za-z]", text)) > 1}


def _names(assignment: ast.Assign) -> set[str]:
    return {node.id for target in assignment.targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def _shown(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            yield from (k.value for k in node.keywords if k.arg in SHOWN)
            arguments = [node.args[ARGUMENTS[name]]] if len(node.args) > ARGUMENTS.get(name, 9) else []
            # The WebUI puts a setting's info into brackets.
            yield from (ast.Constant(f"({a.value})") if name == "info" else a for a in arguments if _is_text(a))
        if isinstance(node, ast.Yield | ast.IfExp):
            yield node.value if isinstance(node, ast.Yield) else node.body
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and all(map(_is_text, node.elts)) \
                and node.elts[0].value.startswith("preset_"):
            yield node.elts[1]  # the button of this name


def _is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _values(node: ast.AST) -> list[str]:
    """The texts of an expression that is shown; none of a text whose variable parts are not in VALUES."""
    if isinstance(node, ast.Tuple):
        return [text for element in node.elts for text in _values(element)]
    if isinstance(node, ast.List):  # gradio's choices: pairs of the text that is shown and the value
        return [text for pair in node.elts if isinstance(pair, ast.Tuple) for text in _values(pair.elts[0])]
    if not _is_text(node):
        return []
    names = sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & VALUES.keys())
    code = compile(ast.fix_missing_locations(ast.Expression(node)), "text", "eval")
    try:
        texts = [eval(code, {"BY_KEY": BY_KEY}, dict(zip(names, values, strict=True)))
                 for values in product(*(VALUES[name] for name in names))]
    except NameError:
        return []
    return [text.removeprefix("<p>").removesuffix("</p>") for text in texts if not text.startswith("<div")]


def test_there_are_the_two_languages():
    assert [file.stem for file in LANGUAGES] == ["ja_JP", "zh_CN"]
    assert len(labels()) > 40 and len(literals()) > 60


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda file: file.stem)
def test_every_text_has_an_entry_and_there_is_no_other(file):
    entries = json.loads(file.read_text(encoding="utf-8"))
    assert sorted(labels() | literals()) == sorted(entries)
    assert all(isinstance(text, str) and text.strip() for text in entries.values())
