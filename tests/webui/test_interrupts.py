"""Interrupt, skip and stop at any moment of every kind of run; "Reload UI" and the end of the process during one.

`DITAIL_INTERRUPTS` is the number of interrupted runs, `DITAIL_SEED` chooses them. A moment is a call of the U-Net, of
the VAE or of a load, not a time.
"""

import http.client
import json
import os
import random
import threading
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.webui.data_folder import prepare
from tests.webui.faulty import SEED, Faulty, Kind, kinds
from tests.webui.server import running
from tests.webui.webui_helpers import encode

HOW_MANY = int(os.environ.get("DITAIL_INTERRUPTS", "20"))
BUTTONS = ("interrupt", "skip", "stop")
MOMENTS = ("unet.call", "unet.call", "unet.call", "vae.encode", "vae.decode", "load.read", "load.callbacks", "install",
           "latents.put")
PLAIN = Kind(None, {})
# Jobs whose sources may come from what another kind of run has left in the caches.
RELATED = ("txt2img generated", "txt2img matrix", "img2img matrix")


@pytest.fixture(scope="module")
def jobs(content, other_content):
    return kinds(encode(content), encode(other_content))


@pytest.fixture(scope="module")
def faulty(webui):
    webui.generate(steps=1)
    return Faulty(webui)


def moments(faulty, jobs, count: int) -> list[tuple]:
    """(kind of job, warm or not, button, function, its call), by the seed; each kind before any comes again."""
    rng, chosen, counts = random.Random(SEED), [], {}
    while len(chosen) < count:
        for name in rng.sample(list(jobs), len(jobs)):
            warm = rng.random() < 0.3
            if (name, warm) not in counts:
                counts[name, warm] = calls_of(faulty, jobs[name], warm)
            seen = counts[name, warm]
            point = rng.choice([point for point in MOMENTS if point in seen])
            chosen.append((name, warm, rng.choice(BUTTONS), point, rng.randint(1, seen[point])))
    return chosen[:count]


def calls_of(faulty, kind: Kind, warm: bool) -> dict[str, int]:
    if warm:
        faulty.image(kind)
    else:
        faulty.post("empty-caches")
    with faulty.armed() as seen:
        assert faulty.ask(kind).status == 200
    return seen["counts"]


def test_images_after_a_stopped_run_are_the_same(faulty, jobs, capsys, record_property):
    plain, expected, wrong = faulty.image(PLAIN), {}, []
    for name in jobs:
        faulty.post("empty-caches")
        expected[name] = faulty.image(jobs[name])
    chosen = moments(faulty, jobs, HOW_MANY)
    for name, warm, button, point, call in chosen:
        if warm:
            faulty.image(jobs[name])
        else:
            faulty.post("empty-caches")
        with faulty.armed(point=point, call=call, action=button) as seen:
            answer = faulty.ask(jobs[name])
        checked = [name, *(other for other in RELATED if "img2img" not in other or "matrix" in name)]
        spoilt = [other for other in dict.fromkeys(checked) if faulty.image(jobs[other]) != expected[other]]
        if faulty.image(PLAIN) != plain:
            spoilt.append("plain")
        if spoilt or not seen["fired"] or answer.status != 200:
            wrong.append((name, warm, button, point, call, answer.status, spoilt))
            faulty.post("empty-caches")
    with capsys.disabled():
        print(f"\n{len(chosen)} runs stopped: {len(wrong)} spoilt a later image")  # noqa: T201
    record_property("interrupts", len(chosen))
    assert wrong == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("webui-ended"))


@pytest.mark.parametrize("name", ["txt2img inverted", "txt2img generated", "txt2img matrix"])
def test_the_ui_reloaded_during_a_run(faulty, jobs, name):
    """The request that was under way may end with anything; those after it are the same to the bit."""
    webui, kind = faulty.webui, jobs[name]
    plain, expected = faulty.image(PLAIN), faulty.image(kind)
    marks = faulty.fingerprint()["model"]["marks"]
    for call in (1, 5):
        faulty.post("empty-caches")
        starts = webui.log.read_text(errors="replace").count("Startup time:")
        faulty.post("arm", {"point": "unet.call", "call": call, "action": "reload"})
        thread = threading.Thread(target=faulty.ask, args=(kind,))
        thread.start()
        webui.wait_for_start(webui.process, starts + 1)
        thread.join(120)
        assert not thread.is_alive()
        faulty.post("arm", {})
        assert faulty.image(PLAIN) == plain
        assert faulty.image(kind) == expected
        faulty.post("empty-caches")
        assert faulty.image(kind) == expected
        assert faulty.fingerprint()["model"]["marks"] == marks


def test_killed_while_it_writes_to_the_disk_cache(folder, jobs):
    """At the half of the file, before it has its name, and after; then another start on the same folder."""
    kind, deaths = jobs["txt2img inverted"], [("disk.write", "before"), ("disk.write", "after"), ("disk.save", "after")]
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "ditail_disk": True}))
    expected = None
    for point, when in deaths:
        with running(folder, "--no-half") as webui:
            faulty = Faulty(webui)
            made = faulty.image(kind)
            expected = expected or made
            assert made == expected, "after a restart on the folder of a killed process"
            faulty.post("empty-caches")
            try:
                faulty.post("arm", {"point": point, "when": when, "action": "kill"})
                faulty.ask(kind)
            except (http.client.HTTPException, URLError, ConnectionError):
                pass
            assert webui.process.wait(60) == -9
    with running(folder, "--no-half") as webui:
        faulty, cache = Faulty(webui), folder / "cache" / "ditail"
        assert faulty.image(kind) == expected
        assert all(file.suffix == ".safetensors" or file.name.endswith(".part") for file in cache.iterdir())
        assert sum(file.suffix == ".safetensors" for file in cache.iterdir()) == 1
        assert "Traceback" not in webui.log.read_text(errors="replace").partition("Startup time:")[2]
