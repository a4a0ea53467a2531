"""The way back from an inversion, and how much of an image came back."""

import pytest
import torch
from PIL import Image

from ditail.cache.latents import LatentCache
from ditail.job.job import Job
from ditail.job.preview import explained_variance, preview
from ditail.job.request import Request
from ditail.method.inversion import invert, sample_ddim
from ditail.method.schedule import ddim_timesteps, scaled_linear_alphas_cumprod
from ditail.standalone import demo_checkpoints
from ditail.standalone.host import FileHost, FileLibrary, LoadedModels
from ditail.standalone.sampling import SamplingJob

ABAR = scaled_linear_alphas_cumprod()


def test_ddim_sampling_ends_where_the_inversion_began():
    """One eps for all latents makes each step exact in both directions."""
    torch.manual_seed(0)
    z0, eps = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    latents = invert(lambda z, t: eps, z0, ddim_timesteps(10), ABAR)
    steps = []
    back = sample_ddim(lambda z, t: eps, latents.latents[-1], latents.timesteps.tolist(), ABAR,
                       lambda index, z: steps.append(index))
    assert torch.allclose(back, z0, atol=1e-4)
    assert steps == list(range(10))


def test_explained_variance():
    content = Image.linear_gradient("L").convert("RGB")
    assert explained_variance(content, content) == 1
    assert explained_variance(Image.new("RGB", content.size, (127, 127, 127)), content) == pytest.approx(0, abs=0.01)
    assert explained_variance(content.rotate(180), content) < 0


def preview_of(paths, size, init_images, **values):
    library = FileLibrary()
    host = FileHost(LoadedModels(), library.checkpoint(paths["ink"]), SamplingJob(("a cat",), steps=4), size)
    job = Job(host, Request.from_values({"enabled": True, **values}, library), LatentCache(2**30),
                    is_preview=True)
    job.prepare(init_images)
    return preview(job, 5)


def test_at_a_size_that_is_no_multiple_of_8(paths):
    """As img2img's "Resize by" gives them: the decoded images are smaller than the content image."""
    result = preview_of(paths, (70, 66), [], image=demo_checkpoints.held_out().images["noto"][3])
    assert result.content.size == result.reconstruction.size == result.start.size == (70, 66)
    assert result.similarity > 0


def test_of_an_init_image_of_another_size(paths, monkeypatch):
    """As with img2img's "latent upscale", which resizes the latent of the init image and not the image."""
    encode = torch.nn.functional.interpolate

    def encoded(models, model, pixels, latent_hw):
        return encode(model.encode(pixels), latent_hw, mode="bilinear")

    monkeypatch.setattr("ditail.standalone.host.FileModels.encode", encoded)
    result = preview_of(paths, (64, 64), [torch.linspace(-1, 1, 96).expand(1, 3, 96, 96)])
    assert result.content.size == result.reconstruction.size == result.start.size == (64, 64)
    assert result.similarity is not None
