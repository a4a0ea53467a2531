"""Jobs on the command line's host with the demo checkpoints: their keys, their start, and their hooks."""

from dataclasses import replace

import pytest
import torch

from ditail.cache.latents import LatentCache
from ditail.errors import DitailError
from ditail.job.host import Replacement
from ditail.job.job import Job
from ditail.job.request import Request
from ditail.job.source import sources_of
from ditail.standalone import demo_checkpoints
from ditail.standalone.host import FileHost, FileLibrary, LoadedModels
from ditail.standalone.run import images_of
from ditail.standalone.sampling import SamplingJob
from tests.injected import hooks_on


@pytest.fixture(scope="module")
def loaded():
    return LoadedModels()


@pytest.fixture(scope="module")
def images():
    return demo_checkpoints.held_out().images["noto"]


def job_of(loaded, paths, **values) -> Job:
    """A job of ink in 4 steps whose sources are inverted by noto."""
    library = FileLibrary()
    request = Request.from_values({"enabled": True, "source_checkpoint": str(paths["noto"]), **values}, library)
    host = FileHost(loaded, library.checkpoint(paths["ink"]), SamplingJob(("a cat",), steps=4), (64, 64))
    return Job(host, request, LatentCache(2**30))


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


def test_a_sampler_that_adds_noise_before_its_first_call_starts_lower(loaded, paths, images, monkeypatch):
    """As with `s_churn`: the start, and the estimate of its tone, are of the timestep at which the sampler begins."""
    job = job_of(loaded, paths, image=images[3], tone=1.0)
    plan = job.host.job.plan(hires=False)
    start = plan.timesteps[-2]
    monkeypatch.setattr(job.host.job, "plan", lambda *, hires: replace(plan, start=start))
    job.prepare([])
    sampling = job.samplings[False]
    assert sampling.tones[0].timesteps == [start]
    untoned = Job(job.host, replace(job.request, settings=replace(job.request.settings, tone=0.0)), job.cache)
    untoned.prepare([])
    inverted = job.latents[sampling.sources[0].key]
    assert torch.equal(untoned.start_of(untoned.samplings[False], 0), inverted.at(start))
    assert not torch.equal(inverted.at(start), inverted.at(plan.timesteps[-1]))


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


def test_weights_that_are_loaded_into_the_hooked_unet(loaded, paths, images, monkeypatch):
    """As a refiner's may be: they have their own features, and are not hooked if nothing is left to inject."""
    job = job_of(loaded, paths, image=images[3], conv_ratio=0.5, attn_ratio=0.25)
    job.prepare([])
    host, unet, noise, hooked = job.host, job.host.target.unet(), torch.zeros(1, 4, 8, 8), []
    monkeypatch.setattr(host.target, "features", lambda *_: hooked.append(host.checkpoints.target().name))
    job.attach(noise, noise.clone(), hires=False, first=0)
    *_, late, early, first = job.samplings[False].plan.timesteps
    for name, timestep in (("ink", first), ("ink", early), ("flat", early), ("noto", late)):
        monkeypatch.setattr(host.checkpoints, "_target", FileLibrary().checkpoint(paths[name]))
        job.follow(hires=False, first=0, timestep=timestep)
        assert (hooks_on(unet) > 0) == (timestep != late)
    assert hooked == [FileLibrary().checkpoint(paths[name]).name for name in ("ink", "flat")]


@pytest.mark.parametrize(("values", "is_refused"), [
    ({"conv_ratio": 0.5}, False), ({"conv_ratio": 0.8}, True), ({"conv_ratio": 0.5, "contours": 0.5}, False),
    ({"layers": "a5@0-0.5"}, False), ({"layers": "a5@0.5-1"}, True),
])
def test_a_refiner_of_another_family_that_is_injected_into(loaded, paths, images, monkeypatch, values, is_refused):
    job = job_of(loaded, paths, **{"image": images[3], "attn_ratio": 0.5, **values})
    refiner, checkpoints = FileLibrary().checkpoint(paths["flat"]), job.host.checkpoints

    def check_family(checkpoint):
        if checkpoint == refiner:
            raise DitailError("source_checkpoint", "flat is SDXL")

    monkeypatch.setattr(checkpoints, "check_family", check_family)
    monkeypatch.setattr(checkpoints, "replacements", lambda plans: [
        Replacement(refiner, False, plans[False].timesteps[1] + 100, "refiner_checkpoint")])
    try:
        job.plan([])
    except DitailError as error:
        assert is_refused and str(error).startswith("refiner_checkpoint: flat is SDXL; lower `conv_ratio`")
    else:
        assert not is_refused
