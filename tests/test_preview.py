"""The way back from an inversion, and how much of an image came back."""

import pytest
import torch
from PIL import Image

from ditail.job.preview import explained_variance
from ditail.method.inversion import invert, sample_ddim
from ditail.method.schedule import ddim_timesteps, scaled_linear_alphas_cumprod

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
