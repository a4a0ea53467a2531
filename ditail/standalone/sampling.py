"""Sampling with a loaded model, in batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..content.images import LATENT_SCALE, tensor_to_images
from ..errors import DitailError
from ..job.host import Row
from ..method.latents import SourceLatents
from .model import Model
from .samplers import Sampler, seeded_noise

Progress = Callable[[], object]
AnyJob = TypeVar("AnyJob", bound="SamplingJob")


@dataclass(frozen=True)
class SamplingJob:
    """One sampling: its parameters besides the model. prompts, seeds: one per row."""

    prompts: tuple[str, ...]
    negative_prompt: str = ""
    seeds: tuple[int, ...] = (0,)
    steps: int = 20
    sampler: str = "DDIM"
    omega: float = 7.5

    def with_(self: AnyJob, **changes) -> AnyJob:
        return replace(self, **changes)


def no_progress() -> None:
    pass


@torch.no_grad()
def sample(model: Model, job: SamplingJob, sampler: Sampler, z: Tensor, progress: Progress = no_progress,
           trajectory: dict[float, Tensor] | None = None, before_step: Callable[[list[Row]], object] | None = None,
           guided_above: float = float("-inf")) -> Tensor:
    """`z_0` `[b, 4, h, w]` sampled from VP latents `z` `[b, 4, h, w]` with CFG.

    trajectory: gets the latents by timestep. before_step: called before each step with the rows of the U-Net's calls.
    guided_above: at timesteps up to this one the CFG scale is 1. Raises DitailError if the latents are not finite.
    """
    negative = model.encode_prompts([job.negative_prompt]).expand(len(z), -1, -1)
    positive = model.encode_prompts(job.prompts)

    def eps(x: Tensor, t: float) -> Tensor:
        is_guided = job.omega != 1 and t > guided_above
        if before_step:
            kinds = (False, True) if is_guided else (True,)
            before_step([Row(image, is_cond) for is_cond in kinds for image in range(len(x))])
        if not is_guided:
            return model.eps(x, t, positive)
        if negative.shape == positive.shape:
            eps_neg, eps_pos = model.eps(torch.cat([x, x]), t, torch.cat([negative, positive])).chunk(2)
        else:
            eps_neg, eps_pos = model.eps(x, t, negative), model.eps(x, t, positive)
        return eps_neg + job.omega * (eps_pos - eps_neg)

    for t, vp, after in sampler.run(eps, z.to(model.device)):
        z = after
        progress()
        if trajectory is not None:
            trajectory[t] = vp.cpu()
    if not torch.isfinite(z).all():
        raise DitailError(None, "sampling: the latents are no longer finite; lower the CFG scale or alpha")
    return z


def new_sampler(model: Model, job: SamplingJob, strength: float = 1.0) -> Sampler:
    """The job's sampler; each row's ancestral noise comes from its own seed."""
    return Sampler(job.sampler, job.steps, model.alphas_cumprod, job.seeds, strength)


def generate(model: Model, job: SamplingJob, width: int, height: int,
             progress: Progress = no_progress) -> tuple[Tensor, SourceLatents]:
    """Plain generation: (`z_0` `[b, 4, h, w]`, the latents of all timesteps)."""
    model.check_size(width, height)
    sampler = new_sampler(model, job)
    trajectory: dict[float, Tensor] = {}
    noise = seeded_noise((4, height // LATENT_SCALE, width // LATENT_SCALE), list(job.seeds))
    z = sample(model, job, sampler, noise, progress, trajectory)
    return z, latents_of(trajectory, z, model)


def latents_of(trajectory: Mapping[float, Tensor], z0: Tensor, model: Model) -> SourceLatents:
    """The trajectory of a sampling (latents `[b, 4, h, w]` by timestep) and its result `z0` as source latents."""
    return SourceLatents(list(trajectory), torch.stack(list(trajectory.values())), model.alphas_cumprod, z0=z0)


def rows_of(latents: SourceLatents) -> list[SourceLatents]:
    """Split source latents of several images into those of each image."""
    z0s = [None] * latents.latents.shape[1] if latents.z0 is None else latents.z0.split(1)
    return [SourceLatents(latents.timesteps.tolist(), row.clone(), latents.alphas_cumprod, z0=z0)
            for row, z0 in zip(latents.latents.split(1, 1), z0s, strict=True)]


def image_to_image(model: Model, job: SamplingJob, z0: Tensor, strength: float,
                   progress: Progress = no_progress) -> Tensor:
    """Plain img2img: `z_0` `[b, 4, h, w]` sampled from `z0` at a denoising strength."""
    sampler = new_sampler(model, job, strength)
    noise = seeded_noise(tuple(z0.shape[1:]), list(job.seeds)).to(z0)
    return sample(model, job, sampler, sampler.noised(z0, noise), progress)


def decode_image(model: Model, z: Tensor) -> Image.Image:
    """The first of the images of latents `[b, 4, h, w]`."""
    return tensor_to_images(model.decode(z))[0]
