"""The extension's scripts where they can't work: no traceback, and one sentence that says why."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAND_IN = f"""
def basedir():
    return {str(ROOT)!r}


class Script:
    pass
"""
# As the WebUI loads them: one process, in the order of their names. None in sys.modules: no such package.
LOAD = """
import runpy, sys
sys.modules.update(dict.fromkeys({missing}))
for script in {scripts}:
    loaded = runpy.run_path(script)
    print([name for name, value in loaded.items() if isinstance(value, type) and value.__module__ == "<run_path>"])
"""

NO_SCRIPT_CLASS = "[]\n" * len(list((ROOT / "scripts").glob("*.py")))


@pytest.fixture
def load(tmp_path):
    """Loads both scripts beside a stand-in for the WebUI's `modules`; gives what they wrote."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").write_text("")
    (tmp_path / "modules" / "scripts.py").write_text(STAND_IN)
    (tmp_path / "modules" / "extensions.py").write_text("")

    def run(*path: Path, missing: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        scripts = sorted(str(path) for path in (ROOT / "scripts").glob("*.py"))
        return subprocess.run([sys.executable, "-c", LOAD.format(missing=missing, scripts=scripts)], text=True,
                              capture_output=True, cwd=tmp_path,
                              env={"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, *path)))})

    return run


def test_without_ldm(load):
    done = load(ROOT, missing=("ldm",))
    assert done.returncode == 0 and done.stdout == NO_SCRIPT_CLASS
    assert done.stderr.startswith("Ditail is off: it needs the `ldm` models") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("files", "lacks"), [
    ({"modules_forge/__init__.py": "", "ldm/__init__.py": "", "ldm_patched/__init__.py": ""}, "backend.loader"),
    ({"modules_forge/__init__.py": "", "backend/__init__.py": "", "backend/loader.py": ""},
     "backend.loader.forge_loader"),
    ({"modules_forge/__init__.py": "", "backend/__init__.py": "", "backend/loader.py": "1 / 0"}, "backend.loader"),
], ids=["no backend", "another loader", "a loader that can't be imported"])
def test_a_fork_of_forge_without_a_needed_function(load, tmp_path, files, lacks):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = load(ROOT)
    assert done.returncode == 0 and done.stdout == NO_SCRIPT_CLASS
    assert done.stderr.startswith("Ditail is off: it needs lllyasviel's Forge") and f"has no `{lacks}`." in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_package_of_the_same_name(load, tmp_path):
    """The script says in one sentence which extension to disable."""
    (tmp_path / "other" / "ditail").mkdir(parents=True)
    (tmp_path / "other" / "ditail" / "__init__.py").write_text("")
    done = load(tmp_path / "other")
    assert done.returncode == 0 and done.stdout == NO_SCRIPT_CLASS
    assert done.stderr.startswith("Ditail is off: another extension") and "Disable that extension" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif("SD_WEBUI_DIR" not in os.environ, reason="SD_WEBUI_DIR is not set")
def test_the_stand_in_is_like_the_webui():
    real = ast.parse((Path(os.environ["SD_WEBUI_DIR"]) / "modules" / "scripts.py").read_text())
    named = {node.name: node for node in real.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for ours in ast.parse(STAND_IN).body:
        assert type(named[ours.name]) is type(ours)
    assert not named["basedir"].args.args
