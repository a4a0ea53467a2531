"""Injection: hooks that put what the target U-Net computes on the source latents into the rows being denoised.

Everything happens at the U-Net's border. When the U-Net is called at a timestep, it first runs on the source latent of
that timestep with the null prompt, and hooks record q and k of the chosen self-attentions and the hidden state of the
chosen ResBlock; in the run that was asked for, the same hooks replace those tensors in every row. Nothing is
re-implemented, so LoRA, hypernetworks and every attention implementation that calls `to_q` and `to_k` keep working.
`shortcuts.py` leaves out work that is not needed; it can be switched off without changing a result.

Three lifetimes, three objects: `Injection` is what is asked for and never changes, `InjectionHooks` is one U-Net with
its hooks, `Step` is one timestep.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cache.features import Features
from ..errors import DitailError
from ..method.blending import Mixed, active_at, as_mixed, images_of
from ..method.latents import SourceLatents
from ..method.schedule import InjectionSteps
from .shortcuts import Savings, is_untouched, shortcuts, spread
from .sites import find_sites
from .step import Step, mask_on_layer, mixed_at

# Where a U-Net keeps what takes an injection off again.
INSTALLED = "_ditail_installed"
# The source row of each row of a call with these keyword arguments; None for a row that nothing is injected into.
RowImages = Callable[[int, Mapping], Sequence[int | None]]


class _LastLayerReached(Exception):
    """Ends the source run once every layer that is needed has been recorded."""


@dataclass(frozen=True)
class Injection:
    """What is injected into a U-Net.

    source: the source latents, `b` rows (1 for one content image; one per image of a batch otherwise), or several of
    them to mix: what is computed on each is blended by their shares before it is injected.
    null: the U-Net's keyword arguments for the source rows, batch 1: `context` `[1, tokens, width]`, for SDXL also `y`.
    steps: which layers at which timesteps. mask: None or `[1, 1, h, w]` in 0..1 at the latents' size, 1 = inject.
    row_images: for a run of `n` rows and the U-Net's keyword arguments, the source row of each, None for one that is
    left alone (default: the rows repeat the source rows in order).
    savings: which needless work is left out (exact, and cheaper).
    features: where the source runs are kept for a later generation; None = nowhere.
    around_source: a context for the source runs (a host may switch off what is meant for the image alone).
    """

    source: SourceLatents | Sequence[Mixed]
    null: Mapping[str, Tensor]
    steps: InjectionSteps
    mask: Tensor | None = None
    row_images: RowImages | None = None
    savings: Savings = Savings()
    features: Features | None = None
    around_source: Callable[[], AbstractContextManager] = nullcontext

    def install(self, unet: nn.Module) -> None:
        """Hook `unet`, after removing whatever an earlier injection left on it; nothing is left if this raises."""
        remove(unet)
        with ExitStack() as installed:
            InjectionHooks(self, unet).install(installed)
            setattr(unet, INSTALLED, installed.pop_all())


def remove(unet: nn.Module) -> None:
    """Take every hook of Ditail off `unet`, also if taking off one of them raises; without any, nothing happens."""
    unet.__dict__.pop(INSTALLED, ExitStack()).close()


def drop_hook(module: nn.Module, hook: Callable) -> None:
    """Take a forward hook or pre-hook off a module; nothing happens if it is not there."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for hook_id in [i for i, other in hooks.items() if other == hook]:
            del hooks[hook_id]
            module._forward_pre_hooks_with_kwargs.pop(hook_id, None)


@contextmanager
def inject(unet: nn.Module, injection: Injection) -> Iterator[Injection]:
    """Run a block with `injection` installed on `unet`; the hooks go when it ends or raises."""
    try:
        injection.install(unet)
        yield injection
    finally:
        remove(unet)


