"""Contours: moves the shapes in the denoised image toward the content's, at the U-Net's output.

In the first steps the high band of the `x_0` that the U-Net expects is moved toward that of the content's `z_0`; the
low band, the tones of large areas, stays the target's. FBSDiff (2408.00998) substitutes bands of latents in a similar
way. The change is linear in the output and the same for every row, so CFG passes it on unscaled. It calls no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .prediction import Prediction
from .schedule import end_of_first_steps

# The share of the steps, from the first, in which contours are moved.
SHARE = 0.5
# The side of the squares whose means are the low band, as a share of the latents' shorter side.
WINDOW = 5 / 8


@dataclass(frozen=True)
class Contours:
    """How contours are moved. strength: in 0..1. At timesteps up to `above` they are not. prediction: the target's."""

    strength: float
    above: float
    prediction: Prediction

    @classmethod
    def on_first_steps(cls, strength: float, timesteps: Sequence[float], prediction: Prediction) -> "Contours":
        """On the first half of the sampler's `timesteps`, which may be in any order."""
        return cls(strength, cls.end(timesteps), prediction)

    @staticmethod
    def end(timesteps: Sequence[float]) -> float:
        """At timesteps up to this one contours are not moved."""
        return end_of_first_steps(timesteps, SHARE)

    def change(self, output: Tensor, z0: Tensor, z: Tensor, timestep: float) -> Tensor:
        """What to add to the U-Net's `output` for `z`, whose content is `z0`; all `[b, c, h, w]`."""
        return self.strength * high_band(self.prediction.output_for(z0, z, timestep) - output)


def high_band(x: Tensor) -> Tensor:
    """`x` `[b, c, h, w]` minus its mean in a square around each place."""
    side = round(WINDOW * min(x.shape[-2:])) // 2 * 2 + 1
    return x - F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)
