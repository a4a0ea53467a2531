"""Injection: hooks that put what the target U-Net computes on the source latents into the rows being denoised.

When the U-Net is called at a timestep, a pre-hook first runs it on the source latent of that timestep with the null
prompt, and hooks record q and k of the chosen self-attentions and the output of the chosen ResBlock's `out_layers`. In
the call itself, the same hooks replace those tensors in every row. No layer is re-implemented, so LoRA, hypernetworks
and every attention implementation that calls `to_q` and `to_k` keep working. `shortcuts.py` leaves out work that is not
needed; it can be switched off without changing a result.

`Injection` is the configuration and never changes, `InjectionHooks` are the hooks on one U-Net, `Step` is the state at
one timestep.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..cache.features import Features
from ..errors import DitailError
from ..method.blending import WeightedSource, active_at, as_sources, image_count
from ..method.contours import Contours
from ..method.latents import SourceLatents
from ..method.schedule import InjectionSteps
from .rows import SourceRows, input_of, source_input, source_rows_of
from .shortcuts import Savings, is_untouched, shortcuts, spread
from .sites import find_sites
from .step import Step, mask_on_layer, step_at

# The U-Net's attribute for the exit stack that removes an injection.
INSTALLED = "_ditail_installed"


class _LastLayerReached(Exception):
    """Ends the source run once every needed layer is recorded."""


@dataclass(frozen=True)
class Injection:
    """The configuration of an injection into a U-Net.

    source: the source latents, `b` rows (1 for one content image; one per image of a batch otherwise), or several
    sources to mix: the tensors computed on each are blended by their shares before they are injected.
    null: the U-Net's keyword arguments for the source rows, batch 1: `context` `[1, tokens, width]`, for SDXL also `y`.
    steps: which layers at which timesteps. mask: None or `[1, 1, h, w]` in 0..1 at the latents' size, 1 = inject.
    source_rows: gives the source row of each row of a call (default: the rows repeat the source rows in order, and all
    are injected).
    savings: which unnecessary work is left out (the result is the same).
    features: the cache for the source runs' tensors; None = they are not kept.
    around_source: a context for the source runs (a host may switch off other extensions in it).
    contours: None = they are not moved.
    """

    source: SourceLatents | Sequence[WeightedSource]
    null: Mapping[str, Tensor]
    steps: InjectionSteps
    mask: Tensor | None = None
    source_rows: SourceRows | None = None
    savings: Savings = Savings()
    features: Features | None = None
    around_source: Callable[[], AbstractContextManager] = nullcontext
    contours: Contours | None = None

    def install(self, unet: nn.Module) -> None:
        """Hook `unet`, after removing an earlier injection from it. If this raises, no hook remains."""
        remove(unet)
        with ExitStack() as installed:
            InjectionHooks(self, unet).install(installed)
            setattr(unet, INSTALLED, installed.pop_all())


def remove(unet: nn.Module) -> None:
    """Remove every hook of Ditail from `unet`, also if removing one of them raises. Does nothing if there are none."""
    unet.__dict__.pop(INSTALLED, ExitStack()).close()


def drop_hook(module: nn.Module, hook: Callable) -> None:
    """Remove a forward hook or pre-hook from a module. Does nothing if the module does not have it."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for hook_id in [i for i, other in hooks.items() if other == hook]:
            del hooks[hook_id]
            module._forward_pre_hooks_with_kwargs.pop(hook_id, None)
            module._forward_hooks_with_kwargs.pop(hook_id, None)


@contextmanager
def inject(unet: nn.Module, injection: Injection) -> Iterator[Injection]:
    """A context with `injection` installed on `unet`; the hooks are removed when it ends or raises."""
    try:
        injection.install(unet)
        yield injection
    finally:
        remove(unet)


