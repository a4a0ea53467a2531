"""The methods that are compared, each in batches of images with a prompt, a seed and a source of their own.

Ditail is computed by the functions that its job layer calls (`ditail.job.job`), without the layer: a job has one
content image. `tests/test_methods.py` holds the two to the same images. img2img and generation are the command line's.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditail.content.settings import DitailSettings
from ditail.job.host import Row as CallRow
from ditail.method.contours import Contours
from ditail.method.inversion import combine_conds, invert
from ditail.method.latents import SourceLatents
from ditail.method.schedule import InjectionSteps, alphas_cumprod_at, end_of_first_steps, inversion_timesteps
from ditail.method.tone import SEED, target_estimate, tone_shift
from ditail.standalone.model import Model
from ditail.standalone.sampling import SamplingJob, generate, new_sampler, sample
from ditail.unet.injection import Injection, inject
from ditail.unet.rows import SourceRow
from ditail.unet.shortcuts import Savings
from ditail.unet.sites import find_sites

from .precision import autocast

# With a source for each image there is no softmax to share.
SAVINGS = Savings(share_attention=False)
# DiffStyler (2403.18461), from its code: features on this share of the steps.
DIFFSTYLER_FEATURES = 0.6


def plain(model: Model, job: SamplingJob, z0: Tensor) -> Tensor:
    """Generation from the seed's noise at the size of `z0` `[b, 4, h, w]`."""
    height, width = (8 * side for side in z0.shape[-2:])
    return generate(model, job, width, height)[0]


def source_latents(model: Model, job: SamplingJob, settings: DitailSettings, z0: Tensor, *,
                   is_null: bool) -> SourceLatents:
    """The inversion of `z0` `[b, 4, h, w]`, one row an image. is_null: with the empty prompt instead of the job's."""
    prompts = ("",) * len(z0) if is_null else job.prompts
    context = combine_conds(settings.alpha, model.encode_prompts(prompts), settings.beta,
                            model.encode_prompts([job.negative_prompt]))
    timesteps = inversion_timesteps(new_sampler(model, job).timesteps, settings.inversion_steps)
    return invert(lambda z, t: model.eps(z, t, context), z0, timesteps, model.alphas_cumprod)


def ditail(target: Model, job: SamplingJob, settings: DitailSettings, source: SourceLatents, z0: Tensor) -> Tensor:
    """`z_0` sampled by the target under injection of `source`, which ends in `z0`; one row an image each."""
    sampler = new_sampler(target, job)
    steps = InjectionSteps.from_ratios(sampler.timesteps, settings.conv_ratio, settings.attn_ratio)
    contours = Contours.on_first_steps(settings.contours, sampler.timesteps, target.prediction)
    rows: list[CallRow] = []

    def source_rows(count: int, _call: Mapping) -> list[SourceRow]:
        return [SourceRow(row.image, row.is_cond or settings.inject == "both") for row in rows[:count]]

    def before_step(called: list[CallRow]) -> None:
        rows[:] = called

    injection = Injection(source, {"context": target.encode_prompts([""])}, steps, None, source_rows, SAVINGS,
                          contours=contours if settings.contours else None)
    start = source.at(sampler.timesteps[0]) + _tone(target, job, settings.tone, z0, sampler.timesteps[0])
    with inject(target.unet, injection):
        return sample(target, job, sampler, start, before_step=before_step,
                      guided_above=end_of_first_steps(sampler.timesteps, settings.guidance_until))


def _tone(target: Model, job: SamplingJob, strength: float, z0: Tensor, timestep: float) -> Tensor | float:
    if not strength:
        return 0.0
    context = target.encode_prompts(job.prompts)
    noise = torch.randn(1, *z0.shape[1:], generator=torch.Generator().manual_seed(SEED)).to(z0).expand_as(z0)
    estimate = target_estimate(lambda z, t: target.eps(z, t, context), noise, timestep, target.alphas_cumprod)
    abar = float(alphas_cumprod_at(target.alphas_cumprod, torch.tensor([timestep])))
    # On the CPU, as all source latents.
    return abar**0.5 * tone_shift(z0.cpu(), estimate.at(timestep), strength)


def refine(target: Model, job: SamplingJob, trajectory: SourceLatents, strength: float) -> Tensor:
    """A refiner switch: the target continues another model's sampling (its latents) for the last share `strength`."""
    sampler = new_sampler(target, job, strength)
    return sample(target, job, sampler, trajectory.at(sampler.timesteps[0]))


