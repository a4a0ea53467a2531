"""What the output of a U-Net means: eps, or v."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import alphas_cumprod_at


@dataclass(frozen=True)
class Prediction:
    """What a U-Net returns for VP latents `z_t`: eps, or `v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0` (2202.00512).

    alphas_cumprod: the model's schedule `[1000]`.
    """

    alphas_cumprod: Tensor
    is_v: bool = False

    def eps(self, output: Tensor, z: Tensor, timestep: float) -> Tensor:
        """The eps `[b, c, h, w]` of the U-Net's `output` for `z`, float32."""
        if not self.is_v:
            return output.float()
        a, s = self._scales(timestep)
        return a * output.float() + s * z.float()

    def output_for(self, x0: Tensor, z: Tensor, timestep: float) -> Tensor:
        """What the U-Net would return for `z` `[b, c, h, w]` if it expected `x0` `[b, c, h, w]`, float32."""
        a, s = self._scales(timestep)
        return ((a * z.float() - x0) if self.is_v else (z.float() - a * x0)) / s

    def _scales(self, timestep: float) -> tuple[float, float]:
        abar = float(alphas_cumprod_at(self.alphas_cumprod, torch.tensor([timestep], dtype=torch.float64)))
        return abar**0.5, (1 - abar) ** 0.5
