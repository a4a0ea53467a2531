"""The rows of a U-Net's call: the source row of each, and the source latents as input of the U-Net."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DitailError
from ..method.latents import SourceLatents


class SourceRow(NamedTuple):
    """For a row of a call: the number of its row of the source latents, and whether it is injected into."""

    number: int
    is_injected: bool = True


# (number of rows, the call's keyword arguments) -> one for each row.
SourceRows = Callable[[int, Mapping], Sequence[SourceRow]]


def input_of(args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
    """(the latents, the timesteps) of a call of the U-Net."""
    return args[0], args[1] if len(args) > 1 else kwargs["timesteps"]


def source_rows_of(rows: int, image_count: int, source_rows: SourceRows | None, call: Mapping) -> Sequence[SourceRow]:
    """The source row of each of `rows` rows (see `Injection.source_rows`). Raises DitailError if they don't match."""
    matched = list(source_rows(rows, call)) if source_rows else [SourceRow(i % image_count) for i in range(rows)]
    if len(matched) != rows or (source_rows is None and rows % image_count):
        raise DitailError(None, f"injection: {rows} rows can't be matched with {image_count} source latents")
    return matched


def source_input(latents: SourceLatents, timestep: float, x: Tensor, source_rows: Sequence[int | None]) -> Tensor:
    """The source latents at a timestep as input of the U-Net, `[b, c, h, w]` with the channels of its other input `x`.

    source_rows: the source row of each row of `x`, None for one without injection. Raises DitailError for latents of
    another size.
    """
    z = latents.at(timestep).to(x)
    if z.shape[-2:] != x.shape[-2:]:
        raise DitailError(None, f"injection: the source latents are {tuple(z.shape[-2:])}, the sampler's "
                          f"{tuple(x.shape[-2:])} (height, width)")
    if x.shape[1] > z.shape[1]:
        # An inpainting U-Net has additional channels (mask, masked image), which are those of the denoised rows.
        first = [source_rows.index(i) if i in source_rows else 0 for i in range(len(z))]
        z = torch.cat([z, x[first, z.shape[1] :]], 1)
    return z
