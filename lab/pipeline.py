"""Ditail with loaded models and latents of several scenes at once, which the job layer does not know."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ditail.method.inversion import combine_conds, invert
from ditail.method.latents import SourceLatents
from ditail.method.schedule import InjectionSteps
from ditail.standalone import sampling
from ditail.standalone.model import Model
from ditail.standalone.samplers import seeded_noise
from ditail.standalone.sampling import (
    Progress,
    decode_image,
    generate,
    image_to_image,
    new_sampler,
    no_progress,
    sample,
)
from ditail.unet.injection import Injection, inject

__all__ = ["Job", "decode_image", "generate", "image_to_image", "invert_with", "new_sampler", "noised_source", "sample",
           "transfer"]


@dataclass(frozen=True)
class Job(sampling.Job):
    """A sampling with Ditail's numbers; mask: None or `[1, 1, h, w]` in 0..1."""

    alpha: float = 3.0
    beta: float = 0.5
    conv_ratio: float = 0.8
    attn_ratio: float = 0.5
    mask: Tensor | None = None


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
