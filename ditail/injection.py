"""Injection: hooks that put what the target U-Net computes on the source latents into the rows being denoised.

Everything happens at the U-Net's border. When the U-Net is asked for a timestep, it first runs on the source latent
of that timestep with the null prompt, and hooks record q and k of the chosen self-attentions and the hidden state of
the chosen ResBlock; in the run that was asked for, the same hooks replace those tensors in every row. Nothing is
re-implemented, so LoRA, hypernetworks and every attention implementation that calls `to_q` and `to_k` keep working.
What needs no computing is left out by `savings.py`, which can be switched off without changing a result.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import DitailError
from .features import Features
from .latents import SourceLatents
from .layers import Layer
from .mixing import Mixed, active_at, as_mixed, blend, images_of, shares
from .savings import Savings, Shortcut, is_from, is_untouched, shortcuts, spread
from .schedule import InjectionSteps
from .sites import find_sites

# Where a U-Net keeps what takes an injection off again.
INSTALLED = "_ditail_installed"
RowImages = Callable[[int], Sequence[int]]


class _LastLayerReached(Exception):
    """Ends the source run once every layer that is needed has been recorded."""


@dataclass
class Injection:
    """What is injected into one U-Net.

    source: the source latents, `b` rows (1 for one content image; one per image of a batch otherwise), or several of
    them to mix: what is computed on each is blended by their shares before it is injected.
    null: the U-Net's keyword arguments for the source rows, batch 1: `context` `[1, tokens, width]`, for SDXL also `y`.
    steps: which layers at which timesteps. mask: None or `[1, 1, h, w]` in 0..1 at the latents' size, 1 = inject.
    row_images: for a run of `n` rows, the source row of each (default: the rows repeat the source rows in order).
    savings: which needless work is left out (exact, and cheaper).
    features: where the source runs are kept for a later generation; None = nowhere.
    """

    source: SourceLatents | Sequence[Mixed]
    null: Mapping[str, Tensor]
    steps: InjectionSteps
    mask: Tensor | None = None
    row_images: RowImages | None = None
    savings: Savings = Savings()
    features: Features | None = None

    _mixed: tuple[Mixed, ...] = field(default=(), init=False)
    # The sources that take part in the step at hand, by place; their shares, and where any has one (None: everywhere).
    _active: tuple[int, ...] = field(default=(), init=False)
    _shares: list[Tensor | float] = field(default_factory=list, init=False)
    _reach: Tensor | None = field(default=None, init=False)
    _layers: dict[str, Layer] = field(default_factory=dict, init=False)
    _recorded: dict[str, Tensor] = field(default_factory=dict, init=False)
    _recorded_at: float | None = field(default=None, init=False)
    _wanted: frozenset[str] = field(default=frozenset(), init=False)
    _recording: bool = field(default=False, init=False)
    _grid: tuple[int, int] = field(default=(0, 0), init=False)
    _rows: Sequence[int] = field(default=(), init=False)
    # What the last to_q was handed; by attention, what its to_q and to_k were both handed (None where it isn't to be
    # kept), and the features; and those of an earlier generation.
    _handed: Tensor | None = field(default=None, init=False)
    _to_keep: dict[str, Tensor | None] = field(default_factory=dict, init=False)
    _kept: Mapping[str, Tensor] | None = field(default=None, init=False)
    _hook_ids: frozenset[int] = field(default=frozenset(), init=False)

    def install(self, unet: nn.Module) -> None:
        """Hook `unet`, after removing whatever an earlier injection left on it; nothing is left if this raises."""
        remove(unet)
        self._forget()
        self._mixed = as_mixed(self.source)
        sites = find_sites(unet, self.steps.windows)
        self._layers = {site.name: site.layer for site in sites.features}
        self._layers |= {f"{site.name}.{part}": site.layer for site in sites.attention for part in ("to_q", "to_k")}
        blocks = [(site.name, unet.get_submodule(site.name.removesuffix(".out_layers"))) for site in sites.features]
        with ExitStack() as installed:
            # Before anything is hooked: a call that hooks and then raises gives no handle to undo it by.
            installed.callback(_sweep, unet)
            handles = [unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)]
            installed.callback(handles[0].remove)
            for key in self._layers:
                handles.append(unet.get_submodule(key).register_forward_hook(self._hook(key)))
                installed.callback(handles[-1].remove)
            self._hook_ids = frozenset(handle.id for handle in handles)
            for shortcut in shortcuts(self, blocks, [(site.name, site.module) for site in sites.attention]):
                installed.enter_context(shortcut)
            setattr(unet, INSTALLED, installed.pop_all())

    def _before_unet(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """Record the source run for the timestep that `unet` is asked for, unless that has just been done."""
        if self._recording:
            return
        x, timesteps = args[0], args[1] if len(args) > 1 else kwargs["timesteps"]
        self._grid = tuple(x.shape[-2:])
        self._rows = self._images_of_rows(len(x))
        t = float(timesteps.flatten()[0])
        self._active = active_at(self._mixed, t)
        wanted = frozenset(key for key, layer in self._layers.items() if self._active and self.steps.wants(layer, t))
        # cond and uncond in two calls, or a sampler that asks twice at one timestep, find the first call's record.
        if wanted and (self._recorded_at != t or self._wanted != wanted):
            self._forget()
            self._wanted = wanted
            self._shares, self._reach = shares([self._mixed[i] for i in self._active])
            step = self._step_to_keep(unet, x, t)
            if not self._recall(step, x):
                self.run_source(unet, x, timesteps)
                self._keep(step)
            # Not before: after a source run that raised, the next call starts another.
            self._recorded_at = t
        self._wanted = wanted
        if not wanted:
            self._forget()

    def _forget(self) -> None:
        self._recorded, self._recorded_at = {}, None
        self._handed, self._to_keep, self._kept = None, {}, None

    def _step_to_keep(self, unet: nn.Module, x: Tensor, t: float) -> tuple | None:
        """What names this step among the kept features; None where they are not to be kept."""
        # An inpainting U-Net's further channels are the denoised rows' own.
        channels = self._mixed[0].latents.latents.shape[2]
        if self.features is None or x.shape[1] != channels or not is_untouched(unet, self):
            return None
        return t, tuple(x.shape[-2:]), x.dtype, x.device.type, self._active

    def _recall(self, step: tuple | None, x: Tensor) -> bool:
        kept = step and self.features.get(step)
        if not kept or not self._names_to_keep() <= kept.keys():
            return False
        self._kept = {name: kept[name].to(x.device) for name in self._names_to_keep()}
        self._recorded = {key: self._blend(self._kept[key], key) for key in self._wanted & self._kept.keys()}
        return True

    def _keep(self, step: tuple | None) -> None:
        if step and self._names_to_keep() <= self._to_keep.keys():
            self.features.put(step, self._to_keep)

    def _names_to_keep(self) -> set[str]:
        """The attentions, by one tensor each for q and k, and the features."""
        return {_name_to_keep(key) for key in self._wanted}

    def _images_of_rows(self, rows: int) -> Sequence[int]:
        count = images_of(self._mixed)
        images = list(self.row_images(rows)) if self.row_images and count > 1 else [i % count for i in range(rows)]
        if len(images) != rows or (self.row_images is None and rows % count):
            raise DitailError(f"injection: {rows} rows can't be matched with {count} source latents")
        return images

    def run_source(self, unet: nn.Module, x: Tensor, timesteps: Tensor) -> None:
        """Run `unet` on the source latents at the step at hand, for the hooks to record what it computes."""
        t = float(timesteps.flatten()[0])
        z = torch.cat([self._source_rows(self._mixed[i].latents, x, t) for i in self._active])
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

    def _source_rows(self, latents: SourceLatents, x: Tensor, t: float) -> Tensor:
        z = latents.at(t).to(x)
        if z.shape[-2:] != x.shape[-2:]:
            raise DitailError(f"injection: the source latents are {tuple(z.shape[-2:])}, the sampler's "
                              f"{tuple(x.shape[-2:])} (height, width)")
        if x.shape[1] > z.shape[1]:
            # An inpainting U-Net's further channels (mask, masked image) are the denoised rows' own.
            first = [self._rows.index(i) if i in self._rows else 0 for i in range(len(z))]
            z = torch.cat([z, x[first, z.shape[1] :]], 1)
        return z

    def _hook(self, key: str):
        name, part = _name_to_keep(key), key.rpartition(".")[2]

        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            if key not in self._wanted:
                return None
            if not self._recording:
                return self._inject(output, self.recorded(key, module), key)
            self._recorded[key] = self._blend(output, key)
            if part == "to_q":
                self._handed = args[0]
            elif part == "out_layers":
                self._to_keep[name] = output
            elif self._handed is args[0]:
                # Autocast hands the projection this very rounding of its input, at half the size.
                self._to_keep[name] = args[0].to(output.dtype) if self.features else None
            if self.savings.early_exit and self._kept is None and self._recorded.keys() >= self._wanted:
                raise _LastLayerReached
            return None

        return hook

    def replaces(self, *keys: str) -> bool:
        """See `savings.Source`."""
        return not self._recording and self.mask is self._reach is None and self._wanted.issuperset(keys)

    def recorded(self, key: str, module: nn.Module) -> Tensor:
        """The source rows' output of a layer, blended; of kept features, q and k are projected when first asked for."""
        if key not in self._recorded:
            self._recording = True
            try:
                module(self._kept[_name_to_keep(key)])
            finally:
                self._recording = False
        return self._recorded[key]

    def fed_alike(self, name: str) -> bool:
        """See `savings.Source`."""
        return self._kept is not None or name in self._to_keep

    def owns(self, hook_id: int) -> bool:
        """See `savings.Source`."""
        return hook_id in self._hook_ids

    def images(self, recorded: Tensor, rows: int) -> Sequence[int] | None:
        """The row of `recorded` for each of `rows` rows; None where they don't match."""
        # Tiling extensions fold tiles into rows; a source row is then several rows, in the same order.
        tiles, rest = divmod(len(recorded), images_of(self._mixed))
        if rest or rows != tiles * len(self._rows):
            return None
        return [image * tiles + tile for image in self._rows for tile in range(tiles)]

    def _inject(self, output: Tensor, recorded: Tensor, name: str) -> Tensor:
        """`m * recorded + (1 - m) * output`, the recorded rows spread over the rows of `output`."""
        images = self.images(recorded, len(output))
        if images is None or output.shape[1:] != recorded.shape[1:]:
            raise DitailError(f"injection: {name} gave {tuple(recorded.shape)} for the source and "
                              f"{tuple(output.shape)} for the image")
        source = spread(recorded, images)
        for mask in (self.mask, self._reach):
            if mask is not None:
                m = self._on_grid(mask, output, name).to(output)
                source = m * source + (1 - m) * output
        return source

    def _blend(self, output: Tensor, name: str) -> Tensor:
        """What the active sources' rows gave, as one row an image."""
        mixed = [self._mixed[i] for i in self._active]
        images = images_of(self._mixed)
        if len(mixed) == 1 and mixed[0].rows == images:
            return output
        tiles, rest = divmod(len(output), sum(m.rows for m in mixed))
        if rest:
            raise DitailError(f"injection: {name} gave {len(output)} rows for {len(mixed)} sources")
        parts = [self._on_grid(share, output, name) if isinstance(share, Tensor) else share for share in self._shares]
        return blend(output.split([m.rows * tiles for m in mixed]), parts, images * tiles)

    def _on_grid(self, mask: Tensor, output: Tensor, name: str) -> Tensor:
        """A mask on a layer's grid: `[1, 1, h, w]` for features, `[1, tokens, 1]` for q and k."""
        if output.ndim == 4:
            return resize_mask(mask, output.shape[-2:])
        height, width = self._grid
        while height * width > output.shape[1]:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != output.shape[1]:
            raise DitailError(f"injection: {name} has {output.shape[1]} tokens, which no level of {self._grid} "
                              "latents has, so the mask can't be laid over it")
        return resize_mask(mask, (height, width)).flatten(2).transpose(1, 2)


def _name_to_keep(key: str) -> str:
    """An attention's q and k come from one tensor, which is kept under its name; a feature is kept itself."""
    return key.removesuffix(".to_q").removesuffix(".to_k")


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask `[1, 1, h, w]` at another size, each cell taking the value at its centre (as the authors' halves do)."""
    return F.interpolate(mask.float(), tuple(size), mode="nearest-exact")


def remove(unet: nn.Module) -> None:
    """Take every hook of Ditail off `unet`, also if taking off one of them raises; without any, nothing happens."""
    unet.__dict__.pop(INSTALLED, ExitStack()).close()


def _sweep(unet: nn.Module) -> None:
    """Take off what an installation that raised has left on `unet`."""
    for module in unet.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if is_from(hook, (__name__,))]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        if isinstance(module.__dict__.get("forward"), Shortcut):
            del module.forward


@contextmanager
def inject(unet: nn.Module, injection: Injection) -> Iterator[Injection]:
    """Run a block with `injection` installed on `unet`; the hooks go when it ends or raises."""
    try:
        injection.install(unet)
        yield injection
    finally:
        remove(unet)
