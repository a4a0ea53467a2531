"""The state of an injection at one timestep: its layers and sources, and what the source run recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from ..errors import DitailError
from ..method.blending import WeightedSource, blend, image_count, shares_of


@dataclass
class Step:
    """One timestep of one injection; each timestep has a new one, so no state of an earlier one remains.

    layers: the names of the hooked modules that are injected. active: the sources that take part; indices: their
    indices among all sources. image_count: the number of images. recorded: the source rows' output of each layer,
    blended to one row per image. cached: tensors of an earlier generation (see `layer_to_keep`), empty if the source
    was run. to_keep: the same of this source run. common_input: the attentions whose q and k were computed from one
    tensor; only these can be kept.
    """

    timestep: float
    layers: frozenset[str]
    active: Sequence[WeightedSource]
    indices: tuple[int, ...]
    image_count: int
    recorded: dict[str, Tensor] = field(default_factory=dict)
    cached: Mapping[str, Tensor] = field(default_factory=dict)
    to_keep: dict[str, Tensor] = field(default_factory=dict)
    common_input: set[str] = field(default_factory=set)
    # The input of the last `to_q`.
    q_input: Tensor | None = None

    def __post_init__(self):
        self.shares, self.reach = shares_of(self.active)

    @property
    def is_recorded(self) -> bool:
        return self.recorded.keys() >= self.layers

    @property
    def layers_to_keep(self) -> set[str]:
        return {layer_to_keep(key) for key in self.layers}

    def record(self, key: str, layer_input: Tensor, output: Tensor, grid: tuple[int, int], *, keep: bool) -> None:
        """Record a layer's output for the source rows, and the tensor to keep for a later generation.

        grid: height and width of the latents. keep: whether features are kept at all.
        """
        self.recorded[key] = self.blended(key, output, grid)
        layer, part = layer_to_keep(key), key.rpartition(".")[2]
        if part == "to_q":
            self.q_input = layer_input
        elif part == "out_layers":
            self.to_keep[layer] = output
        elif self.q_input is layer_input:
            self.common_input.add(layer)
            if keep:
                # Under autocast the projection rounds its input like this anyway, and it takes half the memory.
                self.to_keep[layer] = layer_input.to(output.dtype)

    def recall(self, cached: Mapping[str, Tensor], device, grid: tuple[int, int]) -> None:
        """Use an earlier generation's tensors instead of a source run; q and k are projected when first needed."""
        self.cached = {layer: cached[layer].to(device) for layer in self.layers_to_keep}
        self.recorded = {key: self.blended(key, self.cached[key], grid) for key in self.layers & self.cached.keys()}

    def has_common_input(self, attention: str) -> bool:
        """Whether an attention's to_q and to_k were called with the same tensor (no hypernetwork in between)."""
        return bool(self.cached) or attention in self.common_input

    def blended(self, key: str, output: Tensor, grid: tuple[int, int]) -> Tensor:
        """The output of the active sources' rows, blended to one row per image."""
        if len(self.active) == 1 and self.active[0].rows == self.image_count:
            return output
        tiles, rest = divmod(len(output), sum(source.rows for source in self.active))
        if rest:
            raise DitailError(None, f"injection: {key} gave {len(output)} rows for {len(self.active)} sources")
        shares = [mask_on_layer(share, output, grid, key) if isinstance(share, Tensor) else share
                  for share in self.shares]
        return blend(output.split([source.rows * tiles for source in self.active]), shares, self.image_count * tiles)


def layer_to_keep(key: str) -> str:
    """The name under which a layer's tensor is kept: the input of q and k, or a feature itself."""
    return key.removesuffix(".to_q").removesuffix(".to_k")


def mask_on_layer(mask: Tensor, output: Tensor, grid: tuple[int, int], key: str) -> Tensor:
    """A mask `[1, 1, h, w]` at the size of a layer: `[1, 1, h, w]` for features, `[1, tokens, 1]` for q and k.

    grid: height and width of the latents. Raises DitailError if none of their levels has so many tokens.
    """
    if output.ndim == 4:
        return resize_mask(mask, output.shape[-2:])
    height, width = grid
    while height * width > output.shape[1]:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != output.shape[1]:
        raise DitailError(None, f"injection: {key} has {output.shape[1]} tokens, which no level of {grid} latents has, "
                          "so the mask can't be applied to it")
    return resize_mask(mask, (height, width)).flatten(2).transpose(1, 2)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask `[1, 1, h, w]` at another size, each cell taking the value at its centre (like the authors' halving)."""
    return F.interpolate(mask.float(), tuple(size), mode="nearest-exact")


def step_at(timestep: float, sources: Sequence[WeightedSource], indices: tuple[int, ...],
            layers: frozenset[str]) -> Step:
    """The state at a timestep. indices: of the sources that take part, by `active_at`."""
    return Step(timestep, layers, [sources[i] for i in indices], indices, image_count(sources))
