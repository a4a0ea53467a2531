"""The whole method on two bare U-Nets: `ditail.mix`."""

from numbers import Real

import torch
from torch import Tensor, nn

from .errors import DitailError, shown
from .method.inversion import combine_conds, ddim_step, invert
from .method.schedule import TRAINING_STEPS, InjectionSteps, ddim_timesteps
from .unet.injection import INSTALLED, Injection, inject
from .unet.sites import architecture_of, context_width, latent_channels

# Upper limit of alpha, beta and omega, far above any value that gives an image.
LARGEST = 10_000


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

    U-Nets (ldm's `UNetModel`, eps-prediction) are called as `unet(x, t, context=c)`, with x and c in their dtype.
    z0: `[b, 4, h, w]`. cond, uncond, null: `[1 or b, tokens, width]`, the prompt, the negative prompt and "".
    alphas_cumprod: `[1000]`. mask: None or `[1, 1, h, w]` in 0..1, 1 = inject.
    Returns (source latents, samples), each `[N, 4, h, w]` from the largest timestep to the smallest (`[N, b, 4, h, w]`
    for several rows); `samples[i]` is the latent after step `i`, so `samples[-1]` is the image.
    Raises DitailError for arguments that can't be used, U-Nets that don't fit, or latents that diverge. The U-Nets are
    left as they were, also when anything raises.
    """
    timesteps = ddim_timesteps(steps)
    check_numbers(alpha=alpha, beta=beta, omega=omega, conv_ratio=conv_ratio, attn_ratio=attn_ratio)
    check_unets(source_unet, target_unet)
    check_tensors(z0, alphas_cumprod, mask, source_unet, cond=cond, uncond=uncond, null=null)
    rows = max(len(z0), len(cond), len(uncond))
    z0, cond, uncond = (x.expand(rows, *x.shape[1:]) for x in (z0, cond, uncond))

    context = _as_weights(combine_conds(alpha, cond, beta, uncond), source_unet)

    def source_eps(z: Tensor, t: float) -> Tensor:
        return source_unet(z.to(context), _timestep_of_rows(t, context), context=context)

    source = invert(source_eps, z0, timesteps, alphas_cumprod)
    cond, uncond, null = (_as_weights(c, target_unet) for c in (cond, uncond, null))
    injection = Injection(
        source, {"context": null}, InjectionSteps.from_ratios(timesteps, conv_ratio, attn_ratio), mask
    )
    z = source.at(timesteps[-1]).to(z0.device)
    trajectory = []
    with inject(target_unet, injection):
        for t in reversed(timesteps):
            eps = guided_eps(target_unet, z, t, cond, uncond, omega)
            # The last step ends at abar[0], not at 1, as the authors' scheduler has it (`set_alpha_to_one=False`).
            z = ddim_step(z, eps, alphas_cumprod[t], alphas_cumprod[max(t - TRAINING_STEPS // steps, 0)])
            trajectory.append(z)
    if not torch.isfinite(z).all():
        raise DitailError(None, "sampling: the latents are no longer finite; lower omega or alpha")
    source_latents, samples = source.latents.flip(0).to(z), torch.stack(trajectory)
    return (source_latents[:, 0], samples[:, 0]) if rows == 1 else (source_latents, samples)


def guided_eps(unet: nn.Module, z: Tensor, t: float, cond: Tensor, uncond: Tensor, omega: float) -> Tensor:
    """`eps_neg + omega * (eps_pos - eps_neg)` for `z` `[b, 4, h, w]`; one call if the prompts have one length."""
    if cond.shape == uncond.shape:
        both = torch.cat([uncond, cond])
        x = torch.cat([z, z]).to(both)
        negative, positive = unet(x, _timestep_of_rows(t, x), context=both).to(z).chunk(2)
    else:
        negative, positive = (unet(z.to(c), _timestep_of_rows(t, c), context=c).to(z) for c in (uncond, cond))
    return negative + omega * (positive - negative)


def check_numbers(**numbers: float) -> None:
    """Raise DitailError naming the first number that `mix` can't use."""
    for key, value in numbers.items():
        highest = 1 if key.endswith("_ratio") else LARGEST
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= highest:
            raise DitailError(key, f"must be a number from 0 to {highest}, got {shown(value)}")


def check_unets(source: nn.Module, target: nn.Module) -> None:
    """Raise DitailError unless two U-Nets can be mixed."""
    if any(INSTALLED in unet.__dict__ for unet in (source, target)):
        raise DitailError(None, "a U-Net has an injection installed: call mix outside it")
    source_kind, target_kind = architecture_of(source), architecture_of(target)
    if source_kind != target_kind:
        raise DitailError(None, f"the source is {source_kind.name}, the target {target_kind.name}: both must be the "
                          "same")
    for what, count in (("latent channels", latent_channels), ("numbers a token", context_width)):
        if len({count(source), count(target)} - {None}) > 1:
            raise DitailError(None, f"the source takes {count(source)} {what}, the target {count(target)}: both must "
                              "be the same")


def check_tensors(z0: Tensor, alphas_cumprod: Tensor, mask: Tensor | None, unet: nn.Module, **conds: Tensor) -> None:
    """Raise DitailError naming the first tensor that `mix` can't use with U-Nets like `unet`."""
    _check_tensor("z0", z0, "b", latent_channels(unet) or "c", "h", "w")
    unit = architecture_of(unet).unit
    if z0.shape[-2] % unit or z0.shape[-1] % unit:
        raise DitailError("z0", f"its height and width must be multiples of {unit}, got {tuple(z0.shape[-2:])}")
    _check_tensor("alphas_cumprod", alphas_cumprod, TRAINING_STEPS)
    if not 0 < alphas_cumprod.min() <= alphas_cumprod.max() <= 1 or (alphas_cumprod.diff() > 0).any():
        raise DitailError("alphas_cumprod", "must fall from at most 1 to above 0")
    for key, cond in conds.items():
        _check_tensor(key, cond, "rows", "tokens", context_width(unet) or "width")
    rows = max(len(z0), len(conds["cond"]), len(conds["uncond"]))
    for key, x in {"z0": z0, **conds}.items():
        if len(x) not in (1, rows):
            raise DitailError(key, f"must have 1 row or {rows}, got {len(x)}")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != (1, 1, *z0.shape[-2:]) or mask.is_meta
                             or not 0 <= mask.min() <= mask.max() <= 1):
        raise DitailError("mask", f"must be [1, 1, {z0.shape[-2]}, {z0.shape[-1]}] with values in 0..1")


def _check_tensor(key: str, x: Tensor, *shape: int | str) -> None:
    """shape: for each dimension its required size, or a name if any size from 1 on is allowed."""
    expected = f"a floating-point tensor [{', '.join(map(str, shape))}]"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise DitailError(key, f"must be {expected}, got {x.dtype if isinstance(x, Tensor) else shown(x)}")
    sizes = zip(x.shape, shape, strict=False)
    if x.ndim != len(shape) or not all(size == fixed if isinstance(fixed, int) else size for size, fixed in sizes):
        raise DitailError(key, f"must be {expected}, got {tuple(x.shape)}")
    if x.is_meta or not x.isfinite().all():
        raise DitailError(key, "must hold finite numbers only")


def _as_weights(x: Tensor, unet: nn.Module) -> Tensor:
    """`x` on the U-Net's device and in its dtype."""
    return x.to(next(unet.parameters()))


def _timestep_of_rows(t: float, rows: Tensor) -> Tensor:
    """The timestep `[b]` of each of `rows` `[b, ...]`, as a U-Net takes it."""
    return torch.full((len(rows),), t, device=rows.device, dtype=torch.long if t == int(t) else torch.float32)
