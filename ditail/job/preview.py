"""A preview of a job's sources before it is sampled, to judge prompt, alpha and source checkpoint."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..content.images import fit, image_to_tensor
from ..method.inversion import Denoiser, sample_ddim
from .host import Host, Model, Prompts
from .job import Job
from .plan import Sampling

# DDIM steps for the image from the start alone, spread evenly over the sampler's timesteps.
STEPS = 8
TEXT = "sampling from the start alone"


@dataclass(frozen=True)
class Preview:
    """The images of a preview, for the job's first image.

    content: the content image at the size of the sampling. reconstruction: the source model's, from the inverted
    latents; None if nothing was inverted. similarity: `explained_variance` of the reconstruction. start: the target's
    image from the start latent without injection; None if sampling starts from noise.
    """

    content: Image.Image
    reconstruction: Image.Image | None
    similarity: float | None
    start: Image.Image | None


def preview(job: Job, cfg_scale: float) -> Preview:
    """The preview of a prepared job (`is_preview`) whose target is loaded. Raises as `Job.prepare` does."""
    sampling = job.samplings[min(job.samplings)]
    source = sampling.sources[0]
    content, decoded = source.content_image(job.latents), job.latents[source.key].image
    reconstruction = None
    if source.kind == "image" and decoded is not None:
        reconstruction = _at_size(Image.fromarray(decoded.numpy()), content.size)
    similarity = None if reconstruction is None else explained_variance(reconstruction, content)
    has_start = job.request.settings.start == "source" and not sampling.hires
    start = _at_size(_image_from_start(job, sampling, cfg_scale), content.size) if has_start else None
    return Preview(content, reconstruction, similarity, start)


def _at_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image that was decoded, at the content image's size, which may be no multiple of 8."""
    return image if image.size == size else fit(image, *size, "stretch")


def explained_variance(image: Image.Image, content: Image.Image) -> float:
    """The coefficient of determination, `1 - sum((x - y)^2) / sum((y - mean(y))^2)` over the pixels of each channel.

    1 for the same image, 0 or less for one that explains no more than a uniform image of the mean colour.
    """
    x, y = image_to_tensor(image), image_to_tensor(content)
    total = (y - y.mean((-2, -1), keepdim=True)).square().sum()
    return float(1 - (x - y).square().sum() / total.clamp(min=1e-6))


@torch.no_grad()
def _image_from_start(job: Job, sampling: Sampling, cfg_scale: float) -> Image.Image:
    """The target's image from the start latent by DDIM with CFG, without injection."""
    host, target = job.host, job.host.checkpoints.target()
    timesteps = [t for t in sampling.plan.timesteps if t <= sampling.plan.start]
    count = min(STEPS, len(timesteps))
    timesteps = [timesteps[-(-(i + 1) * len(timesteps) // count) - 1] for i in range(count)]
    positive, networks = host.checkpoints.parse_prompt(host.job.prompts()[0][0])
    vae_file = host.checkpoints.vae_file(target, "")
    with (host.models.source_pass([count]) as progress, host.models.borrowed_models() as borrow,
          borrow(target, vae_file, networks, TEXT) as model):
        progress.begin(count, TEXT)
        denoise = _guided_denoiser(host, model, sampling, (positive, host.job.prompts()[0][1]), cfg_scale)
        start = job.start_of(sampling, 0)[:1].to(host.models.device)
        z0 = sample_ddim(denoise, start, timesteps, host.models.alphas_cumprod(model), progress.step)
        progress.end()
        return Image.fromarray(host.models.decode(model, z0).numpy())


def _guided_denoiser(host: Host, model: Model, sampling: Sampling, prompts: Prompts, cfg_scale: float) -> Denoiser:
    """A denoiser with CFG: `eps_neg + omega * (eps_pos - eps_neg)`."""
    positive, negative = (host.models.denoiser(model, (prompt, ""), 1.0, 0.0, sampling.size, sampling.plan)
                          for prompt in prompts)

    def denoise(z: Tensor, t: float) -> Tensor:
        uncond = negative(z, t)
        return uncond + cfg_scale * (positive(z, t) - uncond)

    return denoise
