"""Mixing several sources: the share of each, by place and timestep."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from ..errors import DitailError
from .latents import SourceLatents
from .schedule import Window


@dataclass(frozen=True)
class WeightedSource:
    """One source of a mix.

    latents: its source latents, 1 row for all images or one per image of a batch. weight: its weight among the sources.
    mask: None (everywhere) or `[1, 1, h, w]` in 0..1 at the latents' size. window: at which timesteps it takes part.
    """

    latents: SourceLatents
    weight: float = 1.0
    mask: Tensor | None = None
    window: Window = Window()

    @property
    def rows(self) -> int:
        return self.latents.latents.shape[1]

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the latents."""
        return tuple(self.latents.latents.shape[-2:])


def as_sources(source: SourceLatents | Sequence[WeightedSource]) -> tuple[WeightedSource, ...]:
    """The sources of a mix, as a tuple; a single one becomes a mix of one.

    Raises DitailError if no source has a weight above 0, sizes or batch sizes differ, a weight is negative or not
    finite, or a mask has another size than the latents.
    """
    sources = (WeightedSource(source),) if isinstance(source, SourceLatents) else tuple(source)
    if not any(s.weight > 0 for s in sources):
        raise DitailError("sources", "at least one needs a weight above 0")
    first, count = sources[0], image_count(sources)
    for i, s in enumerate(sources):
        if not 0 <= s.weight < float("inf"):
            raise DitailError("sources", f"the weight of source {i} is {s.weight}")
        if s.size != first.size or s.rows not in (1, count):
            raise DitailError("sources", f"source {i} has {s.rows} latents of {s.size} (height, width), the first "
                              f"{first.rows} of {first.size}")
        if s.mask is not None and s.mask.shape != (1, 1, *s.size):
            raise DitailError("sources", f"the mask of source {i} is {tuple(s.mask.shape)}, not {(1, 1, *s.size)}")
    return sources


@dataclass(frozen=True)
class Share:
    """The share of a source that is mixed over a first one.

    weight: relative to the first one's 1. mask: None or `[1, 1, h, w]` in 0..1. steps: its range, in fractions of them.
    """

    weight: float = 1.0
    mask: Tensor | None = None
    steps: tuple[float, float] = (0.0, 1.0)


def mix_over(first: SourceLatents, further: Sequence[tuple[SourceLatents, Share]],
             timesteps: Sequence[float]) -> list[WeightedSource]:
    """A first source with further ones mixed over it, as the `source` of an `Injection`.

    A further source with a mask or a range of steps replaces the first one there; one with neither is averaged with
    the first one everywhere, by weight. timesteps: the sampler's, in any order.
    """
    sources = [WeightedSource(latents, share.weight, share.mask, Window.of_steps(timesteps, *share.steps))
               for latents, share in further]
    edges = sorted({0.0, 1.0, *(edge for _, share in further for edge in share.steps)})
    for begin, end in pairwise(edges):
        active = [s for _, s in further if s.weight > 0 and s.steps[0] <= begin and end <= s.steps[1]]
        if any(s.mask is None and s.steps != (0, 1) for s in active):
            continue
        masks = [1 - s.mask.float() for s in active if s.mask is not None]
        mask = prod(masks[1:], start=masks[0]) if masks else None
        sources.insert(0, WeightedSource(first, 1.0, mask, Window.of_steps(timesteps, begin, end)))
    return sources


def image_count(sources: Sequence[WeightedSource]) -> int:
    """The number of images that the sources are for."""
    return max(source.rows for source in sources)


def active_at(sources: Sequence[WeightedSource], timestep: float) -> tuple[int, ...]:
    """The indices of the sources that take part at a timestep."""
    return tuple(i for i, source in enumerate(sources) if source.weight > 0 and timestep in source.window)


