"""Samplers: diffusers' schedulers with one interface, in VP latents."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from ..errors import DitailError
from .names import SAMPLERS

ANCESTRAL = "EulerAncestralDiscreteScheduler"
Eps = Callable[[Tensor, float], Tensor]


class Sampler:
    """One sampling of `steps` steps. seeds: for ancestral noise, one per row.

    timesteps: the distinct timesteps at which the U-Net will be called, from the largest to the smallest.
    """

    def __init__(self, name: str, steps: int, alphas_cumprod: Tensor, seeds: Sequence[int] = (0,),
                 strength: float = 1.0):
        """strength: img2img's share of the steps. Raises DitailError for an unknown sampler or wrong steps."""
        if name not in SAMPLERS:
            raise DitailError("sampler", f"{name!r} is not one of {', '.join(SAMPLERS)}")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 999:
            raise DitailError("steps", f"must be a whole number from 1 to 999, got {steps!r}")
        class_name, options, skips_last = SAMPLERS[name]
        if class_name == "DPMSolverSDEScheduler":
            # The scheduler refuses a list unless there is a row for each seed; one seed serves any number of rows.
            options = {**options, "noise_sampler_seed": list(seeds) if len(seeds) > 1 else seeds[0]}
        # The schedulers take betas: `abar_t = abar_{t-1} (1 - beta_t)`.
        betas = 1 - alphas_cumprod.double() / torch.cat([alphas_cumprod.new_ones(1).double(), alphas_cumprod[:-1]])
        # Only this class is imported, as some of diffusers' schedulers import scipy.
        self.scheduler: Any = getattr(diffusers, class_name)(trained_betas=betas.float().numpy(), **options)
        self.scheduler.set_timesteps(steps)
        done = steps - min(int(steps * strength), steps)
        self._first = done * self.scheduler.order
        self.schedule = self.scheduler.timesteps[self._first :]
        if skips_last:
            self.schedule = self.schedule[:-1]
        if not len(self.schedule):
            raise DitailError("steps", f"{steps} steps leave nothing to sample with {name}")
        self.timesteps = sorted({float(t) for t in self.schedule}, reverse=True)
        self._seeds = tuple(seeds)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self._first)

    def noised(self, z0: Tensor, noise: Tensor) -> Tensor:
        """VP latents `q(z_t | z_0)` at the first timestep."""
        return self.scheduler.add_noise(z0, noise, self.schedule[:1].expand(len(z0))) / self._scale()

    def _scale(self) -> float:
        """The scheduler's latents at the first timestep, divided by VP latents."""
        scaled = self.scheduler.scale_model_input(torch.ones(1), self.schedule[0])
        self._rewind()
        return 1 / float(scaled)

    def _rewind(self) -> None:
        # Some schedulers set their step index in `scale_model_input`.
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler._step_index = None

    def run(self, eps: Eps, z: Tensor) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Sample from VP latents `z` at the first timestep. Yields (t, VP latents, next latents) for each step.

        The last tuple's last item is the sampled `z_0`. The next latents are the scheduler's, not VP latents.
        """
        x = z.float() * self._scale()
        takes_generator = type(self.scheduler).__name__ == ANCESTRAL
        options = {"generator": self._generators(z.shape[1:])} if takes_generator else {}
        for t in self.schedule:
            vp = self.scheduler.scale_model_input(x, t)
            x = self.scheduler.step(eps(vp, float(t)), t, x, **options).prev_sample
            yield float(t), vp, x

    def _generators(self, shape: Sequence[int]) -> list[torch.Generator]:
        """One for each row. It goes on after the row's `seeded_noise` of `shape`: the same again would add to that."""
        generators = [torch.Generator().manual_seed(seed) for seed in self._seeds]
        for generator in generators:
            torch.randn((1, *shape), generator=generator)
        return generators


def noise_mark(sampler: str) -> dict[str, int]:
    """What a cache key or an image's metadata has besides a sampler's name: a mark of Euler a's present noise.

    Without it latents and images that an earlier version sampled with other noise would still be used.
    """
    return {"ancestral_noise": 2} if SAMPLERS[sampler].class_name == ANCESTRAL else {}


def seeded_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """`[b, 4, h, w]`, each row from its own seed, so that an image does not depend on its neighbours."""
    return torch.cat([torch.randn((1, *shape), generator=torch.Generator().manual_seed(s)) for s in seeds])
