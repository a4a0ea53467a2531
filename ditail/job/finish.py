"""What is done to a job's images once they are decoded."""

from PIL import Image

from ..content.images import fit
from .job import Job


def finished(job: Job, image: Image.Image, number: int) -> Image.Image:
    """The image of this number in the job with the colours that the settings ask for; within the mask, if there is one.

    Raises DitailError where the host can't match colours.
    """
    settings = job.request.settings
    if settings.colours == "style" or job.is_plain or not job.samplings:
        return image
    source = job.samplings[max(job.samplings)].sources[number]
    matched = job.host.job.match_colours(image, source.content_image(job.latents))
    if job.request.mask is None:
        return matched
    mask = fit(job.host.job.framed(job.request.mask, settings.resize_mode), *image.size, settings.resize_mode)
    return Image.composite(matched, image.convert("RGB"), mask)