def anchored(target: Model, source_model: Model, job: SamplingJob, settings: DitailSettings, z0: Tensor) -> Tensor:
    """Sampling beside the noised content `z_t = a z_0 + s n` with one noise n, as FlowEdit and DDCM do with one model.

    `n - eps_source(z_t, t)` is added to the target's eps of every row, so that with two equal models, equal prompts and
    CFG 1 the content comes back. The noised latents are injected, too, as far as the settings' ratios say.
    """
    sampler = new_sampler(target, job)
    noise = torch.cat([_noise_of(image) for image in z0.cpu()])
    abar = alphas_cumprod_at(source_model.alphas_cumprod, torch.tensor(sampler.timesteps))
    abar = abar.float().view(-1, 1, 1, 1, 1)
    noised = abar.sqrt() * z0.cpu() + (1 - abar).sqrt() * noise
    source = SourceLatents(sampler.timesteps, noised, source_model.alphas_cumprod, z0=z0)
    context = combine_conds(settings.alpha, source_model.encode_prompts(job.prompts), settings.beta,
                            source_model.encode_prompts([job.negative_prompt]))
    beside = copy.copy(target)

    def eps(z: Tensor, t: float, cond: Tensor) -> Tensor:
        residual = noise.to(z) - source_model.eps(source.at(t).to(z), t, context)
        return target.eps(z, t, cond) + residual.repeat(len(z) // len(noise), 1, 1, 1)

    beside.eps = eps  # type: ignore[method-assign]
    return ditail(beside, job, settings, source, z0)


def _noise_of(z0: Tensor) -> Tensor:
    """Noise `[1, c, h, w]` that depends on the content `[c, h, w]` alone."""
    digest = hashlib.sha256(z0.contiguous().numpy().tobytes()).digest()
    return torch.randn(1, *z0.shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:6], "big")))


def diffstyler(target: Model, source_model: Model, job: SamplingJob, source: SourceLatents, gain: float) -> Tensor:
    """DiffStyler's blend (2403.18461): the source checkpoint's q and k weigh `gain * min(1, 2 t / 1000)`.

    Its features replace the target's on the first steps. No mask, and the inversion is plain DDIM as for all methods.
    """
    sampler = new_sampler(target, job)
    null = source_model.encode_prompts([""])
    features_above = end_of_first_steps(sampler.timesteps, DIFFSTYLER_FEATURES)
    recorded: dict[str, Tensor] = {}

    def before_unet(_unet: nn.Module, args: tuple) -> None:
        t = float(args[1][0])
        source_model.eps(source.at(t).to(args[0]), t, null)
        recorded["attention"] = torch.tensor(gain * min(1.0, 2 * t / 1000))
        recorded["feature"] = torch.tensor(float(t > features_above))

    def record(name: str, _module: nn.Module, _args: tuple, output: Tensor) -> None:
        recorded[name] = output

    def blend(kind: str, name: str, _module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        source_output = recorded[name].repeat(len(output) // len(recorded[name]), *[1] * (output.ndim - 1))
        return torch.lerp(output, source_output.to(output), recorded[kind].to(output))

    handles = [target.unet.register_forward_pre_hook(before_unet)]
    for _, name, module in _layers(source_model.unet):
        handles.append(module.register_forward_hook(partial(record, name)))
    for kind, name, module in _layers(target.unet):
        handles.append(module.register_forward_hook(partial(blend, kind, name)))
    try:
        return sample(target, job, sampler, source.at(sampler.timesteps[0]))
    finally:
        for handle in handles:
            handle.remove()


def _layers(unet: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    sites = find_sites(unet)
    for site in sites.features:
        yield "feature", site.name, site.module
    for site in sites.attention:
        for part in ("to_q", "to_k"):
            yield "attention", f"{site.name}.{part}", getattr(site.module, part)


@contextmanager
def fast() -> Iterator[None]:
    """No gradients, and on a CPU the precision of `lab.precision`."""
    with torch.no_grad(), autocast():
        yield


def accelerate(model: Model) -> Model:
    """Give ldm's attention and norms torch's fused functions, which compute the same in half the time on a CPU."""
    from ldm.modules.attention import CrossAttention
    from ldm.modules.diffusionmodules.util import GroupNorm32

    for module in model.unet.modules():
        if isinstance(module, CrossAttention):
            module.forward = partial(_attention, module)
        elif isinstance(module, GroupNorm32):
            module.forward = partial(nn.GroupNorm.forward, module)
    return model


def store_in_bf16(model: Model) -> Model:
    """Weights as `fast` would round them at every call."""
    for module in model.unet.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)
    return model


def _attention(attention, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    context = x if context is None else context

    def heads(project: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        return project(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    q, k, v = heads(attention.to_q, x), heads(attention.to_k, context), heads(attention.to_v, context)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scale)
    return attention.to_out(out.transpose(1, 2).flatten(2))
