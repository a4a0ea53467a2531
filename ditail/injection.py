"""Injection: hooks that put what the target U-Net computes on the source latents into the rows being denoised.

Everything happens at the U-Net's border. When the U-Net is asked for a timestep, it first runs on the source latent
of that timestep with the null prompt, and hooks record q and k of the chosen self-attentions and the hidden state of
the chosen ResBlock; in the run that was asked for, the same hooks replace those tensors in every row. Nothing is
re-implemented, so LoRA, hypernetworks and every attention implementation that calls `to_q` and `to_k` keep working.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import DitailError
from .latents import SourceLatents
from .schedule import InjectionSteps
from .sites import Sites, find_sites

HANDLES = "_ditail_handles"
FEATURE = "feature"
RowImages = Callable[[int], Sequence[int]]


class _LastLayerReached(Exception):
    """Ends the source run once every layer that is needed has been recorded."""


@dataclass
class Injection:
    """What is injected into one U-Net.

    source: the source latents, `b` rows (1 for one content image; one per image of a batch otherwise).
    null: the U-Net's keyword arguments for the source rows, batch 1: `context` `[1, tokens, width]`, for SDXL also `y`.
    steps: which timesteps. mask: None or `[1, 1, h, w]` in 0..1 at the latents' size, 1 = inject.
    row_images: for a run of `n` rows, the source row of each (default: the rows repeat the source rows in order).
    early_exit: leave the source run after the last layer that is needed (exact, and cheaper).
    """

    source: SourceLatents
    null: Mapping[str, Tensor]
    steps: InjectionSteps
    mask: Tensor | None = None
    row_images: RowImages | None = None
    early_exit: bool = True
    sites: Sites | None = None

    _recorded: dict[str, Tensor] = field(default_factory=dict, init=False)
    _recorded_at: float | None = field(default=None, init=False)
    _wanted: frozenset[str] = field(default=frozenset(), init=False)
    _recording: bool = field(default=False, init=False)
    _grid: tuple[int, int] = field(default=(0, 0), init=False)
    _rows: Sequence[int] = field(default=(), init=False)

    def install(self, unet: nn.Module) -> None:
        """Hook `unet`, after removing whatever an earlier injection left on it."""
        remove(unet)
        sites = self.sites or find_sites(unet)
        handles = [unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)]
        setattr(unet, HANDLES, handles)
        handles.append(sites.feature[1].register_forward_hook(self._hook(FEATURE, sites.feature[0])))
        for name, attention in sites.attention:
            for part in ("to_q", "to_k"):
                layer = f"{name}.{part}"
                handles.append(getattr(attention, part).register_forward_hook(self._hook(layer, layer)))
        self._attention = frozenset(f"{name}.{part}" for name, _ in sites.attention for part in ("to_q", "to_k"))

    def _before_unet(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """Record the source run for the timestep that `unet` is asked for, unless that has just been done."""
        if self._recording:
            return
        x, timesteps = args[0], args[1] if len(args) > 1 else kwargs["timesteps"]
        self._grid = tuple(x.shape[-2:])
        self._rows = self._images_of_rows(len(x))
        t = float(timesteps.flatten()[0])
        features, attention = self.steps.at(t)
        wanted = (frozenset({FEATURE}) if features else frozenset()) | (self._attention if attention else frozenset())
        if wanted and (self._recorded_at != t or self._wanted != wanted):
            self._wanted, self._recorded, self._recorded_at = wanted, {}, t
            self._record(unet, x, timesteps)
        self._wanted = wanted
        if not wanted:
            self._recorded, self._recorded_at = {}, None

    def _images_of_rows(self, rows: int) -> Sequence[int]:
        count = self.source.latents.shape[1]
        images = list(self.row_images(rows)) if self.row_images and count > 1 else [i % count for i in range(rows)]
        if len(images) != rows or (self.row_images is None and rows % count):
            raise DitailError(f"injection: {rows} rows can't be matched with {count} source latents")
        return images

    def _record(self, unet: nn.Module, x: Tensor, timesteps: Tensor) -> None:
        z = self.source.at(self._recorded_at).to(x)
        if z.shape[-2:] != x.shape[-2:]:
            raise DitailError(f"injection: the source latents are {tuple(z.shape[-2:])}, the sampler's "
                              f"{tuple(x.shape[-2:])} (height, width)")
        if x.shape[1] > z.shape[1]:
            # An inpainting U-Net's further channels (mask, masked image) are the denoised rows' own.
            first = [self._rows.index(i) if i in self._rows else 0 for i in range(len(z))]
            z = torch.cat([z, x[first, z.shape[1] :]], 1)
        null = {k: v.to(x.device).expand(len(z), *v.shape[1:]) for k, v in self.null.items()}
        self._recording = True
        try:
            unet(z, timesteps.flatten()[:1].expand(len(z)), **null)
        except _LastLayerReached:
            pass
        finally:
            self._recording = False
        if missing := self._wanted - self._recorded.keys():
            raise DitailError(f"injection: {min(missing)} was not called in the source run")

    def _hook(self, key: str, name: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            if key not in self._wanted:
                return None
            if not self._recording:
                return self._inject(output, self._recorded[key], name)
            self._recorded[key] = output
            if self.early_exit and self._recorded.keys() >= self._wanted:
                raise _LastLayerReached
            return None

        return hook

    def _inject(self, output: Tensor, recorded: Tensor, name: str) -> Tensor:
        """`m * recorded + (1 - m) * output`, the recorded rows spread over the rows of `output`."""
        # Tiling extensions fold tiles into rows; a source row is then several rows, in the same order.
        tiles, rest = divmod(len(recorded), self.source.latents.shape[1])
        if rest or len(output) != tiles * len(self._rows) or output.shape[1:] != recorded.shape[1:]:
            raise DitailError(f"injection: {name} gave {tuple(recorded.shape)} for the source and "
                              f"{tuple(output.shape)} for the image")
        if len(recorded) == 1:
            spread = recorded.expand_as(output)
        else:
            index = [image * tiles + tile for image in self._rows for tile in range(tiles)]
            spread = recorded[torch.tensor(index, device=recorded.device)]
        if self.mask is None:
            return spread
        mask = self._mask_for(output, name).to(output)
        return mask * spread + (1 - mask) * output

    def _mask_for(self, output: Tensor, name: str) -> Tensor:
        """The mask on a layer's grid: `[1, 1, h, w]` for features, `[1, tokens, 1]` for q and k."""
        if output.ndim == 4:
            return resize_mask(self.mask, output.shape[-2:])
        height, width = self._grid
        while height * width > output.shape[1]:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != output.shape[1]:
            raise DitailError(f"injection: {name} has {output.shape[1]} tokens, which no level of {self._grid} "
                              "latents has, so the mask can't be laid over it")
        return resize_mask(self.mask, (height, width)).flatten(2).transpose(1, 2)


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask `[1, 1, h, w]` at another size, each cell taking the value at its centre (as the authors' halves do)."""
    return F.interpolate(mask.float(), tuple(size), mode="nearest-exact")


def remove(unet: nn.Module) -> None:
    """Take every hook of Ditail off `unet`; without one, nothing happens."""
    for handle in unet.__dict__.pop(HANDLES, ()):
        handle.remove()


@contextmanager
def inject(unet: nn.Module, injection: Injection) -> Iterator[Injection]:
    """Run a block with `injection` installed on `unet`; the hooks go when it ends or raises."""
    try:
        injection.install(unet)
        yield injection
    finally:
        remove(unet)
