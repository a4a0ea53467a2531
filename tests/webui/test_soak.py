"""Many jobs one after another, and from several clients at once: the answers are repeatable and memory stays flat.

`DITAIL_SOAK` is the number of jobs, `DITAIL_SEED` chooses them.
"""

import os
import random
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.webui.faulty import SEED, Faulty, Kind, kinds
from tests.webui.webui_helpers import difference, encode

JOBS = int(os.environ.get("DITAIL_SOAK", "60"))
CLIENTS = 6
MB = 2**20
# What the process may grow by from the second quarter of the jobs to the last: an allocator's fragments, no model
# (80 MB) and no image by image.
GROWTH = 60 * MB
SEEDS = (1, 2)
ALPHAS = (2.5, 3.5)


@pytest.fixture(scope="module")
def faulty(webui):
    webui.generate(steps=1)
    return Faulty(webui)


@pytest.fixture(scope="module")
def jobs(content, other_content) -> dict[str, Kind]:
    """Every kind of run with several seeds and alphas, and plain jobs among them."""
    every = {"txt2img plain": Kind(None, {}), "txt2img plain with a LoRA": Kind(None, {"prompt": "<lora:test-lora:1>"})}
    every |= kinds(encode(content), encode(other_content))
    return {f"{name}, seed {seed}, alpha {alpha}": varied(kind, seed, alpha) for name, kind in every.items()
            for seed in SEEDS for alpha in (ALPHAS if kind.settings else ALPHAS[:1])}


def varied(kind: Kind, seed: int, alpha: float) -> Kind:
    settings = kind.settings and {**kind.settings, "alpha": alpha}
    return Kind(settings, {**kind.overrides, "seed": seed})


def test_mixed_jobs_are_repeatable_and_memory_stays_flat(faulty, jobs, capsys, record_property):
    rng, known, wrong, sizes, repeats = random.Random(SEED), {}, [], [], 0
    for _ in range(JOBS):
        if rng.random() < 0.15:
            faulty.post("empty-caches")
        name = rng.choice(sorted(jobs))
        made = faulty.image(jobs[name])
        repeats += name in known
        if known.setdefault(name, made) != made or len(made) < 3000:
            wrong.append(name)
        sizes.append(faulty.memory()["rss"])
    quarter = JOBS // 4
    early, late = statistics.median(sizes[quarter : 2 * quarter]), statistics.median(sizes[-quarter:])
    with capsys.disabled():
        print(f"\n{JOBS} jobs, {repeats} of them repeated: {len(wrong)} wrong; resident {early / MB:.0f} MB in the "  # noqa: T201
              f"second quarter, {late / MB:.0f} MB in the last")
    record_property("resident MB", [round(size / MB) for size in sizes])
    assert wrong == []
    assert repeats > 0
    assert late - early < GROWTH


def test_clients_at_once_get_what_each_gets_alone(faulty, jobs):
    """txt2img: to the bit."""
    rng = random.Random(SEED)
    names = [name for name in sorted(jobs) if name.startswith("txt2img")]
    chosen = rng.sample(names, 2 * CLIENTS)
    alone = {name: faulty.image(jobs[name]) for name in chosen}
    faulty.post("empty-caches")
    with ThreadPoolExecutor(CLIENTS) as clients:
        together = dict(zip(chosen, clients.map(lambda name: images(faulty.ask(jobs[name])), chosen), strict=True))
    assert [name for name in chosen if together[name] != alone[name]] == []


def test_img2img_clients_differ_no_more_than_plain_ones(faulty, jobs):
    """The WebUI's own encoder draws from the global generator, which clients share: so plain answers differ, too."""
    name = "img2img inverted, seed 1, alpha 2.5"
    with ThreadPoolExecutor(CLIENTS) as clients:
        plain = list(clients.map(lambda _: faulty.ask(jobs[name], plain=True).image, range(CLIENTS)))
        made = list(clients.map(lambda _: faulty.ask(jobs[name]).image, range(CLIENTS)))
    assert spread(made) <= max(2 * spread(plain), 0.05)


def spread(images: list) -> float:
    """The greatest mean difference between two of several images, in grey levels."""
    return max(difference(a, b) for a in images for b in images)


def images(answer) -> bytes:
    return b"".join(image.tobytes() for image in answer.images)
