"""Sampling with a loaded model, in batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Job:
    """What a run needs besides its models; one prompt and one seed a row."""

    prompts: tuple[str, ...]
    negative_prompt: str = ""
    seeds: tuple[int, ...] = (0,)
    steps: int = 20
    sampler: str = "DDIM"
    omega: float = 7.5
    alpha: float = 3.0
    beta: float = 0.5
    conv_ratio: float = 0.8
    attn_ratio: float = 0.5
    mask: Tensor | None = None

    def with_(self, **changes) -> "Job":
        return replace(self, **changes)


def no_progress() -> None:
    pass


@torch.no_grad()
def sample(model: Model, job: Job, sampler: Sampler, z: Tensor, progress: Progress = no_progress,
           keep: dict[float, Tensor] | None = None, before_step: Callable[[list[Row]], object] | None = None,
           guided_above: float = float("-inf")) -> Tensor:
    """`z_0` `[b, 4, h, w]` sampled from VP latents `z` with CFG; `keep` collects the latents passed through.

    before_step: called before each step with the rows that the U-Net is going to be called with. guided_above: the
    timestep up to which the CFG scale is 1.
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

    for t, asked, after in sampler.run(eps, z.to(model.device)):
        z = after
        progress()
        if keep is not None:
            keep[t] = asked.cpu()
    if not torch.isfinite(z).all():
        raise DitailError(None, "sampling: the latents are no longer finite; lower the CFG scale or alpha")
    return z


def new_sampler(model: Model, job: Job, strength: float = 1.0) -> Sampler:
    """The job's sampler; ancestral noise comes from its first seed."""
    return Sampler(job.sampler, job.steps, model.alphas_cumprod, job.seeds[0], strength)


def generate(model: Model, job: Job, width: int, height: int,
             progress: Progress = no_progress) -> tuple[Tensor, SourceLatents]:
    """Plain generation: (`z_0`, the latents it passed through, which can be the source of a mix)."""
    model.check_size(width, height)
    sampler = new_sampler(model, job)
    kept: dict[float, Tensor] = {}
    noise = seeded_noise((4, height // LATENT_SCALE, width // LATENT_SCALE), list(job.seeds))
    z = sample(model, job, sampler, noise, progress, kept)
    return z, SourceLatents(list(kept), torch.stack(list(kept.values())), model.alphas_cumprod, z0=z)


def decode_image(model: Model, z: Tensor) -> Image.Image:
    """The first of the images of latents `[b, 4, h, w]`."""
    return tensor_to_images(model.decode(z))[0]
