"""Diffusion Cocktail (Ditail, arXiv 2312.08873): the content of one diffusion model's image in another's style.

The names below are imported on first use: `python -m ditail` handles Ctrl-C before it starts to load torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "DitailError": "errors", "FeatureCache": "features", "Injection": "injection", "LatentCache": "latents",
    "Savings": "savings", "SourceLatents": "latents", "combine_conds": "inversion", "inject": "injection",
    "invert": "inversion", "mix": "mix", "remove": "injection",
}


class _Package(ModuleType):
    """`ditail.mix` is the function, also after somebody has imported the submodule of that name."""

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
