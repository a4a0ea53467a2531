"""Diffusion Cocktail (Ditail, arXiv 2312.08873): the content of one diffusion model's image in another's style.

The names below are imported on first use: `python -m ditail` handles Ctrl-C before it starts to load torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "DitailError": "errors", "FeatureCache": "cache.features", "Injection": "unet.injection",
    "LatentCache": "cache.latents", "Savings": "unet.shortcuts", "SourceLatents": "method.latents",
    "combine_conds": "method.inversion", "inject": "unet.injection", "invert": "method.inversion", "mix": "mix",
    "remove": "unet.injection",
}


class _Package(ModuleType):
    """`ditail.mix` is the function, even after the submodule of that name was imported."""

    def __getattr__(self, name: str):
        if name not in _MODULES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value) -> None:
        if name == "mix" and isinstance(value, ModuleType):
            value = value.mix
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
