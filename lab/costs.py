"""The cost of presets and methods in FLOPs of the U-Net, relative to plain generation of the same images.

The presets are counted step by step on SD 1.5's topology at 512x512 without weights (`lab.counts`), batch 1: cold (with
the source pass), warm (with cached source latents) and hot (with cached features, too).
"""

from functools import cache, cached_property

import torch

from ditail.cache.features import FeatureCache
from ditail.content.presets import PRESETS
from ditail.content.settings import DitailSettings
from ditail.job.cost import cost_of
from ditail.method.latents import SourceLatents
from ditail.method.schedule import InjectionSteps, inversion_timesteps, scaled_linear_alphas_cumprod
from ditail.unet.injection import Injection, inject
from ditail.unet.rows import SourceRow

from . import counts
from .rows import Row

LATENT_HW = (64, 64)
STEPS = 20
T = 501


class StepCounts:
    """FLOPs of the kinds of steps of a job of one image. Each kind is counted once and kept."""

    def __init__(self, topology: counts.Topology = counts.SD15, latent_hw: tuple[int, int] = LATENT_HW):
        self.topology, self.latent_hw = topology, latent_hw
        self.unet = counts.build(topology)
        self._counted: dict[tuple, int] = {}

    @cached_property
    def row(self) -> int:
        """FLOPs of one evaluation of one row without injection."""
        return counts.flops(lambda: counts.Runs(self.topology, self.unet, self.latent_hw, 1).plain(1))

    def injected(self, *, attention: bool, guided: bool, cond_only: bool, hot: bool) -> int:
        """FLOPs of one step with injected features.

        attention: with injected attention, too. guided: with an uncond row. cond_only: inject only into the cond row.
        hot: with cached features.
        """
        key = attention, guided, cond_only, hot
        if key not in self._counted:
            self._counted[key] = self._count(*key)
        return self._counted[key]

    def _count(self, attention: bool, guided: bool, cond_only: bool, hot: bool) -> int:
        rows = [SourceRow(0, not cond_only), SourceRow(0)] if guided else [SourceRow(0)]
        runs = counts.Runs(self.topology, self.unet, self.latent_hw, 1)
        latents = SourceLatents([T], torch.zeros(1, 1, 4, *self.latent_hw), scaled_linear_alphas_cumprod())
        steps = InjectionSteps(features_above=0, attention_above=0 if attention else T + 1)
        features = FeatureCache(counts.EVERYTHING, "meta").under("costs") if hot else None
        injection = Injection(latents, runs.arguments(1), steps, None, lambda count, call: rows, features=features)

        def run() -> None:
            x = torch.zeros(len(rows), 4, *self.latent_hw, **runs.like)
            with torch.no_grad(), inject(self.unet, injection):
                self.unet(x, torch.full((len(rows),), T), **runs.arguments(len(rows)))

        if hot:
            run()
        return counts.flops(run)


def preset_cost(settings: DitailSettings, counted: StepCounts, steps: int = STEPS) -> dict[str, float]:
    """The cost of one image from a content image relative to plain generation: "cold", "warm" and "hot"."""
    warm, hot = (sum(_step(settings, i / steps, counted, hot=hot) for i in range(steps)) for hot in (False, True))
    plain = 2 * steps * counted.row
    calls = len(inversion_timesteps(range(steps), settings.inversion_steps)) + bool(settings.tone)
    return {"cold": (calls * counted.row + warm) / plain, "warm": warm / plain, "hot": hot / plain}


def _step(settings: DitailSettings, done: float, counted: StepCounts, *, hot: bool) -> int:
    guided = done < settings.guidance_until
    if done >= max(settings.conv_ratio, settings.attn_ratio):
        return counted.row * (2 if guided else 1)
    return counted.injected(attention=done < settings.attn_ratio, guided=guided, cond_only=settings.inject == "cond",
                            hot=hot)


@cache
def preset_costs() -> dict[str, dict[str, float]]:
    """`preset_cost` of every preset."""
    counted = StepCounts()
    return {name: preset_cost(DitailSettings.from_dict(values), counted) for name, values in PRESETS.items()}


def row_cost(row: Row) -> float | None:
    """The cold cost of an image of a row, with SD 1.5's ratios; None if the row needs no U-Net."""
    if row.way == "refiner":
        return 1.0
    if row.way == "plain":
        return 2.0 if row.ditail.source == "generate" else 1.0
    if row.way == "img2img":
        return int(row.steps * row.strength) / row.steps
    if row.way == "diffstyler":
        # The source checkpoint runs on one row in the inversion and in each step.
        return 2.0
    return cost_of(row.ditail, row.steps).cold if row.way in ("ditail", "anchored") else None
