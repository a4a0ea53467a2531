"""The modules of an ldm U-Net that Ditail injects into, per architecture."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..errors import DitailError
from ..method.layers import ATTENTION, FEATURE, Layer, parse_layers


@dataclass(frozen=True)
class Architecture:
    """A family of ldm U-Nets.

    blocks: how many `output_blocks` it has. layers: the default layers (see `layers.py`). depth: transformer
    blocks in each block with attention, None if it differs by level (SDXL).
    """

    name: str
    blocks: int
    layers: str
    depth: int | None = None

    @property
    def unit(self) -> int:
        """The sides of its latents must be multiples of this: a level has three blocks and halves the sides."""
        return 2 ** (self.blocks // 3 - 1)


# Paper section 3.3 and the authors' code for SD 1.x (diffusers' up_blocks[1].resnets[1], attentions of up_blocks 1..3
# but the first); for SDXL the corresponding blocks.
ARCHITECTURES = (
    Architecture("SD 1.x/2.x", blocks=12, layers="f4 a4-11", depth=1),
    Architecture("SDXL", blocks=9, layers="f1 a1-5"),
)


@dataclass(frozen=True)
class Site:
    """A module to hook: the `out_layers` of a ResBlock (a feature), or an `attn1` (attention)."""

    layer: Layer
    name: str
    module: nn.Module


@dataclass(frozen=True)
class Sites:
    """The modules of one U-Net to hook."""

    architecture: Architecture
    features: tuple[Site, ...]
    attention: tuple[Site, ...]


def architecture_of(unet: nn.Module) -> Architecture:
    """The family of a U-Net by the number of its `output_blocks`. Raises DitailError if it is not known."""
    count = len(getattr(unet, "output_blocks", ()))
    for architecture in ARCHITECTURES:
        if count == architecture.blocks:
            return architecture
    what = f"{count} output blocks" if count else "no output blocks"
    known = " and ".join(a.name for a in ARCHITECTURES)
    raise DitailError(None, f"{type(unet).__name__} has {what}: Ditail needs a U-Net of {known}")


def latent_channels(unet: nn.Module) -> int | None:
    """The number of channels of its latents; None if unknown."""
    return getattr(unet, "in_channels", None)


def context_width(unet: nn.Module) -> int | None:
    """The width of its prompts' tokens (SD 1.x and SD 2.x differ); None if unknown."""
    keys = (m for name, m in unet.named_modules() if name.endswith("attn2.to_k"))
    return getattr(next(keys, None), "in_features", None)


def find_sites(unet: nn.Module, layers: Iterable[Layer] = ()) -> Sites:
    """The modules to hook for `layers` (none: the architecture's default).

    Raises DitailError if a block does not exist, or lacks its ResBlock or the expected number of self-attentions.
    """
    architecture = architecture_of(unet)
    sites: dict[str, list[Site]] = {FEATURE: [], ATTENTION: []}
    chosen = tuple(layers)
    for layer in chosen or parse_layers(architecture.layers):
        try:
            sites[layer.kind] += _sites_of(unet, architecture, layer)
        except DitailError as error:
            raise DitailError("layers", f"{error}") if chosen else error from None
    return Sites(architecture, tuple(sites[FEATURE]), tuple(sites[ATTENTION]))


def _sites_of(unet: nn.Module, architecture: Architecture, layer: Layer) -> list[Site]:
    if layer.block >= architecture.blocks:
        raise DitailError(None, f"{architecture.name} has output blocks 0 to {architecture.blocks - 1}, and no "
                          f"{layer.block}")
    path = f"output_blocks.{layer.block}"
    block = unet.get_submodule(path)
    if layer.kind == FEATURE:
        out_layers = getattr(next(block.children(), None), "out_layers", None)
        if out_layers is None:
            raise DitailError(None, f"{architecture.name}: {path}.0 is not a ResBlock with out_layers")
        return [Site(layer, f"{path}.0.out_layers", out_layers)]
    sites = [Site(layer, f"{path}.{n}", m) for n, m in block.named_modules() if n.endswith("attn1")]
    usable = [m for m in (site.module for site in sites)
              if hasattr(m, "to_q") and hasattr(m, "to_k") and not is_cross_attention(m)]
    if not sites:
        raise DitailError(None, f"{architecture.name}: {path} has no self-attention")
    if len(usable) != len(sites) or architecture.depth not in (None, len(sites)):
        raise DitailError(None, f"{architecture.name}: {path} has {len(usable)} self-attentions of {len(sites)}, "
                          f"expected {architecture.depth or 'one or more'}")
    return sites


def is_cross_attention(attn1: nn.Module) -> bool:
    """Whether `attn1` reads the prompt (ldm's `disable_self_attn`): its keys then come from another width."""
    in_q, in_k = (getattr(p, "in_features", None) for p in (attn1.to_q, attn1.to_k))
    return in_q != in_k