class InjectionHooks:
    """The hooks of an injection on one U-Net, with the state of the current step and call."""

    def __init__(self, injection: Injection, unet: nn.Module):
        self.injection, self.unet = injection, unet
        self.savings = injection.savings
        self.sources = as_sources(injection.source)
        self.sites = find_sites(unet, injection.steps.windows)
        self.layers = {site.name: site.layer for site in self.sites.features} | {
            f"{site.name}.{part}": site.layer for site in self.sites.attention for part in ("to_q", "to_k")}
        # The step that the current call injects, and the last one that was recorded.
        self._step: Step | None = None
        self._last: Step | None = None
        self._recording = False
        self._hook_ids: frozenset[int] = frozenset()
        # Of the current call: height and width of its latents, each row's source row, and the same or None for a row
        # without injection.
        self._grid: tuple[int, int] = (0, 0)
        self._source_rows: list[int] = []
        self._injected_rows: Sequence[int | None] = ()

    def install(self, installed: ExitStack) -> None:
        """Hook the U-Net. installed: the stack that removes the hooks when it is closed."""
        # The removal is registered first, as installing a hook may raise after the hook is in place.
        installed.callback(drop_hook, self.unet, self._before_unet)
        handles = [self.unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)]
        for key in self.layers:
            module, hook = self.unet.get_submodule(key), self._hook(key)
            installed.callback(drop_hook, module, hook)
            handles.append(module.register_forward_hook(hook))
        if self.injection.contours is not None:
            move_contours = partial(_move_contours, self, self.injection.contours)
            installed.callback(drop_hook, self.unet, move_contours)
            handles.append(self.unet.register_forward_hook(move_contours, with_kwargs=True))
        self._hook_ids = frozenset(handle.id for handle in handles)
        blocks = [(site.name, self.unet.get_submodule(site.name.removesuffix(".out_layers")))
                  for site in self.sites.features]
        for shortcut in shortcuts(self, blocks, [(site.name, site.module) for site in self.sites.attention]):
            installed.push(shortcut)
            shortcut.__enter__()

    def _before_unet(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """Record the source run of the timestep that the U-Net is called at."""
        if self._recording:
            return
        x, timesteps = input_of(args, kwargs)
        self._grid = (x.shape[-2], x.shape[-1])
        rows = source_rows_of(len(x), image_count(self.sources), self.injection.source_rows, kwargs)
        self._source_rows = [row.number for row in rows]
        self._injected_rows = [row.number if row.is_injected else None for row in rows]
        t = float(timesteps.flatten()[0])
        # Without a row to inject into, no source run is needed.
        indices = active_at(self.sources, t) if any(row is not None for row in self._injected_rows) else ()
        layers = frozenset(key for key, layer in self.layers.items()
                           if indices and self.injection.steps.includes(layer, t))
        self._step = None
        if self._last is not None and self._last.timestep != t:
            self._last = None
        if not layers:
            return
        # cond and uncond may be two calls, and some samplers call twice at one timestep: one source run is enough.
        is_same = self._last is not None and self._last.layers == layers
        # `_last` is set only after the recording, so that the call after a failed source run records again.
        if not is_same:
            self._last = self._recorded_step(x, timesteps, step_at(t, self.sources, indices, layers))
        self._step = self._last

    def _recorded_step(self, x: Tensor, timesteps: Tensor, step: Step) -> Step:
        """`step` with the source run's tensors, computed or from the feature cache."""
        features = self.injection.features
        # An inpainting U-Net has additional channels, which differ from image to image.
        has_own_channels = x.shape[1] != self.sources[0].latents.latents.shape[2]
        if features is None or has_own_channels or not is_untouched(self.unet, self.savings.trusted, self):
            self._run_source(x, timesteps, step)
            return step
        name = (step.timestep, tuple(x.shape[-2:]), x.dtype, x.device.type, step.indices)
        cached = features.get(name)
        if cached and step.layers_to_keep <= cached.keys():
            step.recall(cached, x.device, self._grid)
            return step
        self._run_source(x, timesteps, step)
        if step.layers_to_keep <= step.to_keep.keys():
            features.put(name, step.to_keep)
        return step

    def _run_source(self, x: Tensor, timesteps: Tensor, step: Step) -> None:
        """Run the U-Net on the source latents while the hooks record its tensors in `step`."""
        z = torch.cat([source_input(source.latents, step.timestep, x, self._injected_rows) for source in step.active])
        null = {k: v.to(x.device).expand(len(z), *v.shape[1:]) for k, v in self.injection.null.items()}
        with self.injection.around_source(), self._recorded_into(step), suppress(_LastLayerReached):
            self.unet(z, timesteps.flatten()[:1].expand(len(z)), **null)
        if missing := step.layers - step.recorded.keys():
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
            if step is None or key not in step.layers:
                return None
            if not self._recording:
                return self._injected(step, output, self.recorded(key, module), key)
            step.record(key, args[0], output, self._grid, keep=self.injection.features is not None)
            if self.savings.early_exit and not step.cached and step.is_recorded:
                raise _LastLayerReached
            return None

        return hook

    def _injected(self, step: Step, output: Tensor, recorded: Tensor, key: str) -> Tensor:
        """`m * recorded + (1 - m) * output`, each row of `output` with its image's row of `recorded`."""
        source_rows = self.recorded_rows(recorded, len(output))
        if source_rows is None or output.shape[1:] != recorded.shape[1:]:
            raise DitailError(None, f"injection: {key} gave {tuple(recorded.shape)} for the source and "
                              f"{tuple(output.shape)} for the image; another extension may resize the image's "
                              "(Kohya HRFix, say): switch it off")
        source = spread(recorded, source_rows)
        for mask in (self.injection.mask, step.reach):
            if mask is not None:
                m = mask_on_layer(mask, output, self._grid, key).to(output)
                source = m * source + (1 - m) * output
        uninjected = self.uninjected(len(output))
        if any(uninjected):
            rows = torch.tensor(uninjected, device=output.device).view(-1, *[1] * (output.ndim - 1))
            source = torch.where(rows, output, source)
        return source

    # The protocol `shortcuts.CurrentInjection`.

    def replaces(self, *keys: str) -> bool:
        step = self._step
        return (step is not None and not self._recording and self.injection.mask is step.reach is None
                and step.layers.issuperset(keys))

    def recorded(self, key: str, module: nn.Module) -> Tensor:
        step = self._step
        if step is None:
            raise RuntimeError("no layer is injected at this timestep")
        if key not in step.recorded:
            # The feature cache has the input of q and k, which are projected when first needed.
            with self._recorded_into(step):
                module(step.cached[key.rpartition(".")[0]])
        return step.recorded[key]

    def has_common_input(self, attention: str) -> bool:
        return self._step is not None and self._step.has_common_input(attention)

    def owns(self, hook_id: int) -> bool:
        return hook_id in self._hook_ids

    def recorded_rows(self, recorded: Tensor, rows: int) -> Sequence[int] | None:
        # Tiling extensions fold tiles into rows; a source row then becomes several rows, in the same order.
        tiles, rest = divmod(len(recorded), image_count(self.sources))
        if rest or rows != tiles * len(self._injected_rows):
            return None
        return [(row or 0) * tiles + tile for row in self._injected_rows for tile in range(tiles)]

    @contextmanager
    def only_rows(self, injected: bool) -> Iterator[None]:
        before, step = self._injected_rows, self._step
        if injected:
            self._injected_rows = [row for row in before if row is not None]
        else:
            self._step = None
        try:
            yield
        finally:
            self._injected_rows, self._step = before, step

    def uninjected(self, rows: int) -> list[bool]:
        if self._step is None or self._recording or not self._injected_rows or rows % len(self._injected_rows):
            return []
        tiles = rows // len(self._injected_rows)
        return [row is None for row in self._injected_rows for _ in range(tiles)]


def _move_contours(hooks: InjectionHooks, contours: Contours, _unet: nn.Module, args: tuple, kwargs: dict,
                   output: Tensor) -> Tensor | None:
    """A forward hook of the U-Net: moves the contours in its output (see `method.contours`)."""
    x, timesteps = input_of(args, kwargs)
    t = float(timesteps.flatten()[0])
    indices = active_at(hooks.sources, t)
    if hooks._recording or t <= contours.above or not indices:
        return None
    step = step_at(t, hooks.sources, indices, frozenset())
    z0 = step.blended("z_0", torch.cat([source.latents.content for source in step.active]), hooks._grid)
    z0 = spread(z0.to(x.device), hooks._source_rows)
    change = contours.change(output.float(), z0, x[:, : z0.shape[1]], t)
    for mask in (hooks.injection.mask, step.reach):
        if mask is not None:
            change = change * mask_on_layer(mask, output, hooks._grid, "z_0").to(change)
    return (output.float() + change).to(output)
