"""Source latents `z_t`: kept per timestep, looked up at any, saved with what they depend on."""

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
    alphas_cumprod: the source model's schedule, `[1000]`. image: what the latents end in, `[h, w, 3]` uint8, where
    the source model generated it.
    """

    def __init__(self, timesteps: Sequence[float], latents: Tensor, alphas_cumprod: Tensor, *,
                 image: Tensor | None = None):
        if latents.ndim != 5 or len(timesteps) != len(latents) or not len(latents):
            raise DitailError(None, f"source latents: {len(timesteps)} timesteps for latents {tuple(latents.shape)}")
        if image is not None and (image.ndim, image.shape[-1], image.dtype) != (3, 3, torch.uint8):
            raise DitailError(None, f"source latents: an image is [h, w, 3] uint8, not {tuple(image.shape)} "
                              f"{image.dtype}")
        order = sorted(range(len(timesteps)), key=lambda i: float(timesteps[i]))
        self.timesteps = torch.tensor([float(timesteps[i]) for i in order], dtype=torch.float64)
        self.latents = latents.detach().cpu()[order]
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        self.image = None if image is None else image.detach().cpu()
        abar = alphas_cumprod_at(self.alphas_cumprod, self.timesteps)
        self._sigmas = torch.sqrt((1 - abar) / abar)

    def __len__(self) -> int:
        return len(self.timesteps)

    def with_image(self, image: Tensor) -> "SourceLatents":
        """The same latents with the image that they end in."""
        return SourceLatents(self.timesteps.tolist(), self.latents, self.alphas_cumprod, image=image)

    @property
    def nbytes(self) -> int:
        return self.latents.nbytes + (0 if self.image is None else self.image.nbytes)

    def at(self, timestep: float) -> Tensor:
        """`z_t` `[b, c, h, w]` at any timestep, float32; outside the stored range, the nearest stored latent.

        Between two stored steps `z_t / sqrt(abar_t)` is linear in `sigma_t`. That is the DDIM equation itself, so
        for inverted latents the result is what DDIM inversion would have passed through.
        """
        t = float(timestep)
        # A sampler's float is not quite the stored one; latents that are there are not to be interpolated.
        high = int(torch.searchsorted(self.timesteps, torch.tensor(t, dtype=torch.float64)))
        for i in (high, high - 1):
            if 0 <= i < len(self) and abs(float(self.timesteps[i]) - t) < 1e-3:
                return self.latents[i].float()
        if high == 0 or high == len(self):
            return self.latents[min(high, len(self) - 1)].float()
        low = high - 1
        abar = alphas_cumprod_at(self.alphas_cumprod, torch.tensor([t], dtype=torch.float64))
        sigma = torch.sqrt((1 - abar) / abar)
        s_low, s_high = self._sigmas[low], self._sigmas[high]
        weight = float((sigma - s_low) / (s_high - s_low))
        z_low = self.latents[low].float() * float(torch.sqrt(1 + s_low**2))
        z_high = self.latents[high].float() * float(torch.sqrt(1 + s_high**2))
        return torch.lerp(z_low, z_high, weight) * float(torch.sqrt(abar))

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file, whole or not at all; readable in its header: `metadata`, format and checksum."""
        tensors = {"timesteps": self.timesteps, "latents": self.latents, "alphas_cumprod": self.alphas_cumprod}
        if self.image is not None:
            tensors["image"] = self.image
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
            data = Path(path).read_bytes()  # at once, as another process may replace or delete the file
            tensors = load(data)
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
            if metadata.pop("format", None) != FORMAT:
                raise DitailError(None, "another format")
            checksum = cache_key(tensors)
            parts = [tensors[name] for name in ("timesteps", "latents", "alphas_cumprod")]
            if metadata.pop("sha256", checksum) != checksum or not _are_sound(*parts):
                raise DitailError(None, "damaged")
            return cls(parts[0].tolist(), *parts[1:], image=tensors.get("image")), metadata
        except (SafetensorError, OSError, KeyError, DitailError) as error:
            raise DitailError(str(path), f"can't be read as source latents ({error})") from error


def _are_sound(timesteps: Tensor, latents: Tensor, alphas_cumprod: Tensor) -> bool:
    """Whether tensors from a file can be those of source latents."""
    return (
        (timesteps.ndim, latents.ndim, alphas_cumprod.shape) == (1, 5, (TRAINING_STEPS,))
        and all(t.double().isfinite().all() for t in (timesteps, latents, alphas_cumprod))
    )
