"""The whole method on two bare U-Nets: `ditail.mix`."""

import torch
from torch import Tensor, nn

from .errors import DitailError
from .injection import Injection, inject
from .inversion import combine_conds, invert
from .schedule import TRAINING_STEPS, InjectionSteps, ddim_timesteps
from .sites import architecture_of


@torch.no_grad()
def mix(
    source_unet: nn.Module,
    target_unet: nn.Module,
    z0: Tensor,
    cond: Tensor,
    uncond: Tensor,
    null: Tensor,
    *,
    alphas_cumprod: Tensor,
    steps: int,
    alpha: float,
    beta: float,
    omega: float,
    conv_ratio: float,
    attn_ratio: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Invert `z0` with the source U-Net, sample it with the target U-Net under injection (paper, algorithm 1).

    U-Nets (ldm's `UNetModel`, eps-prediction) are called as `unet(x, t, context=c)`.
    z0: `[b, 4, h, w]`. cond, uncond, null: `[1 or b, tokens, width]`, the prompt, the negative prompt and "".
    alphas_cumprod: `[1000]`. mask: None or `[1, 1, h, w]` in 0..1, 1 = inject.
    Returns (source latents, samples), each `[N, 4, h, w]` from the largest timestep to the smallest (`[N, b, 4, h, w]`
    for several rows); `samples[i]` is the latent after step `i`, so `samples[-1]` is the picture.
    Raises DitailError for settings out of range, U-Nets that don't fit, or an inversion that diverges. The U-Nets are
    left as they were, also when anything raises.
    """
    timesteps = ddim_timesteps(steps)
    check_arguments(z0, mask, alpha=alpha, beta=beta, omega=omega, conv_ratio=conv_ratio, attn_ratio=attn_ratio)
    source_kind, target_kind = architecture_of(source_unet), architecture_of(target_unet)
    if source_kind != target_kind:
        raise DitailError(f"the source is {source_kind.name}, the target {target_kind.name}: both must be the same")
    rows = max(len(z0), len(cond), len(uncond))
    z0, cond, uncond = (x.expand(rows, *x.shape[1:]) for x in (z0, cond, uncond))

    context = combine_conds(alpha, cond, beta, uncond)
    source = invert(
        lambda z, t: source_unet(z.to(context), _rows_at(t, z), context=context), z0, timesteps, alphas_cumprod
    )
    injection = Injection(
        source, {"context": null}, InjectionSteps.from_ratios(timesteps, conv_ratio, attn_ratio), mask
    )
    z = source.at(timesteps[-1]).to(z0.device)
    samples = []
    with inject(target_unet, injection):
        for t in reversed(timesteps):
            eps = guided_eps(target_unet, z, t, cond, uncond, omega).to(z)
            # The last step ends at abar[0], not at 1, as the authors' scheduler has it (`set_alpha_to_one=False`).
            z = ddim_step(z, eps, alphas_cumprod[t], alphas_cumprod[max(t - TRAINING_STEPS // steps, 0)])
            samples.append(z)
    source_latents = source.latents.flip(0).to(z)
    samples = torch.stack(samples)
    return (source_latents[:, 0], samples[:, 0]) if rows == 1 else (source_latents, samples)


def guided_eps(unet: nn.Module, z: Tensor, t: float, cond: Tensor, uncond: Tensor, omega: float) -> Tensor:
    """`eps_neg + omega * (eps_pos - eps_neg)` of rows `[b, 4, h, w]`; one call where the prompts are of one length."""
    if cond.shape == uncond.shape:
        both = torch.cat([uncond, cond])
        x = torch.cat([z, z]).to(both)
        negative, positive = unet(x, _rows_at(t, x), context=both).chunk(2)
    else:
        negative, positive = (unet(z.to(c), _rows_at(t, z), context=c) for c in (uncond, cond))
    return negative + omega * (positive - negative)


def ddim_step(z: Tensor, eps: Tensor, abar: Tensor | float, abar_next: Tensor | float) -> Tensor:
    """One deterministic DDIM step (arXiv 2010.02502, equation 12 with sigma 0) between two `alphas_cumprod`."""
    abar, abar_next = float(abar), float(abar_next)
    x0 = (z - (1 - abar) ** 0.5 * eps) / abar**0.5
    return abar_next**0.5 * x0 + (1 - abar_next) ** 0.5 * eps


def check_arguments(z0: Tensor, mask: Tensor | None, **numbers: float) -> None:
    """Raise DitailError naming the first argument of `mix` that can't be used."""
    if z0.ndim != 4:
        raise DitailError(f"z0: must be [b, 4, h, w], got {tuple(z0.shape)}", "z0")
    for key, value in numbers.items():
        highest = 1.0 if key.endswith("_ratio") else float("inf")
        if not 0 <= value <= highest or value == float("inf"):
            limit = "from 0 to 1" if highest == 1 else "a finite number of at least 0"
            raise DitailError(f"{key}: must be {limit}, got {value!r}", key)
    if mask is not None and (mask.shape != (1, 1, *z0.shape[-2:]) or not 0 <= mask.min() <= mask.max() <= 1):
        raise DitailError(f"mask: must be [1, 1, {z0.shape[-2]}, {z0.shape[-1]}] with values in 0..1", "mask")


def _rows_at(t: float, rows: Tensor) -> Tensor:
    return torch.full((len(rows),), t, device=rows.device, dtype=torch.long if t == int(t) else torch.float32)
