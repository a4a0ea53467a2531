"""Forge's own U-Nets: the savings change nothing, stand aside where extensions patch, and keep to the budgets."""

import json
import subprocess

import pytest

from tests.webui.data_folder import HERE
from tests.webui.server import FOLDER, IS_FORGE, PYTHON

pytestmark = pytest.mark.skipif(not IS_FORGE, reason="SD_FORGE_DIR is not set")
# design.md, section 4: cold, warm and hot by batch.
SD15 = {1: (1.76, 1.26, 0.96), 4: (1.15, 1.03, 0.95), 8: (1.05, 0.99, 0.95)}
# The same way on SDXL's layers (`lab bench`).
SDXL = {1: (1.78, 1.28, 0.98), 4: (1.17, 1.04, 0.97), 8: (1.07, 1.00, 0.96)}


def asked(what: str):
    done = subprocess.run([PYTHON, HERE / "forge_unets.py", what], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_savings_equal_the_hook_path_whatever_is_patched():
    for by_patch in asked("equality"):
        for name, found in by_patch.items():
            assert found["off"] < 1e-5, name
            assert name == "none" or found["effect"] > 1e-3, name


@pytest.mark.parametrize(("name", "budget"), [("sd15", SD15), ("sdxl", SDXL)])
def test_flops_are_within_the_budget(name, budget):
    rows = asked(name)
    assert [row["batch"] for row in rows] == list(budget)
    for row in rows:
        for way, most in zip(("cold", "warm", "hot"), budget[row["batch"]], strict=True):
            assert row[way] <= most + 0.005, (row["batch"], way)
