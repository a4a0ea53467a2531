"""Limits that keep the package readable: lines of a file, methods of a class."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES, MOST_METHODS = 300, 15
FILES = sorted((ROOT / "ditail").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_classes_are_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    methods = {node.name: sum(isinstance(part, ast.FunctionDef) for part in node.body)
               for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}
    assert {name: count for name, count in methods.items() if count > MOST_METHODS} == {}
