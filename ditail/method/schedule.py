"""Timesteps, `alphas_cumprod`, and which steps are injected. All timesteps are of SD's 1000."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DitailError, shown
from .layers import ATTENTION, FEATURE, Layer, Layers

TRAINING_STEPS = 1000
# Fewest and most steps of an inversion on a share of the sampler's timesteps: fewer lose style (docs/evaluation.md).
INVERSION_STEPS = (5, 25)


def scaled_linear_alphas_cumprod(start: float = 0.00085, end: float = 0.0120, count: int = TRAINING_STEPS) -> Tensor:
    """SD's schedule: `alphas_cumprod` `[count]`, float32."""
    betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def ddim_timesteps(steps: int) -> list[int]:
    """The authors' grid `1 + i * (1000 // steps)`, ascending (paper section 3; diffusers' "leading" spacing).

    Raises DitailError unless `steps` is a whole number from 1 to 999.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps < TRAINING_STEPS:
        raise DitailError("steps", f"must be a whole number from 1 to {TRAINING_STEPS - 1}, got {shown(steps)}")
    return [1 + i * (TRAINING_STEPS // steps) for i in range(steps)]


def inversion_timesteps(timesteps: Sequence[float], share: float) -> list[float]:
    """The timesteps of the sampler at which the source model is called: `share` of them, evenly spread, ascending.

    The last one, where sampling starts, is always among them. A share of 1 is every timestep (the paper's way); a
    smaller one is 5 to 25 of them. `SourceLatents.at` interpolates between them.
    """
    ascending = sorted(map(float, timesteps))
    if share >= 1:
        return ascending
    fewest, most = INVERSION_STEPS
    count = min(max(fewest, round(share * len(ascending))), most, len(ascending))
    return [ascending[-(-(i + 1) * len(ascending) // count) - 1] for i in range(count)]


def alphas_cumprod_at(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """`alphas_cumprod` at fractional timesteps, float64, by interpolating log sigma as k-diffusion does.

    `sigma = sqrt((1 - abar) / abar)`. Timesteps outside the schedule are clamped to it.
    """
    # On the CPU first: MPS has no float64.
    abar = alphas_cumprod.cpu().double()
    t = timesteps.cpu().double().clamp(0, len(abar) - 1)
    low = t.floor().long()
    high = t.ceil().long()
    log_sigma = torch.log(torch.sqrt((1 - abar) / abar))
    sigma = torch.exp(torch.lerp(log_sigma[low], log_sigma[high], t - low))
    return torch.where(low == high, abar[low], 1 / (sigma**2 + 1))


@dataclass(frozen=True)
class Window:
    """The timesteps above `above` and up to `up_to`."""

    above: float = float("-inf")
    up_to: float = float("inf")

    @classmethod
    def of_steps(cls, timesteps: Sequence[float], begin: float, end: float) -> "Window":
        """Steps `int(begin * N)` to `int(end * N)` (exclusive) of the sampler's `N` timesteps, in any order."""
        return cls(end_of_first_steps(timesteps, end), end_of_first_steps(timesteps, begin))

    def __contains__(self, timestep: float) -> bool:
        return self.above < timestep <= self.up_to

    def has_any_up_to(self, timestep: float) -> bool:
        """Whether it has any timesteps up to this one."""
        return self.above < min(timestep, self.up_to)


@dataclass(frozen=True)
class InjectionSteps:
    """The timesteps above which features and attention are injected (exclusive; `inf` = never, `-inf` = always).

    windows: a custom layer selection, each layer with its timesteps; empty = the architecture's default layers.
    """

    features_above: float
    attention_above: float
    windows: Mapping[Layer, Window] = field(default_factory=dict)

    @classmethod
    def from_ratios(cls, timesteps: Sequence[float], conv_ratio: float, attn_ratio: float,
                    layers: Layers | None = None) -> "InjectionSteps":
        """Injection at the first `int(ratio * N)` of the sampler's `N` timesteps, which may be in any order.

        layers: a custom layer selection (see `parse_layers`); None or empty = the architecture's default.
        """
        ratios = {FEATURE: conv_ratio, ATTENTION: attn_ratio}
        windows = {layer: Window.of_steps(timesteps, *(steps or (0, ratios[layer.kind])))
                   for layer, steps in (layers or {}).items()}
        return cls(end_of_first_steps(timesteps, conv_ratio), end_of_first_steps(timesteps, attn_ratio), windows)

    @property
    def has_attention(self) -> bool:
        """Whether any attention is injected at any timestep."""
        if self.windows:
            return any(layer.kind == ATTENTION for layer in self.windows)
        return self.attention_above < float("inf")

    @property
    def has_features(self) -> bool:
        """Whether any feature is injected at any timestep."""
        if self.windows:
            return any(layer.kind == FEATURE for layer in self.windows)
        return self.features_above < float("inf")

    def has_any_up_to(self, timestep: float) -> bool:
        """Whether anything is injected at this timestep or a lower one."""
        if self.windows:
            return any(window.has_any_up_to(timestep) for window in self.windows.values())
        return min(self.features_above, self.attention_above) < timestep

    def includes(self, layer: Layer, timestep: float) -> bool:
        """Whether a layer is injected at a timestep."""
        if self.windows:
            return layer in self.windows and timestep in self.windows[layer]
        return timestep > (self.features_above if layer.kind == FEATURE else self.attention_above)


def end_of_first_steps(timesteps: Sequence[float], ratio: float) -> float:
    """A timestep that exactly the first `int(ratio * N)` of a sampler's `N` timesteps, in any order, are above.

    `inf` if these are none, `-inf` if they are all.
    """
    descending = sorted(map(float, timesteps), reverse=True)
    count = int(ratio * len(descending))
    if count <= 0:
        return float("inf")
    if count >= len(descending):
        return float("-inf")
    # Samplers also call the U-Net between two timesteps (midpoints), and half precision rounds to half a timestep: the
    # first step that is not injected begins a little above its own timestep.
    return descending[count] + 0.25 * (descending[count - 1] - descending[count])
