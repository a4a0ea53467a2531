"""What one timestep of an injection has: which layers and sources take part, and what the source run recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from ..errors import DitailError
from ..method.blending import Mixed, blend, images_of, shares


@dataclass
class Step:
    """One timestep of one injection; a new one is made for each, so nothing of another step can be left in it.

    wanted: the layers to inject, by the names of the modules that are hooked. active: which of the mixed sources take
    part. recorded: the source rows' output of each layer, blended to one row an image. kept: an earlier generation's
    tensors (see `layer_to_keep`), none where the source run was made. to_keep: those of this source run. fed_alike:
    its attentions whose q and k came from one tensor; the others have none to keep.
    """

    timestep: float
    wanted: frozenset[str]
    active: Sequence[Mixed]
    places: tuple[int, ...]
    images: int
    recorded: dict[str, Tensor] = field(default_factory=dict)
    cached: Mapping[str, Tensor] = field(default_factory=dict)
    to_keep: dict[str, Tensor] = field(default_factory=dict)
    fed_alike: set[str] = field(default_factory=set)
    # What the last `to_q` was called with.
    queried: Tensor | None = None

    def __post_init__(self):
        self.shares, self.reach = shares(self.active)

    @property
    def is_recorded(self) -> bool:
        return self.recorded.keys() >= self.wanted

    @property
    def layers_to_keep(self) -> set[str]:
        return {layer_to_keep(key) for key in self.wanted}

    def record(self, key: str, layer_input: Tensor, output: Tensor, grid: tuple[int, int], *, keep: bool) -> None:
        """Note a layer's output for the source rows, and the tensor to keep for a later generation.

        grid: height and width of the latents. keep: whether features are kept at all.
        """
        self.recorded[key] = self._blended(key, output, grid)
        layer, part = layer_to_keep(key), key.rpartition(".")[2]
        if part == "to_q":
            self.queried = layer_input
        elif part == "out_layers":
            self.to_keep[layer] = output
        elif self.queried is layer_input:
            self.fed_alike.add(layer)
            if keep:
                # Autocast hands the projection this very rounding of its input, at half the size.
                self.to_keep[layer] = layer_input.to(output.dtype)

    def recall(self, cached: Mapping[str, Tensor], device, grid: tuple[int, int]) -> None:
        """Take an earlier generation's tensors instead of a source run; q and k are projected when first asked for."""
        self.cached = {layer: cached[layer].to(device) for layer in self.layers_to_keep}
        self.recorded = {key: self._blended(key, self.cached[key], grid) for key in self.wanted & self.cached.keys()}

    def is_fed_alike(self, attention: str) -> bool:
        """Whether an attention's to_q and to_k were called with one tensor (no hypernetwork in between)."""
        return bool(self.cached) or attention in self.fed_alike

    def _blended(self, key: str, output: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the active sources' rows gave, as one row an image."""
        if len(self.active) == 1 and self.active[0].rows == self.images:
            return output
        tiles, rest = divmod(len(output), sum(m.rows for m in self.active))
        if rest:
            raise DitailError(None, f"injection: {key} gave {len(output)} rows for {len(self.active)} sources")
        parts = [mask_on_layer(share, output, grid, key) if isinstance(share, Tensor) else share
                 for share in self.shares]
        return blend(output.split([m.rows * tiles for m in self.active]), parts, self.images * tiles)


def layer_to_keep(key: str) -> str:
    """The name under which a layer's tensor is kept: q and k come from one tensor, a feature is kept itself."""
    return key.removesuffix(".to_q").removesuffix(".to_k")


def mask_on_layer(mask: Tensor, output: Tensor, grid: tuple[int, int], key: str) -> Tensor:
    """A mask `[1, 1, h, w]` on a layer's grid: `[1, 1, h, w]` for features, `[1, tokens, 1]` for q and k.

    Raises DitailError for tokens that are no level of latents of the height and width `grid`.
    """
    if output.ndim == 4:
        return resize_mask(mask, output.shape[-2:])
    height, width = grid
    while height * width > output.shape[1]:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != output.shape[1]:
        raise DitailError(None, f"injection: {key} has {output.shape[1]} tokens, which no level of {grid} latents has, "
                          "so the mask can't be laid over it")
    return resize_mask(mask, (height, width)).flatten(2).transpose(1, 2)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask `[1, 1, h, w]` at another size, each cell taking the value at its centre (as the authors' halves do)."""
    return F.interpolate(mask.float(), tuple(size), mode="nearest-exact")


def mixed_at(mixed: Sequence[Mixed], timestep: float, wanted: frozenset[str], places: tuple[int, ...]) -> Step:
    """The step of a timestep; `places`: which of the mixed sources take part."""
    return Step(timestep, wanted, [mixed[i] for i in places], places, images_of(mixed))
