"""Post-processing of a job's decoded images."""

from PIL import Image

from ..content.images import fit
from .job import Job


def finish_image(job: Job, image: Image.Image, number: int) -> Image.Image:
    """An image with the colours that the settings ask for, inside the mask if there is one.

    number: the image's number in the job. Raises DitailError if the host can't match colours.
    """
    settings = job.request.settings
    if settings.colours == "style" or job.is_plain or not job.samplings:
        return image
    source = job.samplings[max(job.samplings)].sources[number]
    matched = job.host.job.match_colours(image, source.content_image(job.latents))
    if job.request.mask is None:
        return matched
    mask = fit(job.host.job.sampled_part(job.request.mask, settings.resize_mode), *image.size, settings.resize_mode)
    return Image.composite(matched, image.convert("RGB"), mask)
