"""A fault at any call of any function that a run passes through leaves nothing behind. See `sweep.py`."""

import pytest

from tests.webui.faulty import kinds
from tests.webui.sweep import Sweep, choose, run
from tests.webui.webui_helpers import encode


@pytest.fixture(scope="module")
def sweep(webui, content, other_content):
    before = webui.call("/ditail-test/options").json
    # In full, as the WebUI writes it when it loads one.
    title = next(m["title"] for m in webui.call("/sdapi/v1/sd-models").json if m["model_name"] == "house-ink")
    changed = {"ditail_disk": True, "samples_save": True, "sd_model_checkpoint": title}
    webui.call("/sdapi/v1/options", changed)
    webui.generate(steps=1, override_settings={})
    yield Sweep(webui, kinds(encode(content), encode(other_content)))
    webui.call("/ditail-test/faults/share-config", {"on": False})
    webui.call("/sdapi/v1/options", {name: before[name] for name in changed})


def test_every_function_exists(sweep):
    assert sweep.faulty.points()["missing"] == []


def test_a_fault_leaves_nothing_behind(sweep, capsys, record_property):
    errors = sweep.faulty.points()["errors"]
    faults = choose(sweep, list(sweep.kinds), errors)
    results = run(sweep, faults)
    left = [result for result in results if result["left"]]
    fired = sum(result["fired"] > 0 for result in results)
    names = {fault.kind for fault in faults}
    with capsys.disabled():
        print(f"\n{fired} faults injected in {len(names)} kinds of job: {len(left)} left something behind")  # noqa: T201
    record_property("faults", fired)
    assert fired == len(faults)
    assert left == []
