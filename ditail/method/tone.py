"""Tone: moves the colours of the start's foreground toward those that the target would generate.

At the timestep where sampling starts, `sqrt(abar_t)` of the content's channel means is still in the latent, and a
sampler keeps it: a monochrome content image stays pale in a colourful style, and the other way round.
"""

import torch
from torch import Tensor

from .inversion import Denoiser
from .latents import SourceLatents
from .schedule import alphas_cumprod_at

# The noise is always the same, so that an estimate depends on the target, its prompt and its size alone.
SEED = 0


@torch.no_grad()
def target_estimate(denoise: Denoiser, noise: Tensor, timestep: float, alphas_cumprod: Tensor) -> SourceLatents:
    """`x_0` `[b, c, h, w]` that a model expects in pure `noise` at a timestep, as source latents of one step."""
    abar = float(alphas_cumprod_at(alphas_cumprod, torch.tensor([timestep], dtype=torch.float64)))
    x0 = (noise - (1 - abar) ** 0.5 * denoise(noise, timestep).to(noise)) / abar**0.5
    return SourceLatents([timestep], x0[None], alphas_cumprod)


def tone_shift(z0: Tensor, x0: Tensor, strength: float) -> Tensor:
    """What to add to the content's `z_0` `[b, c, h, w]` for the colours of a target's `x0` `[1 or b, c, h, w]`.

    Only the foreground is shifted, by `strength` times the difference of the two means in it, weighted by how much each
    place differs from the background. If the border is not uniform (in a photo), the foreground can't be told from the
    background, and the shift fades to 0.
    """
    foreground, uniformity = foreground_of(z0)
    total = foreground.sum((2, 3), keepdim=True).clamp(min=1e-6)
    difference = (foreground * (x0.to(z0) - z0)).sum((2, 3), keepdim=True) / total
    return strength * uniformity * foreground * difference


def foreground_of(z0: Tensor) -> tuple[Tensor, Tensor]:
    """How much each place differs from the background `[b, 1, h, w]`, and its uniformity `[b, 1, 1, 1]`, in 0..1.

    The background is the median latent of the border, and uniform (1) if the border varies much less than the whole.
    """
    border = torch.cat([z0[:, :, 0], z0[:, :, -1], z0[:, :, 1:-1, 0], z0[:, :, 1:-1, -1]], -1)
    background = border.median(-1).values[..., None, None]
    distance = (z0 - background).norm(dim=1, keepdim=True)
    of_border, of_all = ((x - background.view(-1, x.shape[1], *[1] * (x.ndim - 2))).square().flatten(1).mean(1)
                         for x in (border, z0))
    uniformity = (1 - of_border / of_all.clamp(min=1e-6)).clamp(0, 1)
    return distance / distance.amax((2, 3), keepdim=True).clamp(min=1e-6), uniformity[:, None, None, None]
