"""Sampling the images of one job on the command line; in the WebUI, the WebUI itself does this."""

from collections.abc import Iterator

from PIL import Image
from torch import Tensor

from ..content.images import LATENT_SCALE, tensor_to_images
from ..job.finish import finish_image
from ..job.job import Job
from .host import FileHost
from .samplers import seeded_noise
from .sampling import latents_of, new_sampler, rows_of, sample


def images_of(host: FileHost, ditail: Job, *, is_recorded: bool = False) -> Iterator[Image.Image]:
    """Sample a prepared job in batches, and yield its images.

    is_recorded: record the latents of a plain job for its sources (see `Job.prepare`).
    """
    width, height = host.job.size
    for first in range(0, len(host.job.sampling.prompts), host.job.batch_size):
        job, model = host.job.images(first), host.model()
        model.check_size(width, height)
        sampler = new_sampler(model, job)
        noise = seeded_noise((4, height // LATENT_SCALE, width // LATENT_SCALE), list(job.seeds)).to(model.device)
        trajectory: dict[float, Tensor] = {}
        try:
            ditail.attach(noise, noise, hires=False, first=first)
            with host.models.progress.sampling(len(sampler.schedule)) as progress:
                z = sample(model, job, sampler, noise, progress, trajectory if is_recorded else None,
                           host.target.expect, ditail.guided_above(hires=False))
        finally:
            ditail.detach()
        if is_recorded:
            ditail.keep_recorded(first, rows_of(latents_of(trajectory, z, model)))
        for i, image in enumerate(tensor_to_images(model.decode(z)), first):
            yield finish_image(ditail, image, i)
