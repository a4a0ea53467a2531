"""Plain generation, img2img and Ditail with loaded models, in batches."""

from ditail.standalone.pipeline import image_to_image, invert_with, noised_source, transfer
from ditail.standalone.sampling import Job, decode_image, generate, new_sampler, sample

__all__ = ["Job", "decode_image", "generate", "image_to_image", "invert_with", "new_sampler", "noised_source", "sample",
           "transfer"]
