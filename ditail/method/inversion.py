"""DDIM inversion of a content image's `z_0` with the source model, and DDIM sampling."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import DitailError
from .latents import SourceLatents
from .schedule import alphas_cumprod_at

Denoiser = Callable[[Tensor, float], Tensor]
# Tokens that CLIP encodes at a time.
CHUNK = 77


def combine_conds(alpha: float, cond: Tensor, beta: float, uncond: Tensor) -> Tensor:
    """`C = alpha * C_pos - beta * C_neg` (paper equation 5), embeddings `[b, tokens, width]`.

    The shorter prompt repeats its last chunk of tokens to the length of the longer one, as CFG does in the WebUI.
    """
    if cond.shape[1] != uncond.shape[1]:
        short, long = sorted((cond, uncond), key=lambda c: c.shape[1])
        missing = long.shape[1] - short.shape[1]
        chunk = short[:, -CHUNK:]
        padding = chunk.repeat(1, -(-missing // chunk.shape[1]), 1)[:, :missing]
        padded = torch.cat([short, padding], 1)
        cond, uncond = (padded, uncond) if short is cond else (cond, padded)
    return alpha * cond - beta * uncond


@torch.no_grad()
def invert(
    denoise: Denoiser,
    z0: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    progress: Callable[[int, Tensor], None] | None = None,
) -> SourceLatents:
    """DDIM inversion (paper section 3.2): the latents `z_t` of `z0` at each of `timesteps`.

    denoise: `(z [b, c, h, w], t) -> eps`, the source model with its conditioning (`combine_conds`) and no CFG.
    progress: called after each step with its index and `z_t`; an exception that it raises ends the inversion.
    Raises DitailError as soon as a latent is not finite.
    """
    ascending = sorted(map(float, timesteps))
    abar = alphas_cumprod_at(alphas_cumprod, torch.tensor(ascending, dtype=torch.float64)).tolist()
    previous = float(alphas_cumprod[0])
    z, latents = z0.float(), []
    for i, (t, now) in enumerate(zip(ascending, abar, strict=True)):
        z = ddim_step(z, denoise(z, t).to(z), previous, now)
        if not torch.isfinite(z).all():
            raise DitailError(
                None, f"inversion: the latents are no longer finite at step {i + 1} of {len(ascending)} (t = {t:g}); "
                "lower alpha or beta, or run the source model in full precision"
            )
        latents.append(z.cpu())
        previous = now
        if progress:
            progress(i, z)
    return SourceLatents(ascending, torch.stack(latents), alphas_cumprod, z0=z0)


@torch.no_grad()
def sample_ddim(
    denoise: Denoiser,
    z: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """`z_0` `[b, c, h, w]` from the latent `z` of the last of `timesteps`, by deterministic DDIM.

    With the denoiser, timesteps and last latent of an inversion, it reconstructs `z_0`. It ends at abar[0].
    progress: as for `invert`.
    """
    ascending = sorted(map(float, timesteps))
    abar = alphas_cumprod_at(alphas_cumprod, torch.tensor(ascending, dtype=torch.float64)).tolist()
    z = z.float()
    for i in reversed(range(len(ascending))):
        below = abar[i - 1] if i else float(alphas_cumprod[0])
        z = ddim_step(z, denoise(z, ascending[i]).to(z), abar[i], below)
        if progress:
            progress(len(ascending) - 1 - i, z)
    return z


def ddim_step(z: Tensor, eps: Tensor, abar: Tensor | float, abar_next: Tensor | float) -> Tensor:
    """One deterministic DDIM step (arXiv 2010.02502, equation 12 with sigma 0) between two `alphas_cumprod`."""
    abar, abar_next = float(abar), float(abar_next)
    x0 = (z - (1 - abar) ** 0.5 * eps) / abar**0.5
    return abar_next**0.5 * x0 + (1 - abar_next) ** 0.5 * eps
