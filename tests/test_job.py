"""Jobs on the command line's host with the demo checkpoints: their keys, their start, and their hooks."""

import pytest
import torch

from ditail.cache.latents import LatentCache
from ditail.job.job import Job as DitailJob
from ditail.job.request import Request
from ditail.job.source import sources_of
from ditail.standalone import demo_checkpoints
from ditail.standalone.host import FileHost, FileLibrary, LoadedModels
from ditail.standalone.run import images_of
from ditail.standalone.sampling import Job
from tests.injected import hooks_on


@pytest.fixture(scope="module")
def loaded():
    return LoadedModels()


@pytest.fixture(scope="module")
def images():
    return demo_checkpoints.held_out().images["noto"]


def job_of(loaded, paths, **values) -> DitailJob:
    """A job of ink in 4 steps whose sources are inverted by noto."""
    library = FileLibrary()
    request = Request.from_values({"enabled": True, "source_checkpoint": str(paths["noto"]), **values}, library)
    host = FileHost(loaded, library.checkpoint(paths["ink"]), Job(("a cat",), steps=4), (64, 64))
    return DitailJob(host, request, LatentCache(2**30))


def test_a_generated_source_of_other_proportions_depends_on_the_resize_mode(loaded, paths):
    """Its image is fitted to the second sampling; at the same proportions nothing is, and old caches stay valid."""
    def key(mode, width, height):
        job = job_of(loaded, paths, source="generate", resize_mode=mode)
        job.plan([])
        sampling = job.samplings[False]
        parents = [source.origin for source in sampling.sources]
        return sources_of(job.host, job.request, (width, height), sampling.plan, [], parents)[0].key

    assert key("crop", 64, 128) != key("stretch", 64, 128)
    assert key("crop", 64, 64) == key("stretch", 64, 64)


def test_the_tone_is_that_of_the_sources_at_the_start(loaded, paths, images):
    """A main image that a further one replaces in the first half of the steps has no part in the start."""
    def start(main, tone, further=images[3]):
        sources = [{"image": further, "source_checkpoint": str(paths["noto"]), "steps": [0, 0.5]}]
        job = job_of(loaded, paths, image=main, tone=tone, sources=sources)
        job.prepare([])
        return job.start_of(job.samplings[False], 0)

    toned = start(images[10], 1.0)
    assert torch.equal(toned, start(images[40], 1.0))
    assert not torch.allclose(toned, start(images[10], 0.0), atol=0.01)
    assert not torch.allclose(toned, start(images[10], 1.0, images[40]), atol=0.01)


@pytest.mark.parametrize("fails", ["start_of", "_hook"])
def test_a_job_that_fails_before_sampling_leaves_no_hook(loaded, paths, images, monkeypatch, fails):
    job = job_of(loaded, paths, image=images[3])
    job.prepare([])

    def failing(*args):
        if fails == "_hook":
            original(*args)
        raise MemoryError

    original = getattr(job, fails)
    monkeypatch.setattr(job, fails, failing)
    with pytest.raises(MemoryError):
        list(images_of(job.host, job))
    assert hooks_on(job.host.target.unet()) == 0