def shares_of(sources: Sequence[WeightedSource]) -> tuple[list[Tensor | float], Tensor | None]:
    """(each source's share `w m / sum(w m)`, reach): reach is 1 where the sum is above 0, else 0; None = 1 everywhere.

    Both are `[1, 1, h, w]` if any source has a mask. Where the sum is 0, every share is 0.
    """
    weights = [s.weight if s.mask is None else s.weight * s.mask.float() for s in sources]
    total = sum(weights)
    if not isinstance(total, Tensor):
        return [w / total for w in weights], None
    reach = (total > 0).float()
    total = torch.where(total > 0, total, 1)
    return [w / total for w in weights], None if reach.all() else reach


def blend(outputs: Sequence[Tensor], shares: Sequence[Tensor | float], rows: int) -> Tensor:
    """`sum(share * output)` `[rows, ...]`. shares must broadcast to the outputs; outputs of fewer rows are repeated."""
    def weighted(output: Tensor, share: Tensor | float) -> Tensor:
        product = output * (share.to(output) if isinstance(share, Tensor) else share)
        return product.repeat(rows // len(output), *[1] * (output.ndim - 1))

    return reduce(operator.add, (weighted(*pair) for pair in zip(outputs, shares, strict=True)))


def start_latent(source: SourceLatents | Sequence[WeightedSource], timestep: float) -> Tensor:
    """The VP latent `[b, c, h, w]` that sampling starts from at `timestep`, blended from the sources', float32.

    The sources that take part at `timestep` (all, if none does) are blended by their shares; where every mask is 0, by
    their weights alone, as the mask of an injection does not change the start either.

    A latent of large `t` is nearly noise, and the mean of two independent noises has 0.7 of their standard deviation,
    less than the model was trained on at that `t`. So each channel's deviation from its mean is multiplied by
    `sum(p_i s_i) / sqrt(sum(p_i p_j cov_ij))` with the shares `p` of each place, which gives it the mean of the
    sources' standard deviations. `cov` is measured: the latents of one image inverted with two models are correlated
    and change little, equal ones and places of a single source do not change.
    """
    sources, shares = _start_shares(source, timestep)
    count = image_count(sources)
    z = torch.stack([s.latents.at(timestep).expand(count, -1, -1, -1) for s in sources])
    if len(sources) == 1:
        return z[0]
    p = torch.stack([torch.as_tensor(share).expand(1, 1, *z.shape[-2:]) for share in shares])
    mean = z.mean((-2, -1), keepdim=True)
    deviation = z - mean
    covariance = torch.einsum("ibchw,jbchw->ijbc", deviation, deviation)[..., None, None] / z[0, 0, 0].numel()
    expected = (p * covariance.diagonal().movedim(-1, 0).sqrt()).sum(0)
    variance = (p[:, None] * p[None] * covariance).sum((0, 1))
    # The mean of n independent sources has at least 1/n of their variance; only sources that cancel out have less.
    variance = torch.maximum(variance, expected**2 / (2 * len(sources)))
    return (p * mean).sum(0) + (p * deviation).sum(0) * torch.where(variance > 0, expected / variance.sqrt(), 1)


def start_content(source: SourceLatents | Sequence[WeightedSource], timestep: float) -> Tensor:
    """The content's `z_0` `[b, c, h, w]` at the start: the sources' blended by the same shares as in `start_latent`."""
    sources, shares = _start_shares(source, timestep)
    return blend([s.latents.content for s in sources], shares, image_count(sources))


def _start_shares(source: SourceLatents | Sequence[WeightedSource],
                  timestep: float) -> tuple[list[WeightedSource], list[Tensor | float]]:
    """(the sources that the start is blended from, each one's share)."""
    sources = as_sources(source)
    used = [sources[i] for i in active_at(sources, timestep)] or [s for s in sources if s.weight > 0]
    shares, reach = shares_of(used)
    if reach is not None:
        weights = [s.weight / sum(s.weight for s in used) for s in used]
        shares = [share + (1 - reach) * weight for share, weight in zip(shares, weights, strict=True)]
    return used, shares