class InjectionHooks:
    """An injection on one U-Net: its hooks, the step at hand, and the rows of the call at hand."""

    def __init__(self, injection: Injection, unet: nn.Module):
        self.injection, self.unet = injection, unet
        self.savings = injection.savings
        self.mixed = as_mixed(injection.source)
        self.sites = find_sites(unet, injection.steps.windows)
        self.layers = {site.name: site.layer for site in self.sites.features} | {
            f"{site.name}.{part}": site.layer for site in self.sites.attention for part in ("to_q", "to_k")}
        # The step that is injected in the call at hand, and the last one that was recorded.
        self._step: Step | None = None
        self._last: Step | None = None
        self._recording = False
        self._hook_ids: frozenset[int] = frozenset()
        # Of the call at hand: height and width of its latents, and the image of each row.
        self._grid: tuple[int, int] = (0, 0)
        self._rows: Sequence[int | None] = ()

    def install(self, installed: ExitStack) -> None:
        """Hook the U-Net; `installed` takes the hooks off again."""
        # What undoes a step is kept before the step is taken, which may also raise after it has done its work.
        installed.callback(drop_hook, self.unet, self._before_unet)
        handles = [self.unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)]
        for key in self.layers:
            module, hook = self.unet.get_submodule(key), self._hook(key)
            installed.callback(drop_hook, module, hook)
            handles.append(module.register_forward_hook(hook))
        self._hook_ids = frozenset(handle.id for handle in handles)
        blocks = [(site.name, self.unet.get_submodule(site.name.removesuffix(".out_layers")))
                  for site in self.sites.features]
        for shortcut in shortcuts(self, blocks, [(site.name, site.module) for site in self.sites.attention]):
            installed.push(shortcut)
            shortcut.__enter__()

    def _before_unet(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """Have the source run recorded for the timestep that the U-Net is called at."""
        if self._recording:
            return
        x, timesteps = args[0], args[1] if len(args) > 1 else kwargs["timesteps"]
        self._grid = tuple(x.shape[-2:])
        self._rows = images_of_rows(len(x), images_of(self.mixed), self.injection.row_images, kwargs)
        t = float(timesteps.flatten()[0])
        # Only rows that are left alone: no source run is needed.
        places = active_at(self.mixed, t) if any(row is not None for row in self._rows) else ()
        wanted = frozenset(key for key, layer in self.layers.items() if places and self.injection.steps.wants(layer, t))
        self._step = None
        if self._last is not None and self._last.timestep != t:
            self._last = None
        if not wanted:
            return
        # cond and uncond in two calls, or a sampler that asks twice at one timestep, find the first call's record.
        is_same = self._last is not None and self._last.wanted == wanted
        # Not before it is recorded: after a source run that raised, the next call starts another.
        if not is_same:
            self._last = self._recorded_step(x, timesteps, mixed_at(self.mixed, t, wanted, places))
        self._step = self._last

    def _recorded_step(self, x: Tensor, timesteps: Tensor, step: Step) -> Step:
        """`step` with what the source run records, or with what an earlier generation kept."""
        features = self.injection.features
        # An inpainting U-Net's further channels are the denoised rows' own.
        has_own_channels = x.shape[1] != self.mixed[0].latents.latents.shape[2]
        if features is None or has_own_channels or not is_untouched(self.unet, self.savings.trusted, self):
            self._run_source(x, timesteps, step)
            return step
        name = (step.timestep, tuple(x.shape[-2:]), x.dtype, x.device.type, step.places)
        cached = features.get(name)
        if cached and step.layers_to_keep <= cached.keys():
            step.recall(cached, x.device, self._grid)
            return step
        self._run_source(x, timesteps, step)
        if step.layers_to_keep <= step.to_keep.keys():
            features.put(name, step.to_keep)
        return step

    def _run_source(self, x: Tensor, timesteps: Tensor, step: Step) -> None:
        """Run the U-Net on the source latents, for the hooks to record what it computes."""
        z = torch.cat([source_rows(mixed.latents, step.timestep, x, self._rows) for mixed in step.active])
        null = {k: v.to(x.device).expand(len(z), *v.shape[1:]) for k, v in self.injection.null.items()}
        with self.injection.around_source(), self._recorded_into(step), suppress(_LastLayerReached):
            self.unet(z, timesteps.flatten()[:1].expand(len(z)), **null)
        if missing := step.wanted - step.recorded.keys():
            raise DitailError(None, f"injection: {min(missing)} was not called in the source run")

    @contextmanager
    def _recorded_into(self, step: Step) -> Iterator[None]:
        before, self._step, self._recording = self._step, step, True
        try:
            yield
        finally:
            self._step, self._recording = before, False

    def _hook(self, key: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            step = self._step
            if step is None or key not in step.wanted:
                return None
            if not self._recording:
                return self._injected(step, output, self.recorded(key, module), key)
            step.record(key, args[0], output, self._grid, keep=self.injection.features is not None)
            if self.savings.early_exit and not step.cached and step.is_recorded:
                raise _LastLayerReached
            return None

        return hook

    def _injected(self, step: Step, output: Tensor, recorded: Tensor, key: str) -> Tensor:
        """`m * recorded + (1 - m) * output`, the recorded rows spread over the rows of `output`."""
        images = self.images(recorded, len(output))
        if images is None or output.shape[1:] != recorded.shape[1:]:
            raise DitailError(None, f"injection: {key} gave {tuple(recorded.shape)} for the source and "
                              f"{tuple(output.shape)} for the image")
        source = spread(recorded, images)
        for mask in (self.injection.mask, step.reach):
            if mask is not None:
                m = mask_on_layer(mask, output, self._grid, key).to(output)
                source = m * source + (1 - m) * output
        alone = self.left_alone(len(output))
        if any(alone):
            rows = torch.tensor(alone, device=output.device).view(-1, *[1] * (output.ndim - 1))
            source = torch.where(rows, output, source)
        return source

    # What the shortcuts ask: see `shortcuts.Source`.

    def replaces(self, *keys: str) -> bool:
        step = self._step
        return (step is not None and not self._recording and self.injection.mask is step.reach is None
                and step.wanted.issuperset(keys))

    def recorded(self, key: str, module: nn.Module) -> Tensor:
        step = self._step
        if step is None:
            raise RuntimeError("no layer is injected at this timestep")
        if key not in step.recorded:
            # Of kept features, q and k are projected when they are first asked for.
            with self._recorded_into(step):
                module(step.cached[key.rpartition(".")[0]])
        return step.recorded[key]

    def is_fed_alike(self, attention: str) -> bool:
        return self._step is not None and self._step.is_fed_alike(attention)

    def owns(self, hook_id: int) -> bool:
        return hook_id in self._hook_ids

    def images(self, recorded: Tensor, rows: int) -> Sequence[int] | None:
        # Tiling extensions fold tiles into rows; a source row is then several rows, in the same order.
        tiles, rest = divmod(len(recorded), images_of(self.mixed))
        if rest or rows != tiles * len(self._rows):
            return None
        return [(image or 0) * tiles + tile for image in self._rows for tile in range(tiles)]

    @contextmanager
    def only_rows(self, injected: bool) -> Iterator[None]:
        before, step = self._rows, self._step
        if injected:
            self._rows = [image for image in before if image is not None]
        else:
            self._step = None
        try:
            yield
        finally:
            self._rows, self._step = before, step

    def left_alone(self, rows: int) -> list[bool]:
        if self._step is None or self._recording or not self._rows or rows % len(self._rows):
            return []
        tiles = rows // len(self._rows)
        return [image is None for image in self._rows for _ in range(tiles)]


def images_of_rows(rows: int, images: int, row_images: RowImages | None, call: Mapping) -> Sequence[int | None]:
    """The image of each of `rows` rows; see `Injection.row_images`. Raises DitailError where they don't match."""
    numbers = list(row_images(rows, call)) if row_images else [i % images for i in range(rows)]
    if len(numbers) != rows or (row_images is None and rows % images):
        raise DitailError(None, f"injection: {rows} rows can't be matched with {images} source latents")
    return numbers


def source_rows(latents: SourceLatents, timestep: float, x: Tensor, images: Sequence[int | None]) -> Tensor:
    """The source's rows at a timestep, as the U-Net takes them beside rows `x` of these `images`.

    Raises DitailError for latents of another size.
    """
    z = latents.at(timestep).to(x)
    if z.shape[-2:] != x.shape[-2:]:
        raise DitailError(None, f"injection: the source latents are {tuple(z.shape[-2:])}, the sampler's "
                          f"{tuple(x.shape[-2:])} (height, width)")
    if x.shape[1] > z.shape[1]:
        # An inpainting U-Net's further channels (mask, masked image) are the denoised rows' own.
        first = [images.index(i) if i in images else 0 for i in range(len(z))]
        z = torch.cat([z, x[first, z.shape[1] :]], 1)
    return z
