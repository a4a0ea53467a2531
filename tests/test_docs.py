"""README and docs: the tables that repeat the code, and the files, tests, commands and options that are named."""

import argparse
import ast
import dataclasses
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import ditail
from ditail.content.collage import CHECKS as COLLAGE_CHECKS
from ditail.content.collage import MAX_PIECES, Piece
from ditail.content.further import CHECKS as SOURCE_CHECKS
from ditail.content.further import MAX_SOURCES, WEIGHT, FurtherSource
from ditail.content.settings import BY_KEY, FIELDS, Field
from ditail.errors import DitailError
from ditail.standalone import cli
from ditail.standalone.options import add_workers
from lab import cli as lab_cli

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
API = ROOT / "docs" / "api.md"
COMMAND_LINE = ROOT / "docs" / "command-line.md"
MAX_README_LINES = 129
# Where a file that is named without a folder may be; it may also follow the name of its folder.
FOLDERS = (ROOT, ROOT / "tests" / "webui")
PATH = re.compile(r"(?:\.ci|docs|ditail|javascript|lab|scripts|tests)/[\w./-]*|[\w/]+\.(?:py|md|toml)\b")
LIST_LIMITS = {"sources": MAX_SOURCES, "collage": MAX_PIECES}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def rows_below(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its two head lines."""
    lines = page.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table[2:]


def code_spans(text: str) -> list[str]:
    """What is set as code, in lines and in blocks."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"^    \S.*$", text, re.MULTILINE)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


# The API's tables.

def key_of(row: list[str]) -> str:
    return row[0].strip("`")


def as_json(default) -> str:
    """A default as the table writes it."""
    plain = int(default) if isinstance(default, float) and default.is_integer() else default
    plain = [int(n) if n.is_integer() else n for n in plain] if isinstance(plain, tuple) and plain else plain
    return f"`{json.dumps(plain)}`"


def values_of(field: Field) -> str:
    """A field's values as the table writes them."""
    if field.default is None:
        return "base64 image or `null`"
    if isinstance(field.default, tuple):
        return f"list of at most {LIST_LIMITS[field.key]} objects"
    if isinstance(field.default, bool):
        return "`true`, `false`"
    if isinstance(field.default, float):
        return f"{field.low:g} to {field.high:g}"
    if field.choices:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in field.choices)
    return f"text of at most {field.max_length} characters" if field.max_length else "text"


def defaults_of(data_class) -> dict:
    return {field.name: field.default for field in dataclasses.fields(data_class)}


def test_the_api_table_is_the_table_of_settings():
    expected = [[f"`{field.key}`", as_json(field.default), values_of(field)] for field in FIELDS]
    assert [row[:3] for row in rows_below(API, "The script `Ditail`")] == expected


@pytest.mark.parametrize(("heading", "data_class", "checks"), [
    ("Objects of `sources`", FurtherSource, SOURCE_CHECKS), ("Objects of `collage`", Piece, COLLAGE_CHECKS),
])
def test_the_tables_of_objects_have_the_keys_and_defaults_of_the_code(heading, data_class, checks):
    rows, defaults = rows_below(API, heading), defaults_of(data_class)
    assert [key_of(row) for row in rows] == list(defaults) == list(checks)
    expected = ["required" if value is dataclasses.MISSING else as_json(value) for value in defaults.values()]
    assert [row[1] for row in rows] == expected


def test_the_tables_of_objects_have_the_values_of_the_code():
    sources = {key_of(row): row[2] for row in rows_below(API, "Objects of `sources`")}
    collage = {key_of(row): row[2] for row in rows_below(API, "Objects of `collage`")}
    steps, box = sources.pop("steps"), collage.pop("box")
    assert sources == {key: values_of(WEIGHT if key == "weight" else BY_KEY[key]) for key in sources}
    assert collage == {"image": "base64 image", "mask": values_of(BY_KEY["mask"]),
                       "resize_mode": values_of(BY_KEY["resize_mode"])}
    assert (steps, box) == ("two ascending numbers, 0 to 1", "left, top, width, height, 0 to 1")
    for check, right, wrong in ((SOURCE_CHECKS["steps"], [0, 1], ([1, 0], [0, 1.01], [0, 0.5, 1])),
                                (COLLAGE_CHECKS["box"], [0, 0, 1, 1], ([0, 0, 1], [0.5, 0, 0.6, 1], [0, 0, 1.01, 1]))):
        assert check("x", right) == tuple(right)
        for value in wrong:
            with pytest.raises(DitailError):
                check("x", value)


def constants_of(path: str) -> dict:
    """The literal constants of a module that can't be imported without the WebUI."""
    constants = {}
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.Tuple):
            constants[node.targets[0].id] = ast.literal_eval(node.value)
    return constants


