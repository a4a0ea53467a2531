"""Diffusion Cocktail (Ditail, arXiv 2312.08873): the content of one diffusion model's image in another's style."""

from .cache.features import FeatureCache
from .cache.latents import LatentCache
from .errors import DitailError
from .method.inversion import combine_conds, invert
from .method.latents import SourceLatents
from .mix import mix
from .unet.injection import Injection, inject, remove
from .unet.shortcuts import Savings

__version__ = "0.2.0"
__all__ = [
    "DitailError", "FeatureCache", "Injection", "LatentCache", "Savings", "SourceLatents", "combine_conds", "inject",
    "invert", "mix", "remove",
]
