"""Diffusion Cocktail (Ditail, arXiv 2312.08873): the content of one diffusion model's image in another's style."""

from .errors import DitailError
from .features import FeatureCache
from .injection import Injection, inject, remove
from .inversion import combine_conds, invert
from .latents import LatentCache, SourceLatents
from .mix import mix
from .savings import Savings

__version__ = "0.2.0"
__all__ = [
    "DitailError", "FeatureCache", "Injection", "LatentCache", "Savings", "SourceLatents", "combine_conds", "inject",
    "invert", "mix", "remove",
]