def test_the_table_of_the_matrix():
    constants = constants_of("ditail/webui/matrix.py")
    rows = rows_below(API, "The script `Ditail matrix`")
    assert [row[:3] for row in rows] == [
        ["`checkpoints`", "required", f"list of 2 to {constants['MOST']} models"],
        ["`one_source`", "`false`", "`true`, `false`"],
    ]
    text = " ".join(API.read_text(encoding="utf-8").split("# The script `Ditail matrix`")[1].split())
    positional = text.split("controls in their order: ", 1)[1].split("pixels", 1)[0]
    assert tuple(re.findall(r"`(\w+)`", positional)) == constants["CONTROLS"]
    assert positional.endswith(f"0 to {constants['MAX_MARGIN']} ")


def test_the_table_of_the_folder():
    constants = constants_of("ditail/webui/folder.py")
    rows = rows_below(API, "The script `Ditail folder`")
    assert tuple(row[0].strip("`") for row in rows) == constants["CONTROLS"][1:]
    choices = [f'`"{text}"`' for text in constants["PROMPTS"]]
    assert rows[1][1:3] == [choices[0], ", ".join(choices)]
    text = " ".join(API.read_text(encoding="utf-8").split("# The script `Ditail folder`")[1].split())
    positional = text.split("controls in their order: ", 1)[1].split(".", 1)[0]
    assert tuple(re.findall(r"`(files|folder|prompts)`", positional)) == constants["CONTROLS"]


def test_the_readmes_short_table_of_settings():
    by_label = {field.label: field for field in FIELDS}
    rows = [row for row in rows_below(README, "Choosing settings") if "WebUI's own" not in row[0]]
    assert {row[0] for row in rows} <= by_label.keys() and len(rows) >= 7
    for label, default, *_ in rows:
        value = by_label[label].default
        assert default == (f"{value:g}" if isinstance(value, float) else value)


# What pages name.

def test_the_readme_is_short_and_links_every_page():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    links = re.findall(r"\]\(([^)#]+)", text)
    assert [named(page) for page in DOCS if named(page) not in links] == []


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors_of(target))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_and_tests_that_are_named_exist(page):
    missing, last, folder = [], page, ROOT
    for span in code_spans(page.read_text(encoding="utf-8")):
        path, *names = span.split("::")
        for name in PATH.findall(path):
            matches = [base / name for base in (*FOLDERS, folder) if (base / name).exists()]
            missing += [] if matches else [span]
            # The file that `::test` without a file is in, and the folder that files after it are in.
            last = next((file for file in matches if file.is_file()), last)
            folder = next((file for file in matches if file.is_dir()), folder)
        if names and not defines(last, names):
            missing.append(span)
    assert missing == []


def defines(path: Path, names: list[str]) -> bool:
    """Whether a test file has these classes and functions, the outer ones first."""
    scope = ast.parse(path.read_text(encoding="utf-8")).body
    for name in names:
        inner = [node.body for node in scope if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
        if not inner:
            return False
        scope = inner[0]
    return True


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_modules_that_are_named_exist(page):
    dotted = {name for span in code_spans(page.read_text(encoding="utf-8"))
              for name in re.findall(r"(?<![\w/.])(?:ditail|lab)(?:\.\w+)+", span)}
    assert {name for name in dotted if not is_module(name)} == set()


def is_module(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if find_spec(module) is None:
        return False
    return find_spec(name) is not None or (module == "ditail" and attribute in (*ditail.__all__, "__version__"))


# The command line.

def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


PROGRAMS = {"ditail": commands_of(cli.build_parser()), "lab": commands_of(lab_cli.build_parser())}


def options_of(*parsers: argparse.ArgumentParser) -> set[str]:
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_their_options_exist(page):
    for span in code_spans(page.read_text(encoding="utf-8")):
        for program, command, rest in re.findall(r"python -m (ditail|lab) (\w+)([^\n]*)", span):
            assert command in PROGRAMS[program], span
            used = set(re.findall(r"(?<!\S)--[\w-]+", rest))
            assert used <= options_of(PROGRAMS[program][command]), span


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named_targets = {target for span in code_spans(page.read_text(encoding="utf-8"))
                     for target in re.findall(r"(?:^|\s)make ([\w-]+)", span)}
    assert named_targets <= targets


def test_the_command_lines_page_has_every_option_and_no_other():
    ditail_commands = PROGRAMS["ditail"]
    documented = {heading: {option for row in rows_below(COMMAND_LINE, heading)
                            for option in re.findall(r"`(--[\w-]+)`", row[0])}
                  for heading in ("`mix`", "Many processes and machines")}
    assert documented["`mix`"] == options_of(ditail_commands["mix"]) - {"-h", "--help"}
    workers = argparse.ArgumentParser(add_help=False)
    add_workers(workers)
    assert documented["Many processes and machines"] == options_of(workers)
    text = COMMAND_LINE.read_text(encoding="utf-8")
    rest = options_of(ditail_commands["matrix"], ditail_commands["demo"]) - {"-h"}
    assert {option for option in rest if f"`{option}`" not in text and f" {option} " not in text} == set()
    assert set(ditail_commands) | set(PROGRAMS["lab"]) == {
        command for program in PROGRAMS for command in PROGRAMS[program] if re.search(rf"`[^`\n]*\b{command}\b", text)}
