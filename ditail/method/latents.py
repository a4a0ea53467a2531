"""Source latents `z_t`: one per timestep, interpolated between them, saved as safetensors files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import DitailError
from ..keys import cache_key
from .schedule import TRAINING_STEPS, alphas_cumprod_at

FORMAT = "ditail source latents 1"


class SourceLatents:
    """The VP latents of a source model, one per timestep.

    timesteps: `[N]`, ascending. latents: `[N, b, c, h, w]`, kept on the CPU in the dtype given.
    alphas_cumprod: the source model's schedule, `[1000]`. image: `[h, w, 3]` uint8, the image that the source model
    generated, or its reconstruction of the image that it inverted; None if not needed. z0: `[b, c, h, w]`, the latent
    that an inversion began with or a generation ended in.
    """

    def __init__(self, timesteps: Sequence[float], latents: Tensor, alphas_cumprod: Tensor, *,
                 image: Tensor | None = None, z0: Tensor | None = None):
        if latents.ndim != 5 or len(timesteps) != len(latents) or not len(latents):
            raise DitailError(None, f"source latents: {len(timesteps)} timesteps for latents {tuple(latents.shape)}")
        if image is not None and (image.ndim, image.shape[-1:], image.dtype) != (3, (3,), torch.uint8):
            raise DitailError(None, f"source latents: an image is [h, w, 3] uint8, not {tuple(image.shape)} "
                              f"{image.dtype}")
        order = sorted(range(len(timesteps)), key=lambda i: float(timesteps[i]))
        self.timesteps = torch.tensor([float(timesteps[i]) for i in order], dtype=torch.float64)
        self.latents = latents.detach().cpu()[order]
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        if z0 is not None and z0.shape != latents.shape[1:]:
            raise DitailError(None, f"source latents: z_0 {tuple(z0.shape)} for latents {tuple(latents.shape)}")
        self.image = None if image is None else image.detach().cpu()
        self.z0 = None if z0 is None else z0.detach().float().cpu()
        abar = alphas_cumprod_at(self.alphas_cumprod, self.timesteps)
        self._sigmas = torch.sqrt((1 - abar) / abar)

    def __len__(self) -> int:
        return len(self.timesteps)

    def with_image(self, image: Tensor) -> "SourceLatents":
        """The same latents with `image` (see the class)."""
        return SourceLatents(self.timesteps.tolist(), self.latents, self.alphas_cumprod, image=image, z0=self.z0)

    @property
    def content(self) -> Tensor:
        """`z_0` `[b, c, h, w]`, or, where that was not kept, the stored latent that is nearest to it; float32."""
        return self.at(0) if self.z0 is None else self.z0

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.latents, self.image, self.z0) if x is not None)

    def at(self, timestep: float) -> Tensor:
        """`z_t` `[b, c, h, w]` at any timestep, float32; outside the stored range, the nearest stored latent.

        Between two stored steps, and between `z_0` and the first, `z_t / sqrt(abar_t)` is linear in `sigma_t`. That is
        the DDIM equation with one eps (and so one x_0) in between: for inverted latents the result is on the DDIM
        inversion's own trajectory.
        """
        t = float(timestep)
        # A sampler's timesteps differ from the stored ones by rounding; a stored latent is returned exactly.
        high = int(torch.searchsorted(self.timesteps, torch.tensor(t, dtype=torch.float64)))
        for i in (high, high - 1):
            if 0 <= i < len(self) and abs(float(self.timesteps[i]) - t) < 1e-3:
                return self.latents[i].float()
        if high == len(self) or (high == 0 and self.z0 is None):
            return self.latents[min(high, len(self) - 1)].float()
        abar = alphas_cumprod_at(self.alphas_cumprod, torch.tensor([t], dtype=torch.float64))
        low_z, low_sigma = self._unscaled(high - 1)
        high_z, high_sigma = self._unscaled(high)
        weight = (float(torch.sqrt((1 - abar) / abar)) - low_sigma) / (high_sigma - low_sigma)
        return torch.lerp(low_z, high_z, min(max(weight, 0.0), 1.0)) * float(torch.sqrt(abar))

    def _unscaled(self, i: int) -> tuple[Tensor, float]:
        """(`z_t / sqrt(abar_t)`, `sigma_t`) of stored step `i`; -1 is `z_0`, which is at abar[0] (see `invert`)."""
        if i < 0 and self.z0 is not None:
            abar = float(self.alphas_cumprod[0])
            return self.z0 / abar**0.5, ((1 - abar) / abar) ** 0.5
        sigma = float(self._sigmas[i])
        return self.latents[i].float() * (1 + sigma**2) ** 0.5, sigma

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file atomically. Its header has `metadata`, the format and a checksum."""
        tensors = {"timesteps": self.timesteps, "latents": self.latents, "alphas_cumprod": self.alphas_cumprod}
        tensors |= {name: x for name, x in (("image", self.image), ("z0", self.z0)) if x is not None}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        part = Path(f"{path}.{uuid4().hex}.part")
        try:
            part.write_bytes(save(tensors, {**(metadata or {}), "format": FORMAT, "sha256": cache_key(tensors)}))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> tuple["SourceLatents", dict[str, str]]:
        """Read what `save` wrote: (latents, metadata). Raises DitailError for anything else and for damaged files."""
        try:
            data = Path(path).read_bytes()  # in one read: another process may replace or delete the file
            tensors = load(data)
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
            if metadata.pop("format", None) != FORMAT:
                raise DitailError(None, "another format")
            checksum = cache_key(tensors)
            timesteps, *others = parts = [tensors[name] for name in ("timesteps", "latents", "alphas_cumprod")]
            image, z0 = tensors.get("image"), tensors.get("z0")
            if metadata.pop("sha256", checksum) != checksum or not _are_sound(*parts) or not _is_finite(z0):
                raise DitailError(None, "damaged")
            return cls(timesteps.tolist(), *others, image=image, z0=z0), metadata
        except (SafetensorError, OSError, KeyError, RuntimeError, DitailError) as error:
            raise DitailError(str(path), f"can't be read as source latents ({error})") from error


def _is_finite(x: Tensor | None) -> bool:
    return x is None or (x.is_floating_point() and bool(x.double().isfinite().all()))


def _are_sound(timesteps: Tensor, latents: Tensor, alphas_cumprod: Tensor) -> bool:
    """Whether tensors from a file have the shapes of source latents, and numbers that these can have."""
    return (
        (timesteps.ndim, latents.ndim, alphas_cumprod.shape) == (1, 5, (TRAINING_STEPS,))
        and all(map(_is_finite, (timesteps, latents, alphas_cumprod)))
        and bool(0 <= alphas_cumprod.min() <= alphas_cumprod.max() <= 1)
    )
