"""img2img and Ditail with loaded models, in batches, without the job layer."""

import torch
from torch import Tensor

from ..method.inversion import combine_conds, invert
from ..method.latents import SourceLatents
from ..method.schedule import InjectionSteps
from ..unet.injection import Injection, inject
from .model import Model
from .samplers import seeded_noise
from .sampling import Job, Progress, new_sampler, no_progress, sample


def image_to_image(model: Model, job: Job, z0: Tensor, strength: float, progress: Progress = no_progress) -> Tensor:
    """Plain img2img of `z_0` at a denoising strength: `z_0`."""
    sampler = new_sampler(model, job, strength)
    noise = seeded_noise(tuple(z0.shape[1:]), list(job.seeds)).to(z0)
    return sample(model, job, sampler, sampler.noised(z0, noise), progress)


def invert_with(model: Model, job: Job, z0: Tensor, progress: Progress = no_progress) -> SourceLatents:
    """The source latents of `z_0` `[b, 4, h, w]` on the timesteps that `job`'s sampler will ask for."""
    context = combine_conds(job.alpha, model.encode_prompts(job.prompts), job.beta,
                            model.encode_prompts([job.negative_prompt]))

    def on_step(_number: int, _z: Tensor) -> None:
        progress()

    return invert(lambda z, t: model.eps(z, t, context), z0, new_sampler(model, job).timesteps, model.alphas_cumprod,
                  on_step)


def noised_source(model: Model, job: Job, z0: Tensor) -> SourceLatents:
    """`q(z_t | z_0)` with the seed's noise instead of an inversion: what Ditail is without its source model."""
    timesteps = new_sampler(model, job).timesteps
    noise = seeded_noise(tuple(z0.shape[1:]), list(job.seeds)).to(z0)
    abar = [model.alphas_cumprod[round(t)] for t in timesteps]
    return SourceLatents(timesteps, torch.stack([a.sqrt() * z0 + (1 - a).sqrt() * noise for a in abar]),
                         model.alphas_cumprod)


def transfer(model: Model, job: Job, source: SourceLatents, progress: Progress = no_progress) -> Tensor:
    """Ditail's second half: `z_0` of the target `model`, sampled from the source's last latent under injection."""
    sampler = new_sampler(model, job)
    steps = InjectionSteps.from_ratios(sampler.timesteps, job.conv_ratio, job.attn_ratio)
    null = {"context": model.encode_prompts([""])}
    start = source.at(sampler.timesteps[0]).expand(len(job.prompts), -1, -1, -1)
    with inject(model.unet, Injection(source, null, steps, job.mask)):
        return sample(model, job, sampler, start, progress)
