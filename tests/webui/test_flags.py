"""The WebUI started with other flags, a start each: memory and precision.

A CPU has no float16 in torch 2.1, so the runs in half precision have bfloat16 in its place (`bf16/sitecustomize.py`).
"""

from pathlib import Path

import pytest

from tests.webui.data_folder import prepare, write_families
from tests.webui.server import running
from tests.webui.webui_helpers import difference

HALF = {"PYTHONPATH": str(Path(__file__).with_name("bf16"))}
SETS = {
    "lowvram": (("--no-half", "--lowvram"), {}),
    "medvram and half": (("--medvram",), HALF),
    "upcast-sampling": (("--upcast-sampling",), HALF),
    "precision half": (("--precision", "half"), HALF),
}
JOBS = {
    "SD 1.x": ("house-ink", "house-noto"),
    "SD 2.x v": ("sd2-v-a", "sd2-v-b"),
    "SDXL": ("sdxl-v-a", "sdxl-v-b"),
}


def images(ui, base64_content) -> dict:
    """Job: a plain image, and one with Ditail; each left the other as it was."""
    made = {}
    for name, (target, source) in JOBS.items():
        on = {"override_settings": {"sd_model_checkpoint": target}}
        plain = ui.generate(**on).image
        mixed = ui.generate({"image": base64_content, "source_checkpoint": source}, **on).image
        assert ui.generate(**on).image.tobytes() == plain.tobytes()
        made[name] = plain, mixed
    return made


@pytest.fixture(scope="module")
def in_full_precision(webui, families, base64_content) -> dict:
    return images(webui, base64_content)


@pytest.mark.parametrize("name", SETS)
def test_flags(in_full_precision, base64_content, tmp_path, name):
    """Less precision changes an image with Ditail about as much as a plain one; less memory, neither."""
    flags, environment = SETS[name]
    data = prepare(tmp_path / "data")
    write_families(data)
    with running(data, *flags, **environment) as ui:
        made = images(ui, base64_content)
    for job, (plain, mixed) in made.items():
        assert difference(plain, mixed) > 10, job
        usual_plain, usual_mixed = in_full_precision[job]
        assert difference(mixed, usual_mixed) <= 3 * difference(plain, usual_plain), job
